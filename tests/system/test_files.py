"""Atomic files, locks, the manifest of a run folder, and text that is safe to print."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.system import files
from lib.system.console import markdown_cell, one_line, printable, write_line
from lib.system.errors import InputError
from lib.system.run_folder import MANIFEST, RunFolder

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from lib.system.files import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_atomic_write_replaces_a_link_and_leaves_its_target(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "file").symlink_to(tmp_path / "precious")
    with files.atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "precious").read_text() == "mine" and (
        tmp_path / "file"
    ).read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_atomic_write_keeps_the_old_file_when_the_block_raises(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), files.atomic_write(tmp_path / "file") as file:
        file.write(b"half")
        raise RuntimeError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_temporaries_of_killed_processes_are_found_by_their_names(tmp_path):
    left = tmp_path / ".last.pth.0123456789abcdef.part"
    for path in (left, tmp_path / "last.pth.part", tmp_path / ".notes.part"):
        path.touch()
    assert files.find_temporaries(tmp_path) == {left: "last.pth"}


WRITE = """
import sys, time
from lib.system.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_living_process_writes_is_not_removed(tmp_path):
    argv = [sys.executable, "-c", WRITE, tmp_path / "file"]
    writing = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)
    assert writing.stdout.readline() == b"writing\n"
    left = files.find_temporaries(tmp_path)
    assert set(left.values()) == {"file"}
    files.remove_temporaries(tmp_path, {"file"})
    assert files.find_temporaries(tmp_path) == left
    writing.kill()
    writing.wait()
    writing.stdout.close()
    files.remove_temporaries(tmp_path, {"other"})
    assert files.find_temporaries(tmp_path) == left
    # writing the same file again removes what was left of it
    with files.atomic_write(tmp_path / "file") as file:
        file.write(b"whole")
    assert not files.find_temporaries(tmp_path) and (tmp_path / "file").read_bytes() == b"whole"


def test_a_lock_excludes_another_process_and_ends_with_it(tmp_path):
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / ".lock"], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert held.stdout.readline() == b"held\n"
    with (
        pytest.raises(InputError, match=f"in use by process {held.pid} on"),
        files.lock(tmp_path / ".lock"),
    ):
        pass
    held.send_signal(signal.SIGKILL)
    held.wait()
    # this process may hold it twice
    with files.lock(tmp_path / ".lock"), files.lock(tmp_path / ".lock"):
        pass
    assert not files._held


def test_a_lock_is_never_a_file_of_somebody_else(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("process 3 on host\nmine\n")
    with (
        pytest.raises(InputError, match="found a file that this program did not write"),
        files.lock(path),
    ):
        pass
    assert path.read_text() == "process 3 on host\nmine\n" and not files._held
    path.rename(tmp_path / "theirs")
    path.symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match=f"{path}: found a link"), files.lock(path):
        pass
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=f"{path}: .*(pipe|locked)"), files.lock(path):
        pass
    assert not files._held


def test_a_lock_can_be_waited_for(tmp_path):
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / ".lock"], cwd=ROOT, stdout=subprocess.PIPE
    )
    held.stdout.readline()
    patient = HOLD.replace("])", "], wait=True)")
    waits = subprocess.Popen(
        [sys.executable, "-c", patient, tmp_path / ".lock"], cwd=ROOT, stdout=subprocess.PIPE
    )
    time.sleep(0.3)
    assert waits.poll() is None
    held.kill()
    held.wait()
    assert waits.stdout.readline() == b"held\n"
    waits.kill()
    waits.wait()


def test_a_file_is_claimed_before_it_is_written(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.atomic_write("test.md") as file:
        assert folder.is_own("test.md")
        file.write(b"table")
    with folder.atomic_write("test.md") as file:  # ours, so it may be replaced
        file.write(b"table 2")
    assert (tmp_path / "test.md").read_bytes() == b"table 2"
    folder.remove("test.md", "dev.md")
    assert not (tmp_path / "test.md").exists() and folder.read()["files"] == []


def test_a_file_of_somebody_else_is_neither_replaced_nor_removed(tmp_path):
    (tmp_path / "test.md").write_text("mine")
    folder = RunFolder(tmp_path)
    with pytest.raises(
        InputError, match="test.md: found a file that run_manifest.json does not name"
    ):
        folder.claim("test.md")
    folder.remove("test.md")
    assert (tmp_path / "test.md").read_text() == "mine"


def test_a_link_is_never_ours(tmp_path):
    (tmp_path / "precious").write_text("mine")
    folder = RunFolder(tmp_path)
    folder.claim("test.md")
    (tmp_path / "test.md").symlink_to(tmp_path / "precious")
    folder.remove("test.md")
    assert (tmp_path / "precious").read_text() == "mine" and (tmp_path / "test.md").is_symlink()


@pytest.mark.parametrize(
    "name",
    ["../test.md", "/etc/passwd", "a/b.md", ".bashrc", "notes.txt", "results_../x.npy", "a.md\n"],
)
def test_a_manifest_with_other_names_is_refused(tmp_path, name):
    (tmp_path / MANIFEST).write_text(json.dumps({"format": "hrem-run-1", "files": [name]}))
    with pytest.raises(InputError, match="which this project never writes"):
        RunFolder(tmp_path).read()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": "hrem-run-1", "files": 3}', "[" * 100000]
)
def test_a_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=f"{MANIFEST}: cannot be used"):
        RunFolder(tmp_path).read()


def test_control_characters_are_escaped():
    assert (
        printable("a\x1b[31mb\x07\x9b\u202e\ud800\u2028é\tx\n")
        == "a\\x1b[31mb\\x07\\x9b\\u202e\\ud800\\u2028é\tx\n"
    )
    assert one_line("a\r\nb\t") == "a\\x0d\\nb\\t" and markdown_cell("a|b\n") == "a\\|b\\n"


def test_a_line_is_written_in_any_encoding(tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as stream:
        write_line("né\u4e2d", stream)
    assert (tmp_path / "out").read_text() == "n\\xe9\\u4e2d\n"


def test_a_closed_pipe_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        write_line("nobody reads this", stream)
        write_line("nor this", stream)
