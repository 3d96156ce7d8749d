"""One training step, one epoch: tensors in, tensors out (docs/method.md, section 6).

No step synchronises with the GPU: its results stay tensors, and a step whose loss or gradient is
not finite is undone on the device.
"""

# B pairs, N images, C captions, E embedding

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from graph_lib import Loss, Objective

from ..data.batches import Batch
from ..model.casting import call_with_cast_weights, is_compiled
from ..model.network import HREM
from ..objective.auxiliary import FrozenFeatures
from ..system import distributed
from .logs import StepReport
from .optim import set_learning_rates

# consecutive steps that were not finite; after that, no step changes anything
MOST_SKIPPED = 20


@contextlib.contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """Let float32 matrix products on a GPU use TF32 if `precision` is "tf32", and not otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class BatchLoss(nn.Module):
    """The encoders and the objective as one module from a batch to its loss, which
    DistributedDataParallel wraps."""

    def __init__(self, model: HREM, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, **settings: Any) -> Loss:
        """Loss of the whole batch. batch: the shard of this process; settings: see `batch_loss`."""
        return batch_loss(self.model, self.objective, batch, **settings)


def batch_loss(
    model: HREM,
    objective: Objective,
    batch: Batch,
    use_graph: bool,
    hardest: bool,
    precision: str,
) -> Loss:
    """Loss of a batch. The encoders run on the shard of this process, the objective on the whole
    batch in every process."""
    seed, is_shared = torch.initial_seed(), distributed.world_size() > 1
    if is_shared:
        # dropout in the encoders differs between shards
        torch.manual_seed(seed + 1 + distributed.rank())
    device_type = batch.regions.device.type
    with (
        matrix_products(precision),
        torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        encode: Callable[..., Any] = model
        # DDP needs the parameters' own gradients, and torch.compile fuses casts
        if precision == "bf16" and not is_shared and not is_compiled(model):
            encode = functools.partial(call_with_cast_weights, model, torch.bfloat16)
        images, captions = encode(batch, least_pieces=objective.pieces_read if use_graph else 0)
    if is_shared:
        torch.manual_seed(seed)  # random choices over the whole batch are the same in all processes
    scores = None
    if model.similarity is not None:
        scores = model.similarity.of_whole_batch(images, captions)
    elif is_shared:
        images, captions = (
            side._replace(
                embedding=distributed.gather(side.embedding),
                unnormalised=distributed.gather(side.unnormalised),
                second_view=(
                    None if side.second_view is None else distributed.gather(side.second_view)
                ),
            )
            for side in (images, captions)
        )
    frozen = None
    if objective.soft_labels:
        found = objective.soft_labels.read(batch.regions, batch.pieces)
        frozen = FrozenFeatures(*map(distributed.gather, found))
    return objective(
        images, captions, batch.image_ids, use_graph=use_graph, hardest=hardest, scores=scores,
        frozen=frozen,
    )  # fmt: skip


def training_step(
    model: HREM,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    use_graph: bool,
    hardest: bool = False,
    grad_clip: float = 2.0,
    precision: str = "fp32",
    skipped: torch.Tensor | None = None,
    replicas: nn.Module | None = None,
) -> StepReport:
    """One optimisation step. If the loss or the gradient is not finite, nothing changes.

    use_graph: whether the warm-up of the instance graph is over; hardest: whether `vse` uses
    `--negatives`, not all; precision: of the encoders, one of PRECISIONS (relations and losses
    always use float32); skipped: scalar tensor that counts consecutive steps without a change: at
    MOST_SKIPPED, no step changes anything; replicas: with several processes, the `BatchLoss` that
    DistributedDataParallel wraps. Returns the same in all processes.
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
    # the fused AdamW changes nothing if this is 1
    optimizer.found_inf = (~is_finite).float()
    optimizer.step()
    for buffer, before in buffers:
        buffer.copy_(torch.where(is_finite, buffer, before))
    terms = {name: term.detach() for name, term in loss.terms.items()}
    return StepReport(loss.total.detach(), terms, gradient_norm, is_finite, loss.connected)


def seed_step(seed: int, step: int) -> None:
    """Seed torch for one step: dropout and sampled negatives depend on (seed, step) only."""
    torch.manual_seed(
        int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
    )


def train_epoch(
    model: HREM,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    step: int,
    seed: int,
    warmup: int,
    hardest: bool,
    grad_clip: float,
    device: torch.device,
    on_step: Callable[[int, StepReport, float, float], None],
    precision: str = "fp32",
    skipped: torch.Tensor | None = None,
    replicas: nn.Module | None = None,
    rate_factor: Callable[[int], float] | None = None,
) -> int:
    """Train on every batch of an epoch.

    step: number of optimisation steps done before; warmup: number of steps without the instance
    graph; on_step: called after each step with (steps done, report, seconds waited for data,
    seconds in total); rate_factor: step to the factor on the learning rates, see `optim.Schedule`.
    Returns the number of steps done.
    """
    model.train()
    objective.train()
    started = time.perf_counter()
    for batch in batches:
        batch = batch.to(device)
        waited = time.perf_counter() - started
        seed_step(seed, step)
        if rate_factor:
            set_learning_rates(optimizer, rate_factor(step))
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
