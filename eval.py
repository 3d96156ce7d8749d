"""Evaluate a trained model, or an ensemble, on a split:
python eval.py --data_path data/ --dataset f30k

Prints the retrieval table and writes it into the run folder, with metrics.json beside it
(docs/method.md, section 7).
"""

if __name__ == "__main__":
    import lib.system.start  # noqa: F401  before the imports that take seconds

from collections.abc import Sequence

import arguments

if __name__ == "__main__":
    arguments.refuse_early("eval")

from lib.results.evaluate import evaluate
from lib.system import devices, distributed
from lib.system.errors import command_line


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program. argv: its arguments (default: those of the process)."""
    remedy = "evaluate on a machine with more memory, or end other programs"
    with (
        distributed.process_group(),
        distributed.raise_on_all_ranks(),
        devices.memory_errors("the evaluation", remedy),
    ):
        evaluate(arguments.parse_evaluation(argv))


if __name__ == "__main__":
    command_line(main)
