"""Training with several processes, one a GPU, as torchrun starts them;
without torchrun there is one.

Every process has a shard of the batch: encoders run on shards, the instance graph and the losses on
the whole batch, in every process alike. Pairs are assigned in turn: pair i of the batch, longest
caption first, is in process i modulo
N. So shards take about the same time, and `gather` restores the order of a single process.

All processes reach every collective here. What one alone may meet (bad data, a signal, a full disk)
is agreed upon before the next one; what is met elsewhere ends its process, and torchrun then ends
the others.
"""

# N processes, B pairs of the whole batch, b = B / N of a shard

import contextlib
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import Function
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .console import write_line
from .errors import InputError, first_sentence


class AllRanksError(InputError):
    """An InputError that is raised on all processes."""


# and what PyTorch checks itself
TORCHRUN_VARIABLES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")

_is_single_process = False


def world_size():
    """N, the number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not _is_single_process else 1


def rank():
    """Which of the N processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _is_single_process else 0


def shard():
    """The items of a sequence that belong to this process, a slice."""
    return slice(rank(), None, world_size())


@contextlib.contextmanager
def single_process():
    """Inside, this process acts as the only one: what all compute together,
    it computes by itself."""
    global _is_single_process
    before, _is_single_process = _is_single_process, True
    try:
        yield
    finally:
        _is_single_process = before


def is_main_process():
    """Whether this is the process that writes and prints."""
    return rank() == 0


def progress_disabled():
    """For tqdm's `disable`: a bar where there is a terminal, in the first process alone."""
    return None if is_main_process() else True


def local_world_size():
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1


def _local_rank():
    return int(os.environ.get("LOCAL_RANK", 0)) if world_size() > 1 else 0


def local_gpu(chosen):
    """Number of this process's GPU: `chosen`, or among several processes its own."""
    return _local_rank() if world_size() > 1 else chosen


def _bad_environment(found):
    return InputError(
        f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set in the environment, as by torchrun (found "
        f"{found}), expected all that torchrun sets: start the program with torchrun, or unset "
        "WORLD_SIZE for one process"
    )


@contextlib.contextmanager
def process_group():
    """Around a program: joins the processes that torchrun started, if it did
    (environment WORLD_SIZE).

    Raises InputError where the environment is not as torchrun sets it.
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


def all_reduce_max(number):
    """The maximum over all processes of a whole number."""
    if world_size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


@contextlib.contextmanager
def raise_on_all_ranks():
    """Around what may fail in one process alone: if it raises an InputError there, all of them end.

    The first process raises it as an AllRanksError, the others leave quietly with its exit status.
    Where processes wait for each other inside, that must begin with another `raise_on_all_ranks`:
    that one then hears of the error.
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


def broadcast_from_main(function):
    """What `function()` returns in the first process, in all of them; the others do not call it."""
    if world_size() == 1:
        return function()
    found = [None]
    with raise_on_all_ranks():
        if is_main_process():
            found = [function()]
    dist.broadcast_object_list(found)
    return found[0]


def main_process_first(function):
    """What `function()` returns; the first process of a machine calls it before the others,
    who find its files."""
    found = None
    for is_mine in (_local_rank() == 0, _local_rank() != 0):
        with raise_on_all_ranks():
            if is_mine:
                found = function()
    return found


def synchronised_iterator(iterator):
    """The items of an iterator of the same length in all processes;
    an InputError in one is raised in all."""
    iterator, item = iter(iterator), None
    while True:
        with raise_on_all_ranks():
            item = next(iterator, None)
        if item is None:
            return
        yield item


def map_sharded(function, items, name):
    """[function(item) for item in items], a list; each process computes its shard,
    under a bar of this name."""
    own = []
    with raise_on_all_ranks():
        for item in tqdm(items[shard()], name, leave=False, disable=progress_disabled()):
            own.append(function(item))
    if world_size() == 1:
        return own
    shards = [None] * world_size()
    dist.all_gather_object(shards, own)
    return [shards[index % world_size()][index // world_size()] for index in range(len(items))]


class _Gather(Function):
    """Rows of all shards in the order of the whole batch.

    Every process computes the same loss from what is gathered, so each knows the whole gradient:
    the sum over the processes that belongs here is N times its own, and DistributedDataParallel's
    mean divides by N.
    """

    @staticmethod
    def forward(ctx, rows):
        found = rows.new_empty(world_size(), *rows.shape)
        dist.all_gather(list(found.unbind()), rows.contiguous())
        return found.transpose(0, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient[shard()] * world_size()


def gather(rows):
    """Rows of the whole batch from those of the shards, with gradient: (b, ...) to (B, ...);
    one process: the same."""
    return rows if world_size() == 1 else _Gather.apply(rows)


class _Sum(Function):
    @staticmethod
    def forward(ctx, values):
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.apply(gradient)


def all_ranks_agree(is_true):
    """Whether a bool tensor, a scalar on any device, is true in all processes."""
    if world_size() > 1:
        count = is_true.int()
        dist.all_reduce(count)
        is_true = count == world_size()
    return is_true


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of all processes, the CPU's too;
    with one process and in evaluation it is PyTorch's."""

    def forward(self, rows):
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


def wrap_ddp(module):
    """`module` with its gradients averaged, parameters without use among them;
    None where there is one process."""
    if world_size() == 1:
        return None
    # without one, after the warm-up, a warning from every process
    module.unused = nn.Parameter(torch.zeros(1))
    return DistributedDataParallel(module, find_unused_parameters=True)


def print_line(text):
    """Print a line without tearing a progress bar; of several processes the first one speaks."""
    if is_main_process():
        with tqdm.external_write_mode():
            write_line(text)
