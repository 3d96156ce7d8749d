"""Train HREM:  python train.py --data_path data/ --dataset f30k --logger_name runs/f30k_test

Logs, curves and the best model go into the run folder; the best model's table on the test split
ends the run.
"""

if __name__ == "__main__":
    import lib.system.start  # noqa: F401  before the imports that take seconds

import argparse
import sys
from collections.abc import Sequence

import arguments

if __name__ == "__main__":
    arguments.refuse_early("train")

from lib.system import devices, distributed
from lib.system.errors import command_line
from lib.training.loop import Result, Training
from lib.training.run_start import RunFolders
from lib.training.run_state import RunState


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the program. argv: its arguments (default: those of the process). Returns the result of
    each run."""
    if any(text.startswith("--deterministic") for text in (sys.argv if argv is None else argv)):
        # before anything else, because several processes initialise CUDA first
        devices.prepare_determinism()
    with distributed.process_group():
        with distributed.raise_on_all_ranks():
            runs = read_command_line(argv)
        return train(runs)


def read_command_line(argv: Sequence[str] | None) -> list[argparse.Namespace]:
    """The options of each run. Raises InputError."""
    runs = arguments.runs(arguments.parse_training(arguments.training_parser(), argv))
    for options in runs:  # all of them before the first is trained
        RunFolders(options.model_name, options.logger_name).find_resumed(
            options.resume, options.overwrite
        )
    return runs


def train(runs: list[argparse.Namespace]) -> list[Result]:
    """Train runs in sequence, each with its options. Raises InputError."""
    size, results = runs[0].batch_size, []
    remedy = (
        f"try --batch_size {max(size // 2, 2)} or --precision "
        "bf16, or end other programs on the GPU"
    )
    for options in runs:
        with devices.memory_errors(f"--batch_size {size}", remedy):
            results.append(train_one(options))
    return results


def train_one(options: argparse.Namespace) -> Result:
    """Train one run, with its folders locked. Raises InputError."""
    with (
        RunFolders(options.model_name, options.logger_name) as folders,
        folders.logs.keep_traceback(),
    ):
        return Training(RunState(options, folders)).run()


if __name__ == "__main__":
    command_line(main)
