"""Programs whose reader closes the pipe, as `| head -1` does: no traceback,
and what they compute is saved."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from damage import OPTIONS
from processes import run_program

ROOT = Path(__file__).parents[2]


def into_closed_pipe(*argv, both=False):
    """Run a program whose standard output nobody reads; both: nor its errors. Gives
    (exit status, errors)."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        found = subprocess.run(
            [sys.executable, *map(str, argv)], cwd=ROOT, stdout=pipe,
            stderr=pipe if both else subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=300,
            text=True, env=buffered,
        )  # fmt: skip
    return found.returncode, found.stderr


def without_warnings(errors):
    return [
        line for line in errors.splitlines() if "Warning" not in line and not line.startswith("  ")
    ]


@pytest.mark.parametrize(
    "program", [["train.py"], ["eval.py"], ["-m", "lib.data"], ["-m", "lib.data", "check"]]
)
def test_help(program):
    status, errors = into_closed_pipe(*program, "--help")
    assert (status, without_warnings(errors)) == (0, [])


def test_an_evaluation_saves_its_table_and_its_report(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "test.md").unlink()
    status, errors = into_closed_pipe(
        "eval.py", run, "--report", "--save_results", 1, "--split", "dev"
    )
    assert (status, without_warnings(errors)) == (0, [])
    assert {"dev.md", "report_dev.html", "results_demo+split=dev.npy"} <= {
        path.name for path in run.iterdir()
    }


def test_a_search_ends_quietly(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    reading, writing = os.pipe()
    os.close(reading)
    status, _, errors = run_program("eval.py", run, "--query", "a dog", stdout=writing)
    os.close(writing)
    assert (status, errors) == (0, "")


def test_a_run_trains_to_its_end(whole, finished, tmp_path):
    argv = "train.py", *OPTIONS, "--data_path", whole, "--logger_name", tmp_path / "run"
    assert into_closed_pipe(*argv, both=True) == (0, None)
    assert (tmp_path / "run" / "test.md").read_bytes() == (finished / "test.md").read_bytes()
    log = (tmp_path / "run" / "train.txt").read_text()
    assert log.count("loss") == (finished / "train.txt").read_text().count("loss") > 0


@pytest.mark.parametrize("ids, status", [("", 0), ("1\n", 1)], ids=["OK", "to fix"])
def test_a_check_keeps_its_exit_status(data, ids, status):
    if ids:
        (data / "demo_precomp" / "test_ids.txt").write_text(ids)
    found, errors = into_closed_pipe("-m", "lib.data", "check", data / "demo_precomp")
    assert (found, without_warnings(errors)) == (status, [])


@pytest.mark.parametrize("program", [["eval.py", "--nope"], ["-m", "lib.data", "check", "nowhere"]])
def test_a_refusal_keeps_its_exit_status(program):
    assert into_closed_pipe(*program, both=True) == (2, None)
