"""Training with several processes, one per GPU, started by torchrun. Without torchrun there is one.

Every process has a shard of the batch. Encoders run on shards; the instance graph and the losses
run on the whole batch, in every process. Pair i of the batch, longest caption first, is in process
i modulo N, so shards take about the same time, and `gather` restores the order of a single process.

All processes must reach every collective. Errors that only one process may meet (bad data, a
signal, a full disk) are therefore shared before the next collective. Any other error ends its
process, and torchrun then ends the others.
"""

# N processes, B pairs of the whole batch, b = B / N of a shard

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import Function
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .console import write_line
from .errors import InputError, first_sentence

Result = TypeVar("Result")
Item = TypeVar("Item")


class AllRanksError(InputError):
    """An InputError that is raised on all processes."""


# PyTorch checks the others itself
TORCHRUN_VARIABLES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")

_is_single_process = False


def world_size() -> int:
    """N, the number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not _is_single_process else 1


def rank() -> int:
    """The number of this process, from 0 to N - 1."""
    return dist.get_rank() if dist.is_initialized() and not _is_single_process else 0


def shard() -> slice:
    """The part of a sequence that belongs to this process."""
    return slice(rank(), None, world_size())


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """Make this process act as the only one: nothing is shared with the others."""
    global _is_single_process
    before, _is_single_process = _is_single_process, True
    try:
        yield
    finally:
        _is_single_process = before


def is_main_process() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def progress_disabled() -> bool | None:
    """The value of tqdm's `disable`. None: bars appear only on a terminal; True: none in this
    process, because it is not the main one."""
    return None if is_main_process() else True


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1


def _local_rank():
    return int(os.environ.get("LOCAL_RANK", 0)) if world_size() > 1 else 0


def local_gpu(chosen: int) -> int:
    """The number of this process's GPU: `chosen`, or with several processes its own."""
    return _local_rank() if world_size() > 1 else chosen


def _bad_environment(found):
    return InputError(
        f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set in the environment, as by torchrun (found "
        f"{found}), expected all that torchrun sets: start the program with torchrun, or unset "
        "WORLD_SIZE for one process"
    )


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, if it did (environment variable WORLD_SIZE).

    Raises InputError if the environment is not the one that torchrun sets.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        yield
        return
    for name in TORCHRUN_VARIABLES:
        if not os.environ.get(name, "").isdecimal():
            raise _bad_environment(f"{name} {os.environ.get(name, 'missing')!r}")
    has_gpu, needed = torch.cuda.is_available(), int(os.environ["LOCAL_WORLD_SIZE"])
    if has_gpu and needed > torch.cuda.device_count():
        raise InputError(
            f"torchrun: found {torch.cuda.device_count()} GPUs for {needed} processes of this "
            "machine, expected one each: give --nproc_per_node as many as there are GPUs"
        )
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        store, own_rank, count = next(dist.rendezvous("env://"))
    except ValueError as error:  # an address, a port or a rank that is missing, or is none
        raise _bad_environment(first_sentence(error)) from error
    # torchrun's store outlives a restart and holds the addresses of the processes before; several
    # nodes may count their restarts differently, so theirs stays as it is
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=count)
    try:
        yield
    except (AllRanksError, SystemExit):  # no process waits for this one
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def all_reduce_max(number: int) -> int:
    """The maximum over all processes of a whole number."""
    if world_size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


@contextlib.contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """If one process raises an InputError inside, all processes end.

    The main process raises it as an AllRanksError; the others exit quietly with its exit status. If
    processes wait for each other inside, that code must begin with another `raise_on_all_ranks`,
    which then receives the error.
    """
    if world_size() == 1:
        yield
        return
    error = None
    try:
        yield
    except AllRanksError:
        raise
    except InputError as met:
        error = met
    if not all_reduce_max(int(error is not None)):
        return
    found = [None] * world_size()
    dist.all_gather_object(found, error and str(error))
    if is_main_process():
        raise AllRanksError(next(message for message in found if message)) from error
    raise SystemExit(2)


def broadcast_from_main(function: Callable[[], Result]) -> Result:
    """Call `function` in the main process only, and return its result in all processes."""
    if world_size() == 1:
        return function()
    found: list[Any] = [None]
    with raise_on_all_ranks():
        if is_main_process():
            found = [function()]
    dist.broadcast_object_list(found)
    return found[0]


def main_process_first(function: Callable[[], Result]) -> Result:
    """Call `function` in all processes. The main process of each machine is first, so that the
    others find its files."""
    found: Any = None
    for is_mine in (_local_rank() == 0, _local_rank() != 0):
        with raise_on_all_ranks():
            if is_mine:
                found = function()
    return found


def synchronised_iterator(iterator: Iterable[Result]) -> Iterator[Result]:
    """Iterate in all processes, which have the same number of items. An InputError in one is raised
    in all."""
    iterator, item = iter(iterator), None
    while True:
        with raise_on_all_ranks():
            item = next(iterator, None)
        if item is None:
            return
        yield item


def map_sharded(
    function: Callable[[Item], Result], items: Sequence[Item], name: str
) -> list[Result]:
    """[function(item) for item in items]. Each process computes its shard, with a progress bar of
    this name."""
    own = []
    with raise_on_all_ranks():
        for item in tqdm(items[shard()], name, leave=False, disable=progress_disabled()):
            own.append(function(item))
    if world_size() == 1:
        return own
    shards: list[Any] = [None] * world_size()
    dist.all_gather_object(shards, own)
    return [shards[index % world_size()][index // world_size()] for index in range(len(items))]


class _Gather(Function):
    """Rows of all shards in the order of the whole batch.

    Every process computes the same loss from what is gathered, so each knows the whole gradient:
    the sum over the processes that belongs here is N times its own, and DistributedDataParallel's
    mean divides by N.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        found = rows.new_empty(world_size(), *rows.shape)
        dist.all_gather(list(found.unbind()), rows.contiguous())
        return found.transpose(0, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient[shard()] * world_size()


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Rows of the whole batch, (B, ...), from those of the shards, (b, ...), with gradient. With
    one process, `rows` itself."""
    return rows if world_size() == 1 else _Gather.apply(rows)


class _GatherForShard(_Gather):
    """`_Gather` of rows from which each process computes only a shard of what is gathered later:
    the gradients of the processes, which are parts of the whole, are added."""

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total[shard()]


def gather_for_shard(rows: torch.Tensor) -> torch.Tensor:
    """`gather` of rows of which each process uses all to compute its shard of a result, which is
    then gathered."""
    return rows if world_size() == 1 else _GatherForShard.apply(rows)


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradient)


def all_ranks_agree(is_true: torch.Tensor) -> torch.Tensor:
    """Whether a bool tensor, a scalar on any device, is true in all processes."""
    if world_size() > 1:
        count = is_true.int()
        dist.all_reduce(count)
        is_true = count == world_size()
    return is_true


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of all processes, also on the CPU. With one process, and in
    evaluation mode, it is PyTorch's."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: (M, E), any number of them in each process. Returns (M, E)."""
        if world_size() == 1 or not self.training:
            return super().forward(rows)
        given = rows.float()
        sums = _Sum.apply(torch.cat([given.sum(0), given.new_tensor([len(given)])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        variance = _Sum.apply((given - mean).square().sum(0)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normalised = (given - mean) * torch.rsqrt(variance + self.eps)
        return (normalised * self.weight + self.bias).to(rows.dtype)


def wrap_ddp(module: nn.Module) -> DistributedDataParallel | None:
    """`module` with gradients averaged over processes, None with one process. Parameters may be
    unused."""
    if world_size() == 1:
        return None
    # an unused parameter: without any, DDP warns in every process once the warm-up is over
    module.unused = nn.Parameter(torch.zeros(1))
    return DistributedDataParallel(module, find_unused_parameters=True)


def print_line(text: str) -> None:
    """Print a line without breaking a progress bar; only the main process prints."""
    if is_main_process():
        with tqdm.external_write_mode():
            write_line(text)
