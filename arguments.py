"""The command lines of train.py and eval.py.

The options are in lib/training/options.py, lib/objective/options.py and lib/results/options.py.
Nothing here imports torch, so that --help and refused options do not wait for it.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from lib.results import options as evaluation_options
from lib.results.options import image_name as image_name  # the type of --query_image
from lib.system.errors import InputError, command_line
from lib.system.options import Parser, program_name
from lib.system.run_folder import seed_folder
from lib.training import option_checks
from lib.training.options import add_training_options
from lib.training.presets import DEMO, demo_bert, method_defaults

TRAINING_EXAMPLES = """examples:
  python train.py --dataset demo
  python train.py --data_path data/ --dataset f30k --logger_name runs/f30k_test
  python train.py --dataset f30k --logger_name runs/f30k_test --resume auto"""
EVALUATION_EXAMPLES = """examples:
  python eval.py --dataset demo
  python eval.py runs/f30k_test runs/f30k_other
  python eval.py runs/f30k_test --query 'two dogs in the snow'"""


def training_parser() -> Parser:
    """The parser of train.py."""
    text = "Train HREM and report retrieval on the test split."
    parser = Parser(prog=program_name("train.py"), description=text, epilog=TRAINING_EXAMPLES)
    add_training_options(parser)
    return parser


def evaluation_parser() -> Parser:
    """The parser of eval.py."""
    text = "Report the retrieval table of one trained model, or of an ensemble."
    parser = Parser(prog=program_name("eval.py"), description=text, epilog=EVALUATION_EXAMPLES)
    evaluation_options.add_evaluation_options(parser)
    return parser


def parse_training(parser: Parser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check train.py's command line; `--dataset demo` and `--method` bring their own
    defaults.

    Raises InputError.
    """
    first = Parser(prog=parser.prog, add_help=False)
    first.add_argument("--dataset")
    first.add_argument("--method")
    first.add_argument("--data_path", default=parser.get_default("data_path"))
    first.add_argument("--lr_schedules", nargs="*", type=str)
    first.add_argument("--decay_rate", type=str)
    chosen = first.parse_known_args(argv)[0]
    parser.set_defaults(**method_defaults(chosen.method, chosen.dataset))
    if chosen.dataset == "demo":
        parser.set_defaults(**DEMO, bert_path=demo_bert(chosen.data_path))
    options = parser.parse_args(argv)
    options.model_name = getattr(options, "model_name", options.logger_name)
    if options.multi_gpu and world_size() == 1:
        raise InputError(
            "--multi_gpu 1: this option starts no processes (found one process, expected "
            f"torchrun to start one per GPU). Run: {_torchrun(argv)}"
        )
    option_checks.check(options, world_size())
    option_checks.check_decay(options, given=chosen)
    options.seed = getattr(options, "seed", 0)
    return options


def parse_evaluation(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check eval.py's command line. Raises InputError."""
    options = evaluation_parser().parse_intermixed_args(argv)
    options.model_path = options.run + (options.model_path or []) or [
        f"runs/{options.dataset or 'f30k'}_test"
    ]
    evaluation_options.check(options)
    return options


def refuse_early(program: str) -> None:
    """End the process at --help or a refused option, before the program's slow imports.

    program: "train" or "eval". The processes of torchrun skip this: they refuse options together,
    later.
    """
    if world_size() > 1:
        return
    on_interrupt = signal.getsignal(signal.SIGINT)
    is_training = program == "train"
    command_line(lambda: parse_training(training_parser()) if is_training else parse_evaluation())
    signal.signal(signal.SIGINT, on_interrupt)


def world_size() -> int:
    """The number of processes that torchrun started, 1 without torchrun."""
    found = os.environ.get("WORLD_SIZE", "1")
    return int(found) if found.isdecimal() and int(found) else 1


def _torchrun(argv):
    """The command that trains with these arguments on all GPUs of this machine."""
    given = shlex.join(sys.argv[1:] if argv is None else argv)
    given = given.replace("--multi_gpu=1", "").replace("--multi_gpu 1", "")
    name = program_name("train.py")
    program = name if name == "train.py" else f"--no-python {name}"  # which may not be a script
    import torch  # only here: it takes seconds to import

    processes = max(torch.cuda.device_count(), 1)
    return f"torchrun --nproc_per_node {processes} {program} {' '.join(given.split())}"


def runs(options: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each run that `options` ask for: as they are or, with --seeds,
    for one run a seed."""
    found = []
    for seed in getattr(options, "seeds", [options.seed]):
        run = dict(vars(options), seed=seed)
        if run.pop("seeds", None):
            for folder in ("logger_name", "model_name"):
                run[folder] = seed_folder(run[folder], seed)
        found.append(argparse.Namespace(**run))
    return found
