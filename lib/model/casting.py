"""Cast all weights to the type of autocast at once.

Autocast casts each weight of a linear layer, and its gradient, separately: hundreds of small
kernels per step. The numbers are the same.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

ALIGNMENT = 8  # elements; matrix products are slower if weights are not aligned


class _CastAll(torch.autograd.Function):
    """Tensors of one type in another, by one operation; their gradients return the same way."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: torch.Tensor) -> tuple:
        ctx.before = tensors[0].dtype
        return _copied(tensors, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        return None, *_copied(gradients, ctx.before)


def _copied(tensors, dtype):
    """Copies of `tensors` in `dtype`, in one piece of memory."""
    sizes = [-(-tensor.numel() // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    memory = tensors[0].new_empty(sum(sizes), dtype=dtype)
    copies = [
        part[: tensor.numel()].view(tensor.shape)
        for part, tensor in zip(memory.split(sizes), tensors)
    ]
    torch._foreach_copy_(copies, tensors)
    return tuple(copies)


def linear_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `model` that autocast casts, by name: those of its linear layers and of
    the projections of its attention."""
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
            for name, parameter in module.named_parameters(recurse=False):
                found[f"{prefix}.{name}"] = parameter
    return found


def call_with_cast_weights(
    model: nn.Module, dtype: torch.dtype, *arguments: Any, **named: Any
) -> Any:
    """What `model(*arguments, **named)` returns under autocast to `dtype`."""
    weights = linear_weights(model)
    cast = dict(zip(weights, _CastAll.apply(dtype, *weights.values())))
    return functional_call(model, cast, arguments, named)


def compile_for_training(model: nn.Module, **settings: Any) -> None:
    """Compile the model's forward(), which training calls; evaluation calls the encoders.

    The number of rows that `Packing` keeps depends on the lengths. Without the setting, the graph
    would break there, at every `nonzero`. settings: further arguments of `nn.Module.compile`.
    """
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    model.compile(dynamic=True, **settings)


def is_compiled(model: nn.Module) -> bool:
    """Whether `model.compile()` was called: what is compiled casts well by itself."""
    return getattr(model, "_compiled_call_impl", None) is not None
