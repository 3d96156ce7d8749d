"""`make flickr8k`: its commands are valid."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import arguments
from lib.data import extract
from lib.system.options import Parser

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("split", ["", "6000/1000/1000"])
def test_the_commands_have_options_that_exist(split):
    given = ["IMAGES=my photos", "CAPTIONS=captions.csv", *[f"SPLIT={split}"] * bool(split)]
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "flickr8k", *given],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    lines = map(shlex.split, done.stdout.replace("\\\n", " ").splitlines())
    commands = [line[1:] for line in lines if line and line[0] == ".venv/bin/python"]
    names = [command for command in commands if command[0] != "-m" or command[1] != "pip"]
    extraction, training, evaluation = names
    parser = Parser(prog="lib.data").add_subparsers()
    extract.add_command(parser)
    found = parser.choices["extract"].parse_args(extraction[3:])
    assert found.images == Path("my photos") and found.out == Path("data/flickr8k_precomp")
    assert found.split == ((0.75, 0.125, 0.125) if split else None)
    options = arguments.parse_training(arguments.training_parser(), training[1:])
    assert options.dataset == "flickr8k" and options.bert_path == "minilm"
    assert options.warmup < options.num_epochs * (30000 // options.batch_size)
    assert arguments.parse_evaluation(evaluation[1:]).model_path == [options.logger_name]
