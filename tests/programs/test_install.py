"""Both installations, used from a folder with modules of the same names."""

import os
import re
import shutil
import subprocess
import sysconfig
import venv
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from damage import OPTIONS
from helpers import PROCESS_TIMEOUT
from packaging.requirements import Requirement

import train

ROOT = Path(__file__).parents[2]
TOP = ("train.py", "eval.py", "arguments.py", "graph_lib.py")
BUILT_FROM = (*TOP, "pyproject.toml", "README.md", "LICENSE")


class Installation(NamedTuple):
    """An environment with hrem, and the folder from which it is used."""

    environment: Path
    source: Path
    foreign: Path

    @property
    def package(self):
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.environment)})) / "hrem"

    def run(self, program, *arguments):
        """Standard output of a program of the environment, which must end well."""
        # The current folder is searched first of all, as by `python -m`.
        variables = os.environ | {"PYTHONPATH": str(self.foreign), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [self.environment / "bin" / program, *map(str, arguments)],
            cwd=self.foreign,
            env=variables,
            capture_output=True,
            text=True,
            timeout=PROCESS_TIMEOUT,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def install(place, foreign, *options):
    """Install a copy of the checkout; its dependencies are those of this environment."""
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lib", place / "source" / "lib", ignore=no_cache)
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, place / "source")
    venv.create(place / "environment", symlinks=True)
    found = Installation(place / "environment", place / "source", foreign)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "hrem" not in path.name and path.name != "__pycache__":  # it may be installed here
            (found.package.parent / path.name).symlink_to(path)
    pip = [found.environment / "bin" / "python", "-m", "pip", "install"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [*pip, *offline, *options, found.source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return found


@pytest.fixture(scope="module")
def foreign(whole, tmp_path_factory):
    """A folder with data, and with modules that must not be imported."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "lib").mkdir()
    for name in ("lib/__init__.py", *TOP):
        (folder / name).write_text(f"raise SystemExit('imported {name} of the current folder')\n")
    shutil.copytree(whole, folder / "data")
    return folder


@pytest.fixture(scope="module")
def wheel(foreign, tmp_path_factory):
    return install(tmp_path_factory.mktemp("wheel"), foreign)


@pytest.fixture(scope="module")
def editable(foreign, tmp_path_factory):
    return install(tmp_path_factory.mktemp("editable"), foreign, "--editable")


@pytest.fixture(scope="module")
def trained(wheel):
    """What training prints into runs/first of the foreign folder, on the data in data/ there."""
    return wheel.run("hrem-train", *OPTIONS, "--logger_name", "runs/first")


def files(folder):
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def test_a_wheel_has_every_file_of_lib_and_four_others(wheel):
    assert files(wheel.package) == files(ROOT / "lib") | {f"repository/{name}" for name in TOP}


def pins(file):
    """The requirements of a file by name, without comments."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return {found.name: found for found in map(Requirement, filter(None, lines))}


def test_the_requirements_of_a_wheel_admit_the_versions_tested_together(wheel):
    (found,) = metadata.distributions(name="hrem", path=[str(wheel.package.parent)])
    needed = [Requirement(text) for text in found.requires]
    runtime = {one.name: one for one in needed if not one.marker}
    pinned = pins("requirements.txt")
    assert runtime.keys() == pinned.keys()
    for name, pin in pinned.items():
        versions = [one.version for one in pin.specifier if one.operator == "=="]
        assert [v for v in versions if v not in runtime[name].specifier] == [], name
        assert versions or pin.specifier == runtime[name].specifier, name
    for_tests = [one for one in needed if one.marker and one.marker.evaluate({"extra": "test"})]
    assert {one.name: one.specifier for one in for_tests} == {
        name: one.specifier for name, one in pins("tests/requirements.txt").items()
    }


def test_there_is_one_version(wheel):
    (found,) = metadata.distributions(name="hrem", path=[str(wheel.package.parent)])
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    imported = wheel.run("python", "-c", "import hrem; print(hrem.__version__)").strip()
    assert found.version == imported == cited


def test_a_wheel_trains_from_any_folder(trained, foreign):
    assert "rsum" in trained and (foreign / "runs" / "first" / "model_best.pth").is_file()


def test_a_wheel_loads_a_trained_model(wheel, trained):
    code = """if True:
        import sys
        import hrem
        assert "torch" not in sys.modules
        captions = hrem.load("runs/first").encode_captions(["a red dog"])
        print(hrem.__file__, *captions.shape, "lib" in sys.modules)
    """
    shown = wheel.run("python", "-c", code)
    assert shown.split() == [str(wheel.package / "__init__.py"), "1", "16", "False"]


def test_an_editable_installation_runs_the_files_of_the_checkout(editable, trained):
    code = "import hrem.system.errors as errors; print(errors.__file__)"
    expected = editable.source / "lib" / "system" / "errors.py"
    assert editable.run("python", "-c", code).strip() == str(expected)
    script = editable.source / "eval.py"
    script.write_text("print('changed')\n" + script.read_text())
    shown = editable.run("hrem-eval", "runs/first")
    assert shown.startswith("changed\n") and "| 10 |" in shown


@pytest.mark.parametrize(
    "argument, expected",
    [
        (["--nope"], "hrem-train --help lists"),
        (["--multi_gpu", "1"], "--no-python hrem-train"),
    ],
)
def test_messages_name_the_command_that_was_started(argument, expected, monkeypatch, refusal):
    monkeypatch.setattr("sys.argv", ["/usr/bin/hrem-train", *argument])
    refusal(train.main, *argument, expected=[expected])
