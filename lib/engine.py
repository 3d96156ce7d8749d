"""Train one epoch, encode a data set, compute its similarities: tensors in, tensors out.

Nothing here waits for the GPU inside a step: what a step found is handed on as tensors, and a step whose loss or
gradient is not finite is undone on the device.
"""

# B pairs, N images, C captions, E embedding

import contextlib
import time

import numpy as np
import torch
from tqdm import tqdm

from lib.errors import InputError, first_sentence
from lib.logs import StepReport
from lib.metrics import Similarity

# Fixed, because the last bit of an embedding depends on it: every evaluation of a model gives the same bytes.
EVALUATED_AT_ONCE = 128
MOST_SKIPPED = 20  # steps in a row whose loss is not finite; after that nothing changes until somebody has looked
PRECISIONS = ("fp32", "tf32", "bf16")  # of the encoders in training; evaluation is always fp32


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


@contextlib.contextmanager
def matrix_products(precision):
    """Inside, float32 matrix products on a GPU may use TF32 if `precision` is "tf32", and may not otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def training_step(
    model, objective, optimizer, batch, *, use_graph, hardest=False, grad_clip=2.0, precision="fp32", skipped=None
):  # fmt: skip
    """One optimisation step on a `lib.dataset.Batch`. If the loss or the gradient is not finite nothing changes.

    use_graph: the warm-up of the instance graph is over; hardest: `vse` takes the hardest negatives; precision: of
    the encoders, one of PRECISIONS. Relations and losses are computed in float32 whatever it is. skipped: a scalar
    tensor that counts the steps in a row which changed nothing; once it is MOST_SKIPPED, no step changes anything.
    Returns `StepReport`.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # the running statistics
    device_type = batch.regions.device.type
    with matrix_products(precision), torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16"):
        images, captions = model(batch, least_pieces=objective.pieces_read if use_graph else 0)
    loss = objective(images, captions, batch.image_ids, use_graph=use_graph, hardest=hardest)
    optimizer.zero_grad(set_to_none=True)
    with matrix_products(precision):
        loss.total.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
    is_finite = loss.total.detach().isfinite() & gradient_norm.isfinite()
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
    precision="fp32", skipped=None,
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
            precision=precision, skipped=skipped,
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
    embeddings = []
    for start in tqdm(range(0, dataset.num_images, batch_size), "images", leave=False, disable=None):
        regions, lengths = dataset.image_block(start, min(start + batch_size, dataset.num_images))
        embeddings.append(model.image_encoder(regions.to(device), lengths).embedding.float().cpu())
    return torch.cat(embeddings)


@torch.no_grad()
def encode_captions(model, dataset, device, batch_size=EVALUATED_AT_ONCE):
    """Embeddings of every caption, encoded in order of length. Returns (C, E), in the file's order, on the CPU."""
    model.eval()
    order = np.argsort(-dataset.captions.lengths, kind="stable")
    embeddings = []
    for start in tqdm(range(0, len(order), batch_size), "captions", leave=False, disable=None):
        pieces, lengths = dataset.caption_block(order[start : start + batch_size])
        embeddings.append(model.text_encoder(pieces.to(device), lengths, least_pieces=0).embedding.float().cpu())
    return torch.cat(embeddings)[np.argsort(order)]


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
    return Similarity(images, captions)
