"""Tests use no hub, and a GPU only where they are marked so; data, a finished run and refusals that
several files of tests use."""

# ruff: noqa: E402

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
if not os.environ.get("HREM_TEST_GPU"):  # set by make test-gpu
    # before torch looks for GPUs; in the programs that tests start too
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import multiprocessing
import shutil
import signal
import warnings

import pytest
import torch
from damage import OPTIONS
from helpers import SHARED, make_data, shared

import train
from lib.system.errors import command_line

SLOW_FILES = (  # begun first, the slowest ahead, so that all workers end at about the same time
    "test_run_kills.py", "test_resume.py", "test_run_signals.py", "test_install.py",
    "test_errors.py", "test_disk.py", "test_run_start.py", "test_cross_attention_programs.py",
    "test_without_gpu.py", "test_curves.py", "test_init_from.py", "test_programs.py",
    "test_conversion.py", "test_pipes.py", "test_extract.py", "test_mutants.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Run slow files first. Skip the tests that need a GPU where there is none, or where it is
    hidden."""
    places = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    if torch.cuda.is_available():
        return
    needs_gpu = pytest.mark.skip(reason="needs a CUDA GPU; make test-gpu runs it")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(needs_gpu)


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT is heard, by started programs too: under nohup and in the background of a shell it
    would be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def workers_end():
    """A run that a test stops leaves its loader in a traceback. When that is collected, in a later
    test, torch waits five seconds for each worker that has not ended."""
    yield
    for process in multiprocessing.active_children():
        if process.daemon:
            process.terminate()


@pytest.fixture(autouse=True, scope="session")
def files_are_not_flushed():
    """No machine loses power here, so nothing waits for a disk. Programs that a test starts in a
    new interpreter do flush their files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # what is not open is still refused
        yield


def stamps(folder):
    """Size and time of every file below a folder but the hidden ones,
    such as captions cut into pieces and locks."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found |= stamps(entry.path)
            else:
                stat = entry.stat()
                found[entry.path] = stat.st_size, stat.st_mtime_ns
    return found


@pytest.fixture(autouse=True)
def shared_folders_stay():
    """No test changes a folder that others read: their results would hang on the order of the
    tests."""
    before = [stamps(folder) for folder in SHARED]
    yield
    for folder, found in zip(SHARED, before):
        assert stamps(folder) == found, f"{folder} is shared by many tests, and this one changed it"


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A data folder that nothing is wrong with; tests leave it as it is."""
    return shared(make_data(tmp_path_factory, train=40, dev=10, test=10))


@pytest.fixture
def data(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "data")


@pytest.fixture(scope="session")
def finished(whole, tmp_path_factory):
    """The folder of a finished run; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train.main([*OPTIONS, "--data_path", str(whole), "--logger_name", str(folder)])
    return shared(folder)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of a finished run, for one test."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def refusal(capfd):
    """Run a program as its command line does; give its one line of refusal,
    which must hold all of `expected`."""

    def run(main, *argv, expected=()):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("ignore", DeprecationWarning)
            command_line(lambda: main([str(argument) for argument in argv]))
        assert not warned, warned[0]  # on standard error it would be a line more
        error = capfd.readouterr().err
        assert ended.value.code == 2
        assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1, (
            error
        )
        for text in expected:
            assert str(text) in error, error
        return error

    return run
