"""What the programs say of their options: help that fits its reader, hints for a wrong name,
exit statuses."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from damage import OPTIONS, contents
from helpers import PROCESS_TIMEOUT

import arguments
import eval as evaluation
import train
from lib.data import __main__ as data_command
from lib.data import check, convert
from lib.system.errors import InputError, command_line
from lib.system.options import Parser

ROOT = Path(__file__).parents[2]


def training_parser():
    parser = arguments.training_parser()
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
        if (
            action.default is not None
            and action.default is not argparse.SUPPRESS
            and action.nargs != 0
        ):
            assert f"(default: {action.default})" in one_line, action.dest
    assert text.startswith(f"usage: python {parser.prog} [--option value ...]\n")


def test_symbols_of_the_paper_stand_in_the_help():
    text = " ".join(training_parser().format_help().split())
    for symbol in ("batch, B", "size E", "alpha", "lambda", "K of fragment", "size D"):
        assert symbol in text


@pytest.fixture
def parser():
    made = Parser(prog="program.py")
    made.add_argument("--mask_weight", type=float, default=1.0)
    made.add_argument("--margin", type=float)
    made.add_argument("--gpu-id", "--gpu_id", dest="gpu_id")
    return made


HINTS = {
    "--mask_wieght 1": "--mask_wieght: unknown option. Did you mean --mask_weight?",
    "--mask_wieght=1": "--mask_wieght: unknown option. Did you mean --mask_weight?",
    "--mask-weight 1": "--mask-weight: unknown option. Did you mean --mask_weight?",
    "--marginn 1": "--marginn: unknown option. Did you mean --margin?",
    "--gpuid 1": "--gpuid: unknown option. Did you mean --gpu",
    "--quite_different 1": "--quite_different: unknown option. program.py --help",
    "f30k --quite_different": "--quite_different: unknown option. program.py --help",
    "f30k": "unrecognized arguments: f30k. program.py --help",
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
        "import time\nfrom lib.system.errors import command_line\n"
        "def main():\n    print('ready', flush=True)\n    time.sleep(300)\ncommand_line(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=PROCESS_TIMEOUT)
    assert process.returncode == 130 and error == ""


def main_of(program):
    mains = {"train.py": train.main, "eval.py": evaluation.main}
    return mains.get(program, data_command.main)


def parsers():
    """{program: parser}, those of `python -m lib.data` by the name of the command."""
    commands = Parser(prog="python -m lib.data").add_subparsers()
    check.add_command(commands)
    convert.add_command(commands)
    return {name: make() for name, make in PARSERS.items()} | commands.choices


def options_of(program, accept):
    """An argument list that names each option of a program that `accept` takes,
    and the value to put last."""
    parser = parsers()[program]
    found = [action for action in parser._actions if action.dest != "help" and accept(action)]
    return [(program, action.option_strings[:1], action.dest) for action in found]


def is_text(action):
    return (
        action.nargs != 0
        and action.type in (None, Path, arguments.image_name)
        and not action.choices
    )


def is_number(action):
    return action.type not in (None, Path, arguments.image_name) and action.nargs != 0


ANY_FINITE = {  # options that any finite number may do for
    "learning_rate", "grad_clip", "margin", "longest_distance", "graph_lr_factor", "mask_weight",
    "reg_loss_weight", "weight_decay", "attention_temperature", "lse_temperature", "temperature",
    "vse_weight", "bert_lr_factor", "decorrelation",
    "soft_labels",
}  # fmt: skip
REQUIRED = {"check": ["check"], "convert": ["convert", "--tsv", "x", "--json", "x", "--out", "x"]}
TEXTS = [found for program in parsers() for found in options_of(program, is_text)]
NUMBERS = [found for program in parsers() for found in options_of(program, is_number)]


def identify(found):
    return f"{found[0]} {found[2]}"


@pytest.mark.parametrize("found", TEXTS, ids=identify)
def test_no_text_holds_a_nul(found, refusal, tmp_path, monkeypatch):
    program, option, dest = found
    monkeypatch.chdir(tmp_path)
    required = REQUIRED.get(program, [])
    argv = [*required, *option, "a\0b"] if program == "convert" or option else [*required, "a\0b"]
    error = refusal(main_of(program), *argv, expected=["expected"])
    assert "NUL" in error or "\\x00" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("found", TEXTS, ids=identify)
def test_no_text_is_empty(found, refusal, tmp_path, monkeypatch):
    """A variable of the shell that is not set is no reason to train without --init_from."""
    program, option, dest = found
    monkeypatch.chdir(tmp_path)
    required = REQUIRED.get(program, [])
    for argv in ([*option, ""], [f"{option[0]}="] if option else [""]):
        error = refusal(main_of(program), *required, *argv, expected=[*option, "expected a"])
        assert "found an empty text" in error or "found ''" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("found", NUMBERS, ids=identify)
def test_no_number_is_beyond_all_bounds(found, refusal, tmp_path, monkeypatch):
    program, option, dest = found
    monkeypatch.chdir(tmp_path)
    values = ["1" + "0" * 30, "1" + "0" * 5000]
    if dest in ANY_FINITE:
        values = ["1e400", "nan"]
    for value in values:
        error = refusal(
            main_of(program),
            *REQUIRED.get(program, []),
            *option,
            value,
            expected=[*option, "expected"],
        )
        assert len(error) < 400
    assert not list(tmp_path.iterdir())


def as_pipe(path):
    os.mkfifo(path)


def as_device(path):
    path.symlink_to("/dev/zero")


def as_folder(path):
    path.mkdir()


PATHS = {  # options that name a file or a folder -> what they are given beside it
    ("train.py", "--data_path"): [],
    ("train.py", "--bert_path"): ["--dataset", "demo"],
    ("train.py", "--glove"): ["--dataset", "demo", "--text_encoder", "bigru", "--word_dim", "4"],
    ("train.py", "--resume"): ["--dataset", "demo"],
    ("train.py", "--init_from"): ["--dataset", "demo"],
    ("train.py", "--logger_name"): [],
    ("train.py", "--model_name"): [],
    ("eval.py", "--model_path"): [],
    ("eval.py", "--data_path"): ["--model_path", "RUN"],
    ("eval.py", "--bert_path"): ["--model_path", "RUN"],
    ("eval.py", "--export"): ["--model_path", "RUN"],
    ("eval.py", "--images"): ["--model_path", "RUN", "--report"],
    ("check", None): ["check"],
    ("convert", "--tsv"): REQUIRED["convert"],
    ("convert", "--json"): REQUIRED["convert"],
}


@pytest.mark.parametrize("put", [as_pipe, as_device])
@pytest.mark.parametrize("program, option", PATHS, ids=str)
def test_a_pipe_or_a_device_in_place_of_a_path_is_refused_at_once(
    whole, finished, tmp_path, refusal, monkeypatch, program, option, put
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("")
    put(tmp_path / "strange")
    more = [str(finished) if word == "RUN" else word for word in PATHS[program, option]]
    if "demo" in more:
        more += [
            "--data_path",
            str(whole),
            "--batch_size",
            "20",
            "--embed_size",
            "16",
            "--nhead",
            "2",
        ]
    before = contents(finished)
    argv = [*more, *([option] if option else []), tmp_path / "strange"]
    signal.alarm(60)  # what waits for a pipe would wait for ever
    error = refusal(main_of(program), *argv, expected=["strange", "expected"])
    signal.alarm(0)
    assert contents(finished) == before and "Traceback" not in error


def test_all_paths_are_among_those():
    """Every option whose text names a file or a folder is tried above."""
    no_path = {
        "dataset",
        "val_split",
        "test_split",
        "split",
        "query",
        "query_image",
        "device",
        "run",
        "out",
    }
    named = {
        (program, option[0] if option else None)
        for program, option, dest in TEXTS
        if dest not in no_path
    }
    assert named == set(PATHS)


TOO_LARGE = {
    "embeddings": (["--embed_size", "65536", "--nhead", "16"], "--embed_size 65536"),
    "layers": (
        ["--embed_size", "32768", "--nhead", "16", "--num_layers_enc", "100"],
        "--num_layers_enc 100",
    ),
}


@pytest.mark.parametrize("more, expected", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_model_beyond_the_memory_is_refused_before_it_is_made(
    whole, tmp_path, refusal, more, expected
):
    argv = [
        *OPTIONS,
        "--device",
        "cpu",
        "--data_path",
        whole,
        "--logger_name",
        tmp_path / "run",
        *more,
    ]
    refusal(train.main, *argv, expected=[expected, "too little memory", "Give smaller values"])
    assert not (tmp_path / "run").exists()


def test_a_query_is_of_characters(finished, refusal):
    for text in ("dog\udcff", "a\x1b[31mdog"):
        refusal(
            evaluation.main,
            "--model_path",
            finished,
            "--query",
            text,
            expected=["--query", "plain text"],
        )
