"""Training with several processes, one a GPU, as torchrun starts them; without torchrun there is one.

Every process has a share of the batch: encoders run on shares, the instance graph and the losses on the whole batch,
in every process alike. Pairs are dealt out as cards are: pair i of the batch, longest caption first, is in process i
modulo N. So shares take about the same time, and `gather` finds the order of one process again.

All processes reach every collective here. What one alone may meet (bad data, a signal, a full disk) is agreed upon
before the next one; what is met elsewhere ends its process, and torchrun then ends the others.
"""

# N processes, B pairs of the whole batch, b = B / N of a share

import contextlib
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import Function
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lib.system.console import write_line
from lib.system.errors import InputError, first_sentence


class AgreedError(InputError):
    """An InputError that all processes know of."""


SET_BY_TORCHRUN = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")  # and what PyTorch checks itself

_is_alone = False


def size():
    """N, the number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not _is_alone else 1


def rank():
    """Which of the N processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _is_alone else 0


def share():
    """Which of the things that are dealt out belong to this process, a slice."""
    return slice(rank(), None, size())


@contextlib.contextmanager
def alone():
    """Inside, this process is the only one: it computes by itself what otherwise all compute together."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def is_first():
    """Whether this is the process that writes and prints."""
    return rank() == 0


def no_bar():
    """For tqdm's `disable`: a bar where there is a terminal, in the first process alone."""
    return None if is_first() else True


def processes_here():
    """How many of the processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if size() > 1 else 1


def _rank_here():
    return int(os.environ.get("LOCAL_RANK", 0)) if size() > 1 else 0


def gpu(chosen):
    """Number of this process's GPU: `chosen`, or among several processes its own."""
    return _rank_here() if size() > 1 else chosen


def _bad_environment(found):
    return InputError(
        f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set in the environment, as by torchrun (found {found}), expected "
        "all that torchrun sets: start the program with torchrun, or unset WORLD_SIZE for one process"
    )


@contextlib.contextmanager
def processes():
    """Around a program: joins the processes that torchrun started, if it did (environment WORLD_SIZE).

    Raises InputError where the environment is not as torchrun sets it.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        yield
        return
    for name in SET_BY_TORCHRUN:
        if not os.environ.get(name, "").isdecimal():
            raise _bad_environment(f"{name} {os.environ.get(name, 'missing')!r}")
    has_gpu, needed = torch.cuda.is_available(), int(os.environ["LOCAL_WORLD_SIZE"])
    if has_gpu and needed > torch.cuda.device_count():
        raise InputError(
            f"torchrun: found {torch.cuda.device_count()} GPUs for {needed} processes of this machine, expected one "
            "each: give --nproc_per_node as many as there are GPUs"
        )
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        store, own_rank, count = next(dist.rendezvous("env://"))
    except ValueError as error:  # an address, a port or a rank that is missing, or is none
        raise _bad_environment(first_sentence(error)) from error
    # torchrun's store outlives a restart and holds the addresses of the processes before; several nodes may count
    # their restarts differently, so theirs stays as it is
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=count)
    try:
        yield
    except (AgreedError, SystemExit):  # no process waits for this one
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def largest(number):
    """The largest of the whole numbers that the processes bring."""
    if size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


@contextlib.contextmanager
def together():
    """Around what may fail in one process alone: if it raises an InputError there, all of them end.

    The first process raises it as an AgreedError, the others leave quietly with its exit status. Where processes wait
    for each other inside, that must begin with another `together`: that one then hears of the error.
    """
    if size() == 1:
        yield
        return
    error = None
    try:
        yield
    except AgreedError:
        raise
    except InputError as met:
        error = met
    if not largest(int(error is not None)):
        return
    found = [None] * size()
    dist.all_gather_object(found, error and str(error))
    if is_first():
        raise AgreedError(next(message for message in found if message)) from error
    raise SystemExit(2)


def from_first(function):
    """What `function()` returns in the first process, in all of them; the others do not call it."""
    if size() == 1:
        return function()
    found = [None]
    with together():
        if is_first():
            found = [function()]
    dist.broadcast_object_list(found)
    return found[0]


def in_turn(function):
    """What `function()` returns; the first process of a machine calls it before the others, who find its files."""
    found = None
    for is_mine in (_rank_here() == 0, _rank_here() != 0):
        with together():
            if is_mine:
                found = function()
    return found


def each(iterator):
    """The items of an iterator that is equally long in all processes; an InputError that one meets, all raise."""
    iterator, item = iter(iterator), None
    while True:
        with together():
            item = next(iterator, None)
        if item is None:
            return
        yield item


def shared_out(function, items, name):
    """[function(item) for item in items], a list; each process computes its share, under a bar of this name."""
    own = []
    with together():
        for item in tqdm(items[share()], name, leave=False, disable=no_bar()):
            own.append(function(item))
    if size() == 1:
        return own
    shares = [None] * size()
    dist.all_gather_object(shares, own)
    return [shares[index % size()][index // size()] for index in range(len(items))]


class _Gather(Function):
    """Rows of all shares in the order of the whole batch.

    Every process computes the same loss from what is gathered, so each knows the whole gradient: the sum over the
    processes that belongs here is N times its own, and DistributedDataParallel's mean divides by N.
    """

    @staticmethod
    def forward(ctx, rows):
        found = rows.new_empty(size(), *rows.shape)
        dist.all_gather(list(found.unbind()), rows.contiguous())
        return found.transpose(0, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient[share()] * size()


def gather(rows):
    """Rows of the whole batch from those of the shares, with gradient: (b, ...) to (B, ...); one process: the same."""
    return rows if size() == 1 else _Gather.apply(rows)


class _Sum(Function):
    @staticmethod
    def forward(ctx, values):
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.apply(gradient)


def agreed(is_true):
    """True where a bool tensor, a scalar of any device, is true in all processes."""
    if size() > 1:
        count = is_true.int()
        dist.all_reduce(count)
        is_true = count == size()
    return is_true


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of all processes, the CPU's too; with one process and in evaluation it is PyTorch's."""

    def forward(self, rows):
        """rows: (M, E), any number of them in each process. Returns (M, E)."""
        if size() == 1 or not self.training:
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


def replicate(module):
    """`module` with its gradients averaged, parameters without use among them; None where there is one process."""
    if size() == 1:
        return None
    module.unused = nn.Parameter(torch.zeros(1))  # without one, after the warm-up, a warning from every process
    return DistributedDataParallel(module, find_unused_parameters=True)


def print_line(text):
    """Print a line without tearing a progress bar; of several processes the first one speaks."""
    if is_first():
        with tqdm.external_write_mode():
            write_line(text)
