"""Options are parsed before the imports that take seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PROCESS_TIMEOUT

ROOT = Path(__file__).resolve().parents[2]
SLOW = "torch", "transformers", "scipy", "matplotlib", "flask"
# runs the program as the interpreter would, and prints which slow packages it has imported
RUN = f"""
import atexit, runpy, sys
atexit.register(lambda: print("IMPORTED", *[name for name in {SLOW} if name in sys.modules]))
sys.path.insert(0, "")
target, sys.argv = sys.argv[1], sys.argv[1:]
run = runpy.run_path if target.endswith(".py") else runpy.run_module
run(target, run_name="__main__", **({{}} if target.endswith(".py") else {{"alter_sys": True}}))
"""
REFUSED = {
    "train.py": ["--smaple 3", "--margin x", "--method vse", "--nhead 3", "--batch_size 1"],
    "eval.py": ["--smaple 3", "--topk 0", "--query x --report", "--serve --report"],
    "lib.data": ["check . --sample 0", "convert --jsn x", "check"],
}
CASES = [(name, line, 2) for name, lines in REFUSED.items() for line in lines]


@pytest.mark.parametrize("name, line, status", [*CASES, *((n, "--help", 0) for n in REFUSED)])
def test_help_and_refused_options_import_nothing_slow(name, line, status):
    done = subprocess.run(
        [sys.executable, "-c", RUN, name, *line.split()],
        cwd=ROOT, capture_output=True, text=True, timeout=PROCESS_TIMEOUT, env=os.environ,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1] == "IMPORTED"
    assert bool(done.stderr) == (status == 2) and done.stderr.count("\n") <= 1


def test_options_that_are_accepted_go_on_to_the_slow_imports():
    line = "--dataset nowhere --data_path nowhere"
    done = subprocess.run(
        [sys.executable, "-c", RUN, "train.py", *line.split(), "--logger_name", os.devnull + "x"],
        cwd=ROOT, capture_output=True, text=True, timeout=PROCESS_TIMEOUT,
    )  # fmt: skip
    assert "torch" in done.stdout.splitlines()[-1]
