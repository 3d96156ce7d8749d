"""The commands of an installation: `hrem-train` runs train.py, `hrem-eval` runs eval.py.

They run from any folder. An installation calls this package `hrem`. The four files at the top of
the repository call it `lib`, so these commands load it under that name as well, before any other
`lib` can be found.
"""

import importlib
import sys
from importlib import util
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALLED = HERE / "repository"  # where a wheel has the files at the top of the repository


def _use_repository():
    """Let `lib` be this package, and find train.py and the files beside it before all others."""
    file, folders = HERE / "__init__.py", [str(HERE)]
    spec = util.spec_from_file_location("lib", file, submodule_search_locations=folders)
    sys.modules["lib"] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["lib"])
    sys.path.insert(0, str(INSTALLED if INSTALLED.is_dir() else HERE.parent))


if __package__ != "lib":  # on import: spawned loader processes import this module and call nothing
    _use_repository()


def _run(name):
    from .system import start  # noqa: F401  before the imports that take seconds

    importlib.import_module("arguments").refuse_early(name)
    program = importlib.import_module(name)
    program.command_line(program.main)  # of `lib`, as is the InputError that it reports


def train() -> None:
    """Run train.py with the arguments of the process."""
    _run("train")


def evaluate() -> None:
    """Run eval.py with the arguments of the process."""
    _run("eval")
