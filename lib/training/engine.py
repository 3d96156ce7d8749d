"""One training step, one epoch: tensors in, tensors out (docs/method.md, section 6).

Nothing here waits for the GPU inside a step: what a step found is handed on as tensors, and a step
whose loss or gradient is not finite is undone on the device.
"""

# B pairs, N images, C captions, E embedding

import contextlib
import functools
import time

import numpy as np
import torch
from torch import nn

from ..model.casting import call_with_cast_weights, is_compiled
from ..system import distributed
from .logs import StepReport

# steps in a row whose loss is not finite; after that nothing changes until somebody has looked
MOST_SKIPPED = 20


@contextlib.contextmanager
def matrix_products(precision):
    """Inside, float32 matrix products on a GPU may use TF32 if `precision` is "tf32",
    and may not otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class BatchLoss(nn.Module):
    """The encoders and the objective as one module from a batch to its loss:
    what several processes replicate."""

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch, **settings):
        """batch: this process's shard; settings: of `batch_loss`.
        Returns `graph_lib.Loss` of the whole batch."""
        return batch_loss(self.model, self.objective, batch, **settings)


def batch_loss(model, objective, batch, use_graph, hardest, precision):
    """Loss of a batch: encoders on this process's shard of it,
    the objective on the whole in every process."""
    seed, is_shared = torch.initial_seed(), distributed.world_size() > 1
    if is_shared:
        # dropout in the encoders, different in each shard
        torch.manual_seed(seed + 1 + distributed.rank())
    device_type = batch.regions.device.type
    with (
        matrix_products(precision),
        torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        encode = model
        # several processes exchange a gradient as soon as it is there; torch.compile fuses casts
        if precision == "bf16" and not is_shared and not is_compiled(model):
            encode = functools.partial(call_with_cast_weights, model, torch.bfloat16)
        images, captions = encode(batch, least_pieces=objective.pieces_read if use_graph else 0)
    if is_shared:
        torch.manual_seed(seed)  # what is drawn over the whole batch is the same in all processes
        images, captions = (
            side._replace(
                embedding=distributed.gather(side.embedding),
                unnormalised=distributed.gather(side.unnormalised),
            )
            for side in (images, captions)
        )
    return objective(images, captions, batch.image_ids, use_graph=use_graph, hardest=hardest)


def training_step(
    model, objective, optimizer, batch, *, use_graph, hardest=False, grad_clip=2.0,
    precision="fp32", skipped=None,
    replicas=None,
):  # fmt: skip
    """One optimisation step on a `lib.data.batches.Batch`.
    If the loss or the gradient is not finite nothing changes.

    use_graph: the warm-up of the instance graph is over; hardest: `vse` takes the hardest
    negatives; precision: of the encoders, one of PRECISIONS. Relations and losses are computed in
    float32 whatever it is. skipped: a scalar tensor that counts the steps in a row which changed
    nothing; once it is MOST_SKIPPED, no step changes anything. replicas: with several processes,
    what DistributedDataParallel made of the `BatchLoss`. Returns `StepReport`, the same in all
    processes.
    """
    compute = replicas or functools.partial(batch_loss, model, objective)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # the running statistics
    loss = compute(batch, use_graph=use_graph, hardest=hardest, precision=precision)
    optimizer.zero_grad(set_to_none=True)
    with matrix_products(precision):
        loss.total.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
    is_finite = distributed.all_ranks_agree(
        loss.total.detach().isfinite() & gradient_norm.isfinite()
    )
    if skipped is not None:
        is_finite = is_finite & (skipped < MOST_SKIPPED)
        skipped.copy_((skipped + 1) * ~is_finite)
    # fused AdamW leaves everything as it was where this is 1
    optimizer.found_inf = (~is_finite).float()
    optimizer.step()
    for buffer, before in buffers:
        buffer.copy_(torch.where(is_finite, buffer, before))
    terms = {name: term.detach() for name, term in loss.terms.items()}
    return StepReport(loss.total.detach(), terms, gradient_norm, is_finite, loss.connected)


def seed_step(seed, step):
    """Seed torch for one step: dropout and the drawn negatives depend on
    (seed, step) and on nothing before."""
    torch.manual_seed(
        int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
    )


def train_epoch(
    model, objective, optimizer, batches, *, step, seed, warmup, hardest, grad_clip, device,
    on_step, precision="fp32", skipped=None, replicas=None,
):  # fmt: skip
    """Train on every batch of an epoch.

    step: optimisation steps done before; warmup: how many steps are done without the instance
    graph; on_step: called after each step with (steps done, StepReport, seconds waited for data,
    seconds in all). Returns the steps done.
    """
    model.train()
    objective.train()
    started = time.perf_counter()
    for batch in batches:
        batch = batch.to(device)
        waited = time.perf_counter() - started
        seed_step(seed, step)
        report = training_step(
            model, objective, optimizer, batch, use_graph=step >= warmup, hardest=hardest,
            grad_clip=grad_clip, precision=precision, skipped=skipped, replicas=replicas,
        )  # fmt: skip
        step += 1
        on_step(step, report, waited, time.perf_counter() - started)
        model.train()  # on_step may have evaluated both
        objective.train()
        started = time.perf_counter()
    return step
