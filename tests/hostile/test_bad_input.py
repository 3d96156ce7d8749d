"""Bad input ends both programs with one line that says what is wrong where,
and nothing trained or written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import OPTIONS, contents, regions, saved_with
from helpers import PROCESS_TIMEOUT
from processes import run_program

import eval as evaluation
import train
from lib.model import bert
from lib.system.errors import InputError, command_line

ROOT = Path(__file__).parents[2]


DAMAGED_CHECKPOINTS = {
    "truncated": (
        lambda path: os.truncate(path, path.stat().st_size // 2),
        ["cannot be read", "download it again"],
    ),
    "empty": (lambda path: os.truncate(path, 0), ["cannot be read", "download it again"]),
    "random bytes": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        ["damaged", "again"],
    ),
    "a pickle cut short": (
        lambda path: path.write_bytes(b"\x80\x02."),
        ["cannot be read", "download it again"],
    ),
    "text": (lambda path: path.write_text("Not found\n"), ["fetch it again"]),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), ["found a Tensor", "train.py"]),
    "another program's": (
        lambda path: torch.save({"net": {}}, path),
        ["a dict with net", "published format"],
    ),
    "without options": (
        lambda path: saved_with(path, options={}),
        ["not a checkpoint", "embed_size"],
    ),
    "without weights": (
        lambda path: saved_with(path, model={}),
        ["is missing, expected", "--bert_path"],
    ),
}


@pytest.mark.parametrize("damage, expected", DAMAGED_CHECKPOINTS.values(), ids=DAMAGED_CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused(finished, tmp_path, refusal, damage, expected):
    copied = shutil.copytree(finished, tmp_path / "run")
    damage(copied / "model_best.pth")
    before = contents(copied)
    refusal(
        evaluation.main, "--model_path", copied, expected=[copied / "model_best.pth", *expected]
    )
    assert contents(copied) == before


def smaller_bert(whole, folder):
    shutil.copytree(whole / "demo_precomp" / "bert", folder)
    settings = json.loads((folder / "config.json").read_text()) | {"hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_a_checkpoint_of_another_size_is_refused(whole, data, finished, tmp_path, refusal):
    path = finished / "model_best.pth"
    expected = [path, "checkpoint and model differ", "text_encoder.bert", "expected", "--bert_path"]
    smaller = smaller_bert(whole, tmp_path / "bert")
    refusal(evaluation.main, "--model_path", path, "--bert_path", smaller, expected=expected)

    regions("test", lambda array: array[:, :, :64])(data / "demo_precomp")
    expected = [path, "checkpoint and model differ", "image_encoder", "128", "64", "data set"]
    refusal(evaluation.main, "--model_path", path, "--data_path", data, expected=expected)

    larger = tmp_path / "larger"
    train.main(
        [*OPTIONS, "--data_path", str(whole), "--logger_name", str(larger), "--embed_size", "32"]
    )
    saved_with(larger / "model_best.pth", model=torch.load(path, weights_only=True)["model"])
    expected = [larger, "another size", "16", "expected", "32"]
    refusal(evaluation.main, "--model_path", larger, expected=expected)


EVALUATIONS = {
    "a run that is not there": (
        ["--model_path", "runs/nowhere"],
        ["runs/nowhere", "no such checkpoint"],
    ),
    "a split that is not there": (
        ["--split", "nothere"],
        ["nothere_ims.npy", "dev, test, train", "--split in eval"],
    ),
    "a data set that is not there": (["--dataset", "f31k"], ["f31k_precomp", ": demo;"]),
    "a BERT that is not there": (
        ["--bert_path", "no-such/bert"],
        ["no-such/bert", "neither a folder nor"],
    ),
    "a GPU that is not there": (["--device", "cuda:99"], ["--device cuda:99", "CUDA GPUs found"]),
    "a second run that is not there": (["runs/nowhere"], ["runs/nowhere", "no such checkpoint"]),
    "an option of training": (
        ["--nhead", "2"],
        ["eval.py: --nhead: unknown option. eval.py --help lists"],
    ),
    "a query of no word": (["--query", " "], ["--query", "found no word"]),
    "an image that is not there": (
        ["--query_image", "10"],
        ["--query_image 10", "expected 0 to 9, or id:ID"],
    ),
    "an id that is not there": (
        ["--query_image", "id:9"],
        ["--query_image id:9", "expected 0 to 9, or id:ID, such as"],
    ),
    "a query without quotes": (
        ["red", "dog", "--query", "a"],
        ["red: not a model", "in quotes: --query 'a red dog'"],
    ),
    "a query and a report": (
        ["--query", "a", "--report"],
        ["--query with --report", "Leave out --query or --report"],
    ),
    "a query and an export": (["--query", "a", "--export", "new"], ["--query with --export"]),
    "a query and intervals": (
        ["--query_image", "1", "--bootstrap", "9"],
        ["--query_image with --bootstrap"],
    ),
    "a query and other sets": (["--query", "a", "--extended"], ["--query with --extended"]),
    "a query and results": (
        ["--query_image", "0", "--save_results", "1"],
        ["--query_image with --save_results"],
    ),
    "a search page and a query": (
        ["--serve", "--query", "a"],
        ["--serve with --query:", "Leave out --serve or --query"],
    ),
    "a search page and an image": (
        ["--serve", "--query_image", "0"],
        ["--serve with --query_image:"],
    ),
    "a search page and a report": (["--serve", "--report"], ["--serve with --report"]),
    "a search page and an export": (["--serve", "--export", "new"], ["--serve with --export"]),
    "a search page and intervals": (["--serve", "--bootstrap", "9"], ["--serve with --bootstrap"]),
    "a search page and other sets": (["--serve", "--extended"], ["--serve with --extended"]),
    "a search page and results": (
        ["--serve", "--save_results", "1"],
        ["--serve with --save_results"],
    ),
    "two models for one search page": (
        ["--model_path", "b", "--serve"],
        ["--serve: ", "found 2 models"],
    ),
    "a run after the search page": (["--serve", "runs/x"], ["--serve: ", "found 'runs/x'"]),
    "two models for one query": (
        ["--model_path", "b", "--query", "dog"],
        ["--query: ", "found 2 models"],
    ),
    "two models for image 0": (
        ["--model_path", "b", "--query_image", "0"],
        ["--query_image: ", "found 2 models"],
    ),
    "two models for one export": (
        ["--model_path", "b", "--export", "new"],
        ["--export: ", "found 2 models"],
    ),
    "pictures without a report": (
        ["--images", "."],
        ["--images .", "found neither --report nor --serve", "Add --report"],
    ),
    "pictures that are nowhere": (
        ["--report", "--images", "nowhere"],
        ["--images nowhere", "found no such folder"],
    ),
    "pictures that are a file": (
        ["--report", "--images", "LICENSE"],
        ["--images LICENSE", "a file, expected a folder"],
    ),
    "an export into a full folder": (
        ["--export", "lib"],
        ["--export lib", "not empty", "Name another"],
    ),
    "an export into a file": (
        ["--export", "README.md"],
        ["--export", "README.md, a file", "Name another"],
    ),
    "other sets than COCO": (["--extended"], ["--extended: "]),
}


@pytest.mark.parametrize("more, expected", EVALUATIONS.values(), ids=EVALUATIONS)
def test_a_wrong_evaluation_is_refused_and_writes_nothing(finished, refusal, more, expected):
    before = contents(finished)
    refusal(evaluation.main, "--model_path", finished, *more, expected=expected)
    assert contents(finished) == before


def test_a_folder_of_runs_is_told_from_a_run(finished, tmp_path, refusal):
    for name in ("b", "a"):
        shutil.copytree(finished, tmp_path / "runs" / name)
    folder = tmp_path / "runs"
    refusal(
        evaluation.main,
        folder,
        expected=[f"{folder}: contains several runs", f"run folders: {folder}/a, {folder}/b;"],
    )
    for number in range(10):
        shutil.copytree(finished, folder / f"c{number}")
    assert "/c7 and 2 more;" in refusal(evaluation.main, folder)


def test_an_ensemble_is_of_one_data_set(whole, data, finished, tmp_path, refusal):
    shutil.copytree(data / "demo_precomp", data / "other_precomp")
    other = tmp_path / "other"
    argv = [*OPTIONS, "--data_path", str(data), "--logger_name", str(other)]
    train.main([*argv, "--dataset", "other", "--bert_path", str(data / "other_precomp" / "bert")])
    expected = ["--model_path", "found the data sets demo, other", "expected one data set"]
    refusal(evaluation.main, "--model_path", finished, "--model_path", other, expected=expected)


@pytest.mark.parametrize(
    "program, more",
    [
        ("train.py", ["--dataset", "f31k", "--logger_name", "run"]),
        ("eval.py", ["--model_path", "run"]),
    ],
)
def test_a_program_ends_with_status_2_and_one_line(tmp_path, program, more):
    status, printed, errors = run_program(program, *more, cwd=tmp_path)
    assert status == 2 and not printed
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_for_data_ends_with_status_2_and_one_line(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "lib.data", "missing_precomp"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_error_of_several_lines_is_told_in_one(capsys):
    def main():
        raise InputError("file:\n  found\tthis,\n\nexpected that")

    with pytest.raises(SystemExit):
        command_line(main)
    assert capsys.readouterr().err == "error: file: found this, expected that\n"


def test_our_own_mistakes_are_no_damaged_bert(monkeypatch, whole):
    monkeypatch.setattr(bert.AutoTokenizer, "from_pretrained", lambda *arguments, **settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bert.tokeniser(whole / "demo_precomp" / "bert")
