"""A whole training step, relations on, against BertModel's forward and backward on the same padded
batch (Y)."""

import torch

from benchmarks import common
from benchmarks.reference import bert_on_padding
from lib.training import engine, optim

HEADER = common.header(
    "batch", "precision", "compile", "step", "Y", "step / Y", "peak memory", "operations"
)
CALLS_ON_GPU = 10  # steps per turn: training queues the next step while the GPU still computes


def main():
    options = common.arguments(
        __doc__, batch_size=[128], precision=["fp32"], compile=0, yardstick=1
    )
    print(HEADER)
    for batch_size in options.batch_size:
        for precision in options.precision:
            measure(batch_size, precision, options)


def measure(batch_size, precision, options):
    """Print the row of one configuration."""
    device = torch.device(options.device)
    batch = common.random_batch(batch_size).to(device)
    model, objective = common.published_model(device)
    if options.compile:
        model.compile(dynamic=True)
    optimizer = optim.build(model, objective, 5e-4)
    bert = common.bert_base().to(device).train()

    def step():
        engine.training_step(
            model, objective, optimizer, batch, use_graph=True, precision=precision
        )

    def reference():
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            hidden = bert_on_padding(bert, batch.pieces)
        bert.zero_grad()
        hidden.float().sum().backward()

    functions = {"step": step} | ({"Y": reference} if options.yardstick else {})
    with engine.matrix_products(precision):
        calls = CALLS_ON_GPU if device.type == "cuda" else 1
        found = common.interleaved(functions, options.rounds, options.device, calls)
    memory = f"{common.peak_memory(step, options.device)[1] / 1e3:.2f} GB"
    # a compiled step runs as it is, without the counter
    operations = "" if options.compile else common.operations(step)
    ratio = f"{found['step'] / found['Y']:.2f}" if options.yardstick else ""
    unit = (1e3, "ms") if device.type == "cuda" else (1, "s")
    times = [
        f"{found[name] * unit[0]:.2f} {unit[1]}" if name in found else "" for name in ("step", "Y")
    ]
    common.print_row(
        batch_size,
        precision,
        "yes" if options.compile else "no",
        *times,
        ratio,
        memory,
        operations,
        common.hardware(options.device),
    )


if __name__ == "__main__":
    main()
