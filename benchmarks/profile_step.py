"""Where the time of a training step goes: the most expensive kernels, and how long a GPU idles."""

import collections

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import common
from lib.training import engine, optim

STEPS, ROWS = 5, 20
LONGEST_NAME = 90


def main():
    options = common.arguments(__doc__, batch_size=[128], precision=["fp32"])
    for batch_size in options.batch_size:
        for precision in options.precision:
            measure(batch_size, precision, options)


def measure(batch_size, precision, options):
    """Print the table of one configuration."""
    device = torch.device(options.device)
    batch = common.random_batch(batch_size).to(device)
    model, objective = common.published_model(device)
    optimizer = optim.build(model, objective, 5e-4)

    def step():
        engine.training_step(
            model, objective, optimizer, batch, use_graph=True, precision=precision
        )

    for _ in range(3):
        step()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(STEPS):
            step()
        common.synchronise(device)
    times, calls = collections.Counter(), collections.Counter()  # microseconds
    kernels = [event for event in found.events() if event.device_type.name == "CUDA"]
    if on_gpu:
        for event in kernels:
            times[event.name] += event.time_range.elapsed_us()
            calls[event.name] += 1
    else:
        for event in found.key_averages():
            times[event.key], calls[event.key] = event.self_cpu_time_total, event.count
    print(f"Batch {batch_size}, {precision}, mean of {STEPS} steps; {common.hardware(device)}\n")
    if on_gpu:
        share, span = busy([event.time_range for event in kernels])
        print(
            f"{len(kernels) / STEPS:.0f} kernels and copies in {span / STEPS / 1e3:.1f} ms; "
            f"the GPU is idle for {100 * (1 - share):.0f}% of that time.\n"
        )
    total = sum(times.values())
    print("| kernel | calls per step | ms per step | share |\n|---|---|---|---|")
    for name, time in times.most_common(ROWS):
        shown = name.replace("|", "\\|")[:LONGEST_NAME]
        share = f"{100 * time / total:.1f}%"
        common.print_row(
            f"`{shown}`", round(calls[name] / STEPS), f"{time / STEPS / 1e3:.3f}", share
        )
    print()


def busy(intervals):
    """Share of the time between the first start and the last end in which a kernel runs,
    and that time in microseconds."""
    ordered = sorted((interval.start, interval.end) for interval in intervals)
    covered, last = 0.0, ordered[0][0]
    for start, end in ordered:
        covered += max(0.0, end - max(start, last))
        last = max(last, end)
    span = last - ordered[0][0]
    return covered / span, span


if __name__ == "__main__":
    main()
