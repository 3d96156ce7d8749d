"""How a program ends: one line for whatever goes wrong, tracebacks in files,
on any console and without one."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from damage import OPTIONS, contents
from processes import run_program

import eval as evaluation
import train
from lib.evaluation import encoding
from lib.system import devices
from lib.system.errors import InputError, command_line
from lib.system.run_folder import MANIFEST, TRACEBACK, RunFolder
from lib.training import engine

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The temporary directory, which a traceback may be written to."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def ended(capfd):
    """Run a function as a program; give its exit status and the one line of its standard error."""

    def run(main):
        capfd.readouterr()
        with pytest.raises(SystemExit) as error:
            command_line(main)
        line = capfd.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1 and "Traceback" not in line, (
            line
        )
        return error.value.code, line

    return run


def fail():
    secret = {}
    return secret["no\nsuch key"]


def test_the_traceback_of_an_unexpected_error_is_saved(ended, temporary):
    status, line = ended(fail)
    (file,) = temporary.iterdir()
    assert (
        status == 1
        and f"its traceback is in {file}" in line
        and "KeyError" in line
        and "a mistake of this" in line
    )
    text = file.read_text()
    assert (
        text.startswith("Traceback") and "in fail" in text and "KeyError: 'no\\nsuch key'" in text
    )
    assert file.stat().st_mode & 0o077 == 0


def test_where_nothing_can_be_written_that_is_said(ended, monkeypatch):
    def full(**settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkstemp", full)
    status, line = ended(fail)
    assert status == 1 and "could not be saved" in line


def test_it_is_saved_in_the_run_folder(ended, temporary, tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim("train.txt")

    def main():
        with folder.keep_traceback():
            fail()

    for _ in range(2):  # that of an earlier run is ours to replace
        status, line = ended(main)
        assert status == 1 and f"its traceback is in {tmp_path / TRACEBACK}" in line
    assert "in fail" in (tmp_path / TRACEBACK).read_text() and folder.is_own(TRACEBACK)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: None,
        lambda folder: (folder / TRACEBACK).write_text("of somebody else"),
        lambda folder: (
            RunFolder(folder).claim("train.txt"),
            (folder / TRACEBACK).symlink_to("elsewhere"),
        ),
        lambda folder: (folder / MANIFEST).write_text("{"),
    ],
    ids=["a folder of no run", "a file of somebody else", "a link", "a damaged manifest"],
)
def test_it_is_not_saved_in_a_folder_that_is_not_ours(ended, temporary, tmp_path, make):
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)
    before = sorted(folder.iterdir()), contents(folder)

    def main():
        with RunFolder(folder).keep_traceback():
            fail()

    assert ended(main)[0] == 1
    assert (sorted(folder.iterdir()), contents(folder)) == before and len(
        list(temporary.iterdir())
    ) == 1


def test_a_training_saves_it_there(whole, temporary, tmp_path, monkeypatch, ended):
    folder = tmp_path / "run"

    def step(*arguments, **settings):
        raise AttributeError("of our own making")

    monkeypatch.setattr(engine, "training_step", step)
    argv = [*OPTIONS, "--data_path", str(whole), "--logger_name", str(folder)]
    status, line = ended(lambda: train.main(argv))
    assert (
        status == 1
        and "AttributeError (of our own making)" in line
        and str(folder / TRACEBACK) in line
    )


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.EFBIG, errno.ENOENT, errno.EMFILE, errno.ENOSPC, errno.ESTALE]
)
def test_what_the_system_refuses_is_bad_input(ended, temporary, code):
    def main():
        raise OSError(code, os.strerror(code), "some/file")

    status, line = ended(main)
    assert status == 2 and f"some/file: found {os.strerror(code).lower()}" in line
    assert not list(temporary.iterdir())


def test_other_errors_of_the_system_are_unexpected(ended, temporary):
    def main():
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    assert ended(main)[0] == 1 and list(temporary.iterdir())


def test_too_little_memory_is_told_in_a_line(ended, temporary):
    def main():
        bytearray(2**62)

    status, line = ended(main)
    assert status == 2 and "out of memory" in line and "expected it to fit" in line


MEMORY = {
    "Python": MemoryError(),
    "a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
}


@pytest.mark.parametrize("error", MEMORY.values(), ids=MEMORY)
def test_an_evaluation_without_memory_is_told_in_a_line(finished, refusal, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(encoding, "similarities", fail)
    refusal(
        evaluation.main,
        "--model_path",
        finished,
        expected=["out of memory at the evaluation", "more memory"],
    )


def test_other_errors_of_torch_are_not_about_memory():
    with pytest.raises(RuntimeError, match="shapes") as met, devices.memory_errors("x", "y"):
        raise RuntimeError("shapes do not match")
    assert not isinstance(met.value, InputError)


def run(command, **settings):
    return subprocess.run(
        command,
        env=ENVIRONMENT | settings.pop("env", {}),
        capture_output=True,
        timeout=300,
        **settings,
    )


@pytest.fixture(scope="module")
def foreign(whole, tmp_path_factory):
    """A data folder of which neither the path nor the captions are ASCII."""
    folder = tmp_path_factory.mktemp("data") / "données 数据"
    folder.mkdir()
    (folder / "demo_precomp").symlink_to(whole / "demo_precomp")
    return folder


def test_no_console_is_too_poor_to_print_on(foreign, copied, tmp_path):
    folder = tmp_path / "läufe"
    commands = [
        ("train.py", *OPTIONS, "--data_path", foreign, "--logger_name", folder),
        ("eval.py", copied, "--data_path", foreign, "--query", "狗 café"),
    ]
    for command in commands:
        status, printed, errors = run_program(*command, encoding="ascii")
        assert status == 0 and not errors and printed.isascii() and "\\u" in printed, errors
    assert (folder / "test.md").exists()


CONSOLES = {"ascii": {"PYTHONIOENCODING": "ascii"}, "C": {"LC_ALL": "C"}}


@pytest.mark.parametrize("env", CONSOLES.values(), ids=CONSOLES)
def test_an_interpreter_with_a_poor_console_is_no_obstacle(foreign, copied, env):
    python, more = [sys.executable, "-W", "ignore"], ["--data_path", foreign, "--query", "狗 café"]
    done = [
        run([*python, "-m", "lib.data", "check", foreign / "demo_precomp"], env=env),
        run([*python, ROOT / "train.py", "--help"], env=env),
        run([*python, ROOT / "eval.py", "--help"], env=env),
    ]
    if "LC_ALL" in env:
        done.append(run([*python, ROOT / "eval.py", copied, *more], env=env))
    for one in done:
        assert one.returncode == 0 and not one.stderr and one.stdout, one.stderr.decode(
            errors="replace"
        )[-500:]


def test_streams_that_are_closed_are_no_obstacle(whole, tmp_path):
    arguments = [*OPTIONS, "--data_path", str(whole), "--logger_name", str(tmp_path / "run")]
    closed = f"{ROOT}/train.py {' '.join(arguments)} >&- 2>&- <&-"
    done = run(["bash", "-c", f"{sys.executable} -W ignore {closed}"])
    check_trained(tmp_path / "run", done.returncode, done.stderr)


def test_a_closed_standard_error_is_no_obstacle(whole, tmp_path):
    argv = [*OPTIONS, "--data_path", whole, "--logger_name", tmp_path / "run"]
    status, _, errors = run_program("train.py", *argv, closed=[2])
    check_trained(tmp_path / "run", status, errors)


def check_trained(folder, status, errors):
    assert status == 0 and not errors
    assert (folder / "test.md").exists()
    assert (folder / "train.txt").read_text().startswith("train: train split of")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_the_output_is_told_in_a_line(copied):
    with open("/dev/full", "wb") as full:
        status, _, errors = run_program("eval.py", copied, stdout=full.fileno())
    assert status == 2 and errors.count("\n") == 1 and "no space left" in errors, errors


@pytest.mark.parametrize("program", ["train.py", "eval.py", "-m lib.data"])
def test_an_interrupt_during_the_imports_is_no_traceback(program):
    def restored():  # a parent such as nohup ignores it
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen(
        [sys.executable, *program.split()],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=restored,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 60
    while (
        "_multiarray_umath" not in maps.read_text()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.001)  # until numpy is being imported
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130) and not error and not output, error


def test_a_full_disk_behind_standard_error_leaves_the_exit_status():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        argv = [sys.executable, ROOT / "train.py", "--no_such_option"]
        assert subprocess.run(argv, stderr=full, timeout=300, env=ENVIRONMENT).returncode == 2


def test_a_message_of_any_length_keeps_its_beginning_and_its_end(ended):
    def refuse():
        raise InputError(f"the file: found {'x' * 10**6}, expected less: the remedy")

    status, line = ended(refuse)
    assert status == 2 and len(line) < 2100
    assert line.startswith("error: the file: found xxx") and line.endswith(
        "xxx, expected less: the remedy\n"
    )


HALF_LAUNCHED = {
    "no number": dict(WORLD_SIZE="x"),
    "another launcher": dict(WORLD_SIZE="2", RANK="0"),
    "no address": dict(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2"),
    "no port": dict(
        WORLD_SIZE="2",
        RANK="0",
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="x",
    ),
}


@pytest.mark.parametrize("variables", HALF_LAUNCHED.values(), ids=HALF_LAUNCHED)
def test_an_environment_of_another_launcher_is_refused(ended, monkeypatch, variables):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, line = ended(lambda: train.main([]))
    assert status == 2 and "unset WORLD_SIZE for one process" in line
