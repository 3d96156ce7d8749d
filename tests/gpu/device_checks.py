"""A stand-in for a GPU on a machine without one: tensors that say they are on "cuda" and compute on
the CPU, and a mode that raises where a GPU would refuse an operation or make the host wait.

The data are real, so everything can be followed. The core of PyTorch sees the tensors on "meta", a
device that needs no driver; Python code sees "cuda".
"""

import contextlib
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

aten = torch.ops.aten
CUDA, HOST, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
MOST_BLOCKS = 65535  # in the second and third dimension of a CUDA grid
# the host waits for the value, or for the size of the result
WAITING = {
    aten._local_scalar_dense: "item(), float(), int() or bool()",
    aten.nonzero: "nonzero() or a boolean index",
    aten.masked_select: "masked_select()",
    aten.repeat_interleave: "repeat_interleave() without output_size",
    aten._unique: "unique()",
    aten._unique2: "unique()",
    aten.unique_dim: "unique()",
    aten.unique_consecutive: "unique_consecutive()",
    aten.bincount: "bincount()",
    aten.histc: "histc()",
    aten.equal: "torch.equal()",
    aten.multinomial: "multinomial()",
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# batch sizes of packed sequences, and the lengths that they are made from, belong to the CPU
HOST_ARGUMENTS = {aten._pack_padded_sequence, aten._pack_padded_sequence_backward}
# besides the pointwise ones, these accept a scalar tensor of the host
SCALAR_ARGUMENTS = {aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_}
BATCHED = {aten.bmm, aten.baddbmm, aten.baddbmm_}  # one grid layer for each matrix
# what autocast runs in its own type, and what it runs in float32
AUTOCAST = {"linear", "matmul", "__matmul__", "mm", "bmm", "scaled_dot_product_attention", "gru"}
AUTOCAST_FLOAT = {"softmax", "log_softmax", "layer_norm", "norm", "exp", "log", "sum", "cdist"}


class DeviceError(AssertionError):
    """A GPU would refuse this, or the host would wait for it."""


class DeviceTensor(torch.Tensor):
    """A tensor of the stand-in; `values` is the CPU tensor that holds its data."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device=META,
            _extra_dispatch_keys=torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA),
        )  # fmt: skip

    def __init__(self, values):
        self.values = values

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def __repr__(self, *, tensor_contents=None):
        return f"DeviceTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise DeviceError(f"{operation}: a tensor of the stand-in was used outside StandIn")


class _Functions(TorchFunctionMode):
    """What is decided before an operation reaches the core: autocast, which casts only tensors with
    a driver, and what the core would refuse of a subclass in words of its own."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in ("tolist", "numpy", "__array__") and isinstance(args[0], DeviceTensor):
            raise DeviceError(f"{name}: the host waits for the device")
        if name == "tensor" and torch.device(kwargs.get("device") or HOST) != HOST:
            raise DeviceError("torch.tensor: a copy to the device without non_blocking")
        if torch.is_autocast_enabled("cuda") and name in AUTOCAST | AUTOCAST_FLOAT:
            dtype = torch.get_autocast_dtype("cuda") if name in AUTOCAST else torch.float32

            def cast(each):
                return each.to(dtype) if each.is_floating_point() else each

            args, kwargs = tree_map_only(DeviceTensor, cast, (args, kwargs))
        return function(*args, **kwargs)


class StandIn(TorchDispatchMode):
    """Inside, tensors on "cuda" are those of the stand-in.

    operations: those handed to the device, views left out; copies: those from the host to it.
    """

    def __init__(self):
        super().__init__()
        self.operations = self.copies = 0
        self.patches = contextlib.ExitStack()

    def __enter__(self):
        devices = [*_foreach_utils._get_foreach_kernels_supported_devices(), "meta"]
        for target, name, value in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_: True),
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.backends.cudnn, "is_acceptable", lambda tensor: False),
            (_foreach_utils, "_get_foreach_kernels_supported_devices", lambda: devices),
        ):
            self.patches.enter_context(mock.patch.object(target, name, value))
        self.patches.enter_context(_Functions())
        return super().__enter__()

    def __exit__(self, *exception):
        self.patches.close()
        return super().__exit__(*exception)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat, structure = tree_flatten((args, kwargs))
        tensors = [each for each in flat if isinstance(each, torch.Tensor)]
        ours = [each for each in tensors if isinstance(each, DeviceTensor)]
        target = kwargs.get("device")
        target = torch.device(target).type if target is not None else None
        if not ours and target not in ("cuda", "meta"):
            return operation(*args, **kwargs)
        self.check(operation, args, kwargs, tensors, target)
        self.count(operation, kwargs, ours)
        found = _on_the_cpu(operation, flat, structure)
        if isinstance(found, (bool, int, float)):
            raise DeviceError(f"{operation}: the host waits for the device: a Python number")
        if target == "cpu":
            return found
        if operation.overloadpacket is aten._pack_padded_sequence:
            return DeviceTensor(found[0]), found[1]  # the batch sizes stay on the host
        if operation.overloadpacket is aten._to_copy or not ours:
            return tree_map_only(torch.Tensor, DeviceTensor, found)
        return _wrapped(operation, args, kwargs, found)

    def check(self, operation, args, kwargs, tensors, target):
        """Raise `DeviceError` for what a GPU would refuse or the host would wait for."""
        name, packet = str(operation), operation.overloadpacket
        host = [each for each in tensors if not isinstance(each, DeviceTensor)]
        if packet in (aten._to_copy, aten.copy_):
            return _check_copy(packet, args, kwargs, target)
        if packet in WAITING and kwargs.get("output_size") is None:
            raise DeviceError(f"{name}: the host waits for the device: {WAITING[packet]}")
        if packet in INDEXING:
            _check_index(name, packet, args)
        accepts_scalars = torch.Tag.pointwise in operation.tags or packet in SCALAR_ARGUMENTS
        if packet not in HOST_ARGUMENTS:
            for each in host:
                if each.dim() or not accepts_scalars and packet not in INDEXING:
                    raise DeviceError(
                        f"{name}: a tensor of the host, {tuple(each.shape)}, meets tensors of "
                        "the device"
                    )
        if packet in BATCHED and args[-1].size(0) > MOST_BLOCKS:
            raise DeviceError(f"{name}: {args[-1].size(0)} matrices, at most {MOST_BLOCKS} fit")

    def count(self, operation, kwargs, ours):
        is_copy = operation.overloadpacket in (aten._to_copy, aten.copy_)
        self.copies += is_copy and len(ours) < (operation.overloadpacket is aten.copy_) + 1
        # to PyTorch, the stand-in's "meta" and "cuda" are two devices: it copies between them
        is_nothing = is_copy and ours and kwargs.get("dtype", ours[0].dtype) == ours[0].dtype
        self.operations += not operation.is_view and not (is_nothing and "device" in kwargs)


def _check_copy(packet, args, kwargs, target):
    if packet is aten.copy_:
        into, source = args[:2]
        is_blocking = not (args[2:] or [kwargs.get("non_blocking", False)])[0]
        into_device = isinstance(into, DeviceTensor)
    else:
        source, is_blocking = args[0], not kwargs.get("non_blocking", False)
        into_device = target != "cpu"
    if isinstance(source, DeviceTensor) and not into_device:
        raise DeviceError(f"{packet}: the host waits for the device: cpu() or tolist()")
    if not isinstance(source, DeviceTensor) and is_blocking:
        raise DeviceError(f"{packet}: a copy to the device without non_blocking")


def _check_index(name, packet, args):
    indices = [index for index in args[1] if index is not None]
    for index in indices:
        if not isinstance(index, DeviceTensor):
            raise DeviceError(f"{name}: an index of the host is copied while the host waits")
        # x[mask] = number is a masked_fill
        is_fill = packet is not aten.index and len(indices) == 1 and args[2].dim() == 0
        if index.dtype in (torch.bool, torch.uint8) and not is_fill:
            raise DeviceError(f"{name}: the host waits for the device: a boolean index")


def _on_the_cpu(operation, flat, structure):
    values = [each.values if isinstance(each, DeviceTensor) else each for each in flat]
    args, kwargs = tree_unflatten(values, structure)
    return operation(*args, **(kwargs | {"device": HOST} if kwargs.get("device") else kwargs))


def _wrapped(operation, args, kwargs, found):
    """The result as tensors of the stand-in, aliases as PyTorch expects them."""
    found = tree_map_only(torch.Tensor, DeviceTensor, found)
    return return_and_correct_aliasing(operation, args, kwargs, found)


def to_device(module):
    """Put the parameters and buffers of a module on the stand-in. Returns the module."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            values = DeviceTensor(parameter.detach())
            setattr(part, name, nn.Parameter(values, requires_grad=parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, DeviceTensor(buffer))
    return module
