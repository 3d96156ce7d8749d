"""Logs and metrics of a run folder that were damaged, under --report; text from strangers,
wherever it is written."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from damage import OPTIONS, contents, saved_with

import eval as evaluation
import train
from lib.evaluation import encoding
from lib.results import html_report
from lib.training import validations
from lib.training.logs import RunLog

LINE = "epoch 0 step {step}: loss {loss} (base 1.0), gradient 1.0, rate {rate}"
VALIDATION = (
    "epoch 0 step {step} {split}: image to text {recalls}; text to image {recalls}; rsum {rsum}"
)
RECALLS = "R@1 1.0 R@5 2.0 R@10 3.0 median 4 mean 5.0"
GOOD = LINE.format(step=7, loss="0.5", rate="0.1")


def validation(step=7, split="dev", recalls=RECALLS, rsum="12.0"):
    return VALIDATION.format(step=step, split=split, recalls=recalls, rsum=rsum)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run to damage."""
    return shutil.copytree(finished, tmp_path / "run")


JUNK = {
    "binary": np.random.default_rng(0).bytes(50_000),
    "NUL": b"\0" * 10_000,
    "a line without end": b"epoch 0 step 1: loss " + b"a" * 1_000_000,
    "numbers that are none": "\n".join(
        LINE.format(step=step, loss=value, rate=value) + "\n" + validation(rsum=value)
        for step in (1, "9" * 5000)
        for value in ("nan", "1e999", "-inf", "abc", "1_0_", "", "--", "9" * 5000, "1e300")
    ).encode(),
    "recalls that are none": "\n".join(
        validation(recalls=recalls)
        for recalls in ("", "R@1 nan R@5 1 R@10 1", "R@1 x", RECALLS + RECALLS)
    ).encode(),
    "markup": validation(split="<script>alert(1)</script>").encode()
    + b"\n"
    + validation(split="\x1b[31m").encode(),
    "lines in another order": "\n".join(
        LINE.format(step=step, loss=1 / step, rate=0.1) for step in (9, 3, 5, 5, 1)
    ).encode(),
    "one point": f"{GOOD}\n{validation()}\n".encode(),
    "line ends of other systems": f"{GOOD}\r\n{GOOD}\r{GOOD}\x0b{GOOD}\u2028{GOOD}".encode(),
}


@pytest.mark.parametrize("content", JUNK.values(), ids=JUNK)
def test_a_damaged_log_gives_a_page_all_the_same(run, content):
    for name in ("train.txt", "eval.txt"):
        (run / name).write_bytes(content)
    evaluation.main(["--model_path", str(run), "--report"])
    page = (run / "report.html").read_text()
    assert page.endswith("</body></html>\n") and "<script" not in page and "\x1b" not in page
    assert not re.search(r'\bd="[^"]*(nan|inf)|\b(x|y)="(nan|-?inf)', page)


def test_what_a_log_says_is_shown_in_order_of_steps(run):
    lines = [
        LINE.format(step=step, loss=loss, rate=0.5)
        for step, loss in ((9, 3), (3, "nan"), (5, 2), (5, 1), (1, 4))
    ]
    (run / "train.txt").write_text(
        "\n".join(["junk", *lines, LINE.format(step=10**20, loss=1, rate=1)])
    )
    (run / "eval.txt").write_text(
        "\n".join([validation(7), validation(3, rsum="nan"), validation(2, recalls="R@1 1")])
    )
    curves = html_report.read_curves(run)
    assert (
        curves.loss == [(1, 4), (5, 2), (5, 1), (9, 3)]
        and curves.rsum == [(7, 12)]
        and curves.split == "dev"
    )
    assert [step for step, _ in curves.rate] == [1, 3, 5, 5, 9]


def as_sparse(path):
    with open(path, "wb") as file:
        file.truncate(10**12)


STRANGE = {
    "a pipe": (os.mkfifo, "a pipe, socket or device"),
    "a folder": (os.mkdir, "a folder, not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "a pipe, socket or device"),
    "a dangling link": (
        lambda path: path.symlink_to("nowhere"),
        "a link to a file that is not there",
    ),
    "a terabyte": (as_sparse, "a file of 1000.0 GB"),
}


@pytest.mark.parametrize("name", ["train.txt", "eval.txt"])
@pytest.mark.parametrize("put, found", STRANGE.values(), ids=STRANGE)
def test_what_is_no_log_is_refused_before_anything_is_computed(
    run, refusal, monkeypatch, name, put, found
):
    (run / name).unlink()
    put(run / name)
    before = {} if put is as_sparse else contents(run)
    monkeypatch.setattr(encoding, "similarities", None)
    expected = [run / name, found, "expected the log of a run", "move it away"]
    refusal(evaluation.main, "--model_path", run, "--report", expected=expected)
    assert put is as_sparse or contents(run) == before


@pytest.mark.parametrize(
    "put, found", [STRANGE["a pipe"], STRANGE["a device"], STRANGE["a dangling link"]]
)
def test_metrics_that_are_no_file_are_refused(run, refusal, put, found):
    (run / "metrics.json").unlink()
    put(run / "metrics.json")
    expected = [run / "metrics.json", found, "Move the file away"]
    refusal(evaluation.main, "--model_path", run, expected=expected)


def test_metrics_nested_without_end_are_refused(run, refusal):
    (run / "metrics.json").write_text("[" * 100_000)
    refusal(
        evaluation.main,
        "--model_path",
        run,
        expected=[
            run / "metrics.json",
            "not the metrics of earlier evaluations",
            "Move the file away",
        ],
    )


HOSTILE = "x\n| 1 | 99.9 |\x1b[2J\udcff\u202e"


def test_options_of_a_stranger_break_no_line(run, capsys):
    content = torch.load(run / "model_best.pth", weights_only=True)
    options = content["options"] | {"val_split": HOSTILE, "note": HOSTILE, HOSTILE: HOSTILE}
    saved_with(run / "model_best.pth", options=options)
    evaluation.main(["--model_path", str(run), "--report", "--save_results", "1"])
    printed, table = capsys.readouterr().out, (run / "test.md").read_text()
    for text in (printed, table):
        assert "\x1b" not in text and "\u202e" not in text
        assert r"rsum on x\n| 1 | 99.9 |\x1b[2J\udcff\u202e (after" in text
    assert len(table.splitlines()) == 5
    assert json.loads((run / "metrics.json").read_text())["test"]["options"][0]["note"] == HOSTILE
    page = (run / "report.html").read_bytes().decode()
    assert page.endswith("</body></html>\n") and r"\udcff" in page


def test_options_of_two_lines_are_written_in_one(tmp_path):
    RunLog(tmp_path).parameters({"bert_path": HOSTILE, "seed": 3})
    lines = (tmp_path / "Parameters.txt").read_text().splitlines()
    assert lines == [r"bert_path: x\n| 1 | 99.9 |\x1b[2J\udcff\u202e", "seed: 3"]


def test_a_run_whose_paths_are_no_utf_8_ends_with_its_table(whole, tmp_path):
    folder = tmp_path / "l\udce4ufe"
    train.main([*OPTIONS, "--data_path", str(whole), "--logger_name", str(folder)])
    evaluation.main(["--model_path", str(folder), "--report"])
    assert (folder / "test.md").exists() and r"l\udce4ufe" in (folder / "report.html").read_text()
    assert validations.read_validations(folder)[0].split == "dev"
