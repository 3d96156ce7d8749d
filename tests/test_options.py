"""What the programs say of their options: help that fits its reader, hints for a wrong name, exit statuses."""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PATIENCE

import arguments
import graph_lib
from lib.errors import InputError, command_line
from lib.options import Parser

ROOT = Path(__file__).parent.parent


def training_parser():
    parser = arguments.training_parser()
    graph_lib.add_options(parser)
    return parser


PARSERS = {"train.py": training_parser, "eval.py": arguments.evaluation_parser}


@pytest.mark.parametrize("make", PARSERS.values(), ids=PARSERS)
def test_help_groups_every_option_and_shows_what_is_behind_it(make, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = make()
    text = parser.format_help()
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "None" not in text and "SUPPRESS" not in text and "False" not in text
    grouped = {action for group in parser._action_groups[2:] for action in group._group_actions}
    one_line = " ".join(text.split())
    for action in parser._actions:
        assert action in grouped or action.dest == "help", action.dest
        assert action.help and (action.option_strings or [action.dest])[0] in text
        if action.default is not None and action.default is not argparse.SUPPRESS and action.nargs != 0:
            assert f"(default: {action.default})" in one_line, action.dest
    assert text.startswith(f"usage: python {parser.prog} [--option value ...]\n")


def test_symbols_of_the_paper_stand_in_the_help():
    text = " ".join(training_parser().format_help().split())
    for symbol in ("B, pairs", "E, size", "alpha", "lambda", "K: fragment", "D; taken"):
        assert symbol in text


@pytest.fixture
def parser():
    made = Parser(prog="program.py")
    made.add_argument("--mask_weight", type=float, default=1.0)
    made.add_argument("--margin", type=float)
    made.add_argument("--gpu-id", "--gpu_id", dest="gpu_id")
    return made


HINTS = {
    "--mask_wieght 1": "--mask_wieght: unknown option; did you mean --mask_weight?",
    "--mask_wieght=1": "--mask_wieght: unknown option; did you mean --mask_weight?",
    "--mask-weight 1": "--mask-weight: unknown option; did you mean --mask_weight?",
    "--marginn 1": "--marginn: unknown option; did you mean --margin?",
    "--gpuid 1": "--gpuid: unknown option; did you mean --gpu",
    "--quite_different 1": "--quite_different: unknown option; program.py --help",
    "f30k --quite_different": "--quite_different: unknown option; program.py --help",
    "f30k": "unrecognized arguments: f30k; program.py --help",
}


@pytest.mark.parametrize("command, expected", HINTS.items(), ids=HINTS)
def test_a_wrong_name_gets_a_hint(parser, command, expected):
    with pytest.raises(InputError) as error:
        parser.parse_args(command.split())
    assert f"program.py: {expected}" in str(error.value)


def test_right_names_are_read(parser):
    options = parser.parse_args("--mask_weight 2 --gpu_id 1".split())
    assert (options.mask_weight, options.margin, options.gpu_id) == (2.0, None, "1")


def status(main):
    with pytest.raises(SystemExit) as ended:
        command_line(main)
        sys.exit(0)
    return ended.value.code


def test_exit_statuses(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert status(lambda: None) == 0 and status(interrupted) == 130
    assert status(lambda: training_parser().parse_args(["--help"])) == 0
    assert status(lambda: training_parser().parse_args(["--no_such_thing"])) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupted_process_ends_with_status_130_and_no_traceback(tmp_path):
    code = (
        "import time\nfrom lib.errors import command_line\n"
        "def main():\n    print('ready', flush=True)\n    time.sleep(300)\ncommand_line(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and error == ""
