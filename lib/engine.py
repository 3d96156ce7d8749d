"""Train one epoch, encode a data set, compute its similarities: tensors in, tensors out.

Nothing here waits for the GPU inside a step: what a step found is handed on as tensors, and a step whose loss or
gradient is not finite is undone on the device.
"""

# B pairs, N images, C captions, E embedding

import contextlib
import functools
import os
import re
import time

import numpy as np
import torch
from torch import nn

from lib import distributed
from lib.errors import InputError, first_sentence
from lib.logs import StepReport
from lib.metrics import Similarity

# Fixed, because the last bit of an embedding depends on it: every evaluation of a model gives the same bytes.
EVALUATED_AT_ONCE = 128
MOST_SKIPPED = 20  # steps in a row whose loss is not finite; after that nothing changes until somebody has looked
OUT_OF_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory")  # what torch says of a CPU's
PRECISIONS = ("fp32", "tf32", "bf16")  # of the encoders in training; evaluation is always fp32
CUBLAS_WORKSPACE, DETERMINISTIC_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


def choose_device(name="auto", gpu_id=0):
    """The torch device of --device and --gpu-id. Raises InputError where it is not there."""
    if name == "auto":
        name = f"cuda:{gpu_id}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("this program runs on CPUs and CUDA GPUs")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {name}: not usable here ({first_sentence(error)}); expected auto, cpu, cuda or "
            f"cuda:N; CUDA GPUs found: {torch.cuda.device_count()}"
        ) from error
    return device


def prepare_determinism():
    """Let cuBLAS give the same bits again. cuBLAS reads this setting once, so call it before the first CUDA call.

    A setting of the user stays. `set_determinism` refuses what is not deterministic.
    """
    if not torch.cuda.is_initialized():
        os.environ.setdefault(CUBLAS_WORKSPACE, DETERMINISTIC_WORKSPACES[0])


def set_determinism(enabled, device):
    """Allow only kernels that give the same bits again, or any. Raises InputError where cuBLAS cannot on `device`."""
    found = os.environ.get(CUBLAS_WORKSPACE)
    if enabled and device.type == "cuda" and found not in DETERMINISTIC_WORKSPACES:
        expected = f"expected {CUBLAS_WORKSPACE}={' or '.join(DETERMINISTIC_WORKSPACES)}"
        if found is None:
            raise InputError(
                f"--deterministic 1: CUDA was started in this process before the option was read (found no "
                f"{CUBLAS_WORKSPACE}), {expected} in the environment from the start; start the run in a new process"
            )
        raise InputError(
            f"--deterministic 1: found {CUBLAS_WORKSPACE}={found!r} in the environment, {expected}: matrix products "
            f"on a GPU differ from run to run otherwise; unset {CUBLAS_WORKSPACE}"
        )
    torch.use_deterministic_algorithms(enabled)


@contextlib.contextmanager
def matrix_products(precision):
    """Inside, float32 matrix products on a GPU may use TF32 if `precision` is "tf32", and may not otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def memory_errors(what, remedy):
    """Inside, too little memory of the machine or of its GPU becomes an InputError with this remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or OUT_OF_MEMORY.search(str(error))
        if not is_memory:
            raise
        raise InputError(f"out of memory at {what} ({first_sentence(error)}), expected it to fit: {remedy}") from error


class BatchLoss(nn.Module):
    """The encoders and the objective as one module from a batch to its loss: what several processes replicate."""

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch, **settings):
        """batch: this process's share; settings: of `batch_loss`. Returns `graph_lib.Loss` of the whole batch."""
        return batch_loss(self.model, self.objective, batch, **settings)


def batch_loss(model, objective, batch, use_graph, hardest, precision):
    """Loss of a batch: encoders on this process's share of it, the objective on the whole in every process."""
    seed, is_shared = torch.initial_seed(), distributed.size() > 1
    if is_shared:
        torch.manual_seed(seed + 1 + distributed.rank())  # dropout in the encoders, of each share its own
    device_type = batch.regions.device.type
    with matrix_products(precision), torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16"):
        images, captions = model(batch, least_pieces=objective.pieces_read if use_graph else 0)
    if is_shared:
        torch.manual_seed(seed)  # what is drawn over the whole batch is the same in all processes
        images, captions = (
            side._replace(
                embedding=distributed.gather(side.embedding), unnormalised=distributed.gather(side.unnormalised)
            )
            for side in (images, captions)
        )
    return objective(images, captions, batch.image_ids, use_graph=use_graph, hardest=hardest)


def training_step(
    model, objective, optimizer, batch, *, use_graph, hardest=False, grad_clip=2.0, precision="fp32", skipped=None,
    replicas=None,
):  # fmt: skip
    """One optimisation step on a `lib.dataset.Batch`. If the loss or the gradient is not finite nothing changes.

    use_graph: the warm-up of the instance graph is over; hardest: `vse` takes the hardest negatives; precision: of
    the encoders, one of PRECISIONS. Relations and losses are computed in float32 whatever it is. skipped: a scalar
    tensor that counts the steps in a row which changed nothing; once it is MOST_SKIPPED, no step changes anything.
    replicas: with several processes, what DistributedDataParallel made of the `BatchLoss`. Returns `StepReport`, the
    same in all processes.
    """
    compute = replicas or functools.partial(batch_loss, model, objective)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # the running statistics
    loss = compute(batch, use_graph=use_graph, hardest=hardest, precision=precision)
    optimizer.zero_grad(set_to_none=True)
    with matrix_products(precision):
        loss.total.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
    is_finite = distributed.agreed(loss.total.detach().isfinite() & gradient_norm.isfinite())
    if skipped is not None:
        is_finite = is_finite & (skipped < MOST_SKIPPED)
        skipped.copy_((skipped + 1) * ~is_finite)
    optimizer.found_inf = (~is_finite).float()  # fused AdamW leaves everything as it was where this is 1
    optimizer.step()
    for buffer, before in buffers:
        buffer.copy_(torch.where(is_finite, buffer, before))
    terms = {name: term.detach() for name, term in loss.terms.items()}
    return StepReport(loss.total.detach(), terms, gradient_norm, is_finite)


def seed_step(seed, step):
    """Seed torch for one step: dropout and the drawn negatives depend on (seed, step) and on nothing before."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))


def train_epoch(
    model, objective, optimizer, batches, *, step, seed, warmup, hardest, grad_clip, device, on_step,
    precision="fp32", skipped=None, replicas=None,
):  # fmt: skip
    """Train on every batch of an epoch.

    step: optimisation steps done before; warmup: how many steps are done without the instance graph; on_step: called
    after each step with (steps done, StepReport, seconds waited for data, seconds in all). Returns the steps done.
    """
    model.train()
    objective.train()
    started = time.perf_counter()
    for batch in batches:
        batch = batch.to(device)
        waited = time.perf_counter() - started
        seed_step(seed, step)
        report = training_step(
            model, objective, optimizer, batch, use_graph=step >= warmup, hardest=hardest, grad_clip=grad_clip,
            precision=precision, skipped=skipped, replicas=replicas,
        )  # fmt: skip
        step += 1
        on_step(step, report, waited, time.perf_counter() - started)
        model.train()  # on_step may have evaluated both
        objective.train()
        started = time.perf_counter()
    return step


@torch.no_grad()
def encode_images(model, dataset, device, batch_size=EVALUATED_AT_ONCE):
    """Embeddings of every image of a `lib.dataset.RetrievalDataset`, each encoded once. Returns (N, E), on the CPU."""
    model.eval()

    def encode(start):
        regions, lengths = dataset.image_block(start, min(start + batch_size, dataset.num_images))
        return model.image_encoder(regions.to(device), lengths).embedding.float().cpu()

    return torch.cat(distributed.shared_out(encode, range(0, dataset.num_images, batch_size), "images"))


@torch.no_grad()
def encode_captions(model, dataset, device, batch_size=EVALUATED_AT_ONCE):
    """Embeddings of every caption, encoded in order of length. Returns (C, E), in the file's order, on the CPU."""
    model.eval()
    order = np.argsort(-dataset.captions.lengths, kind="stable")

    def encode(start):
        pieces, lengths = dataset.caption_block(order[start : start + batch_size])
        return model.text_encoder(pieces.to(device), lengths, least_pieces=0).embedding.float().cpu()

    return torch.cat(distributed.shared_out(encode, range(0, len(order), batch_size), "captions"))[np.argsort(order)]


def similarities(model, dataset, device):
    """Similarities of every image with every caption of a data set. Returns `lib.metrics.Similarity`, (N, C).

    Raises InputError where an embedding is not finite.
    """
    images, captions = encode_images(model, dataset, device), encode_captions(model, dataset, device)
    if not (images.isfinite().all() and captions.isfinite().all()):
        raise InputError(
            f"{dataset.folder}: the model makes NaN or Inf of the {dataset.split} split, expected finite embeddings: "
            "it has diverged; train with a smaller --learning_rate, or take another checkpoint"
        )
    return Similarity(images, captions, dataset.caption_images)
