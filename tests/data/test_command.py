"""The command for data folders has two names."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PROCESS_TIMEOUT

ROOT = Path(__file__).parents[2]


def test_the_command_line_waits_for_no_slow_import():
    code = (
        "import sys; from lib.data import __main__; "
        "print({'torch', 'transformers', 'PIL'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        timeout=PROCESS_TIMEOUT,
    )  # fmt: skip
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("arguments", [["check"], ["convert", "--help"], ["extract", "--help"]])
def test_the_older_name_runs_the_same_command(arguments):
    found = [
        subprocess.run(
            [sys.executable, "-m", name, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PROCESS_TIMEOUT,
        )
        for name in ("lib.data", "lib.dataset")
    ]
    ours, older = ((done.returncode, done.stdout, done.stderr) for done in found)
    assert ours == older and "python -m lib.data" in ours[1] + ours[2]
