"""A training step, relations on, shared by several processes: the same loss, its time,
what is sent.

torchrun --nproc_per_node N -m benchmarks.scaling --batch_size 128 --seconds_alone 10.1
"""

import torch
import torch.distributed as dist

from benchmarks import common
from graph_lib import Objective
from lib.model.network import HREM
from lib.model.options import ModelOptions
from lib.objective.options import ObjectiveOptions
from lib.system import distributed
from lib.training import engine, optim

HEADER = common.header(
    "processes",
    "batch",
    "loss",
    "gradient norm",
    "step",
    "efficiency",
    "gathered",
    "gradients averaged",
)


def main():
    options = common.arguments(__doc__, batch_size=128, seconds_alone=0.0)
    with distributed.process_group():
        measure(options)


def own_shard(batch):
    """This process's shard of a whole batch."""
    own = distributed.shard()
    return batch._replace(
        **{name: getattr(batch, name)[own] for name in batch._fields if name != "image_ids"}
    )


def gathered_by(function):
    """Call a function. Returns what it returned, and the bytes that the processes gathered together
    meanwhile."""
    gather, counted = dist.all_gather, []

    def gather_and_count(found, rows):
        counted.append(len(found) * rows.numel() * rows.element_size())
        gather(found, rows)

    dist.all_gather = gather_and_count
    try:
        return function(), sum(counted)
    finally:
        dist.all_gather = gather


def measure(options):
    """Print the row of this number of processes; the loss and the norm must be those of every other
    number."""
    device = (
        torch.device("cuda", distributed.local_gpu(0))
        if options.device == "cuda"
        else torch.device(options.device)
    )
    bert = common.bert_base()
    for part in bert.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0  # each shard has its own: with it the numbers would differ
    bert.config.attention_probs_dropout_prob = 0.0
    shared = ModelOptions(dropout=0.0)
    model = HREM(bert, common.REGION_DIM, shared).to(device).train()
    objective = (
        Objective(shared, ObjectiveOptions(base_loss="vse", gnn_loss="vse")).to(device).train()
    )
    optimizer = optim.build(model, objective, 5e-4)
    replicas = distributed.wrap_ddp(engine.BatchLoss(model, objective))
    batch = own_shard(common.random_batch(options.batch_size)).to(device)

    def step():
        return engine.training_step(
            model, objective, optimizer, batch, use_graph=True, replicas=replicas
        )

    first, gathered = gathered_by(step)
    seconds = common.interleaved({"step": step}, options.rounds, options.device)["step"]
    if distributed.is_main_process():
        size, parameters = distributed.world_size(), [*model.parameters(), *objective.parameters()]
        gradients = sum(4 * parameter.numel() for parameter in parameters) if size > 1 else 0
        efficiency = (
            f"{options.seconds_alone / size / seconds:.2f}" if options.seconds_alone else ""
        )
        print(HEADER)
        common.print_row(
            size, options.batch_size, f"{float(first.loss):.4f}",
            f"{float(first.gradient_norm):.4f}", f"{seconds:.2f} s", efficiency,
            f"{gathered / 1e6:.1f} MB", f"{gradients / 1e6:.1f} MB",
            common.hardware(options.device),
        )  # fmt: skip


if __name__ == "__main__":
    main()
