"""The helper that kills programs before each of their file operations sees them all."""

import signal

from kills import Programs

SETUP = "import os, shutil, sys\nfrom pathlib import Path\nfrom lib.system.errors import InputError"
STATEMENT = """
folder = Path({folder!r})
(folder / "new").mkdir()
(folder / "new" / "a").write_text("x")
os.symlink("a", folder / "new" / "link")
os.replace(folder / "new" / "a", folder / "b")
descriptor = os.open(folder / "b", os.O_RDWR)
os.fsync(descriptor)
os.ftruncate(descriptor, 0)
open(folder / "b", "rb").close()
shutil.rmtree(folder / "new")
Path({elsewhere!r}).write_text("not watched")
print("done")
"""
OPERATIONS = [
    "os.mkdir new", "open new/a", "os.symlink new/link", "os.rename new/a b", "open b",
    "os.fsync b", "os.truncate b", "os.remove new/link", "os.rmdir new",
]  # fmt: skip


def test_every_operation_is_seen_and_none_after_the_kill_is_carried_out(tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    statement = STATEMENT.format(folder=str(folder), elsewhere=str(elsewhere))

    def prepare():
        for path in [*folder.rglob("*"), elsewhere]:
            if path.is_symlink() or path.is_file():
                path.unlink()
        for path in folder.glob("*"):
            path.rmdir()
        folder.mkdir(exist_ok=True)

    with Programs(SETUP) as programs:
        prepare()
        ended = programs.run(statement, folder)
        assert ended.status == 0 and ended.output == "done\n" and ended.operations == OPERATIONS
        assert elsewhere.read_text() == "not watched"
        trials = []
        for killed in programs.killed_at_each(statement, folder, prepare):
            trials.append(killed.operation)
            assert not elsewhere.exists() and killed.output == ""
            if killed.operation == "os.rename new/a b":
                assert (folder / "new" / "link").is_symlink() and not (folder / "b").exists()
        assert trials == OPERATIONS


def test_refusals_errors_and_time_outs_have_the_status_of_a_program(tmp_path):
    with Programs(SETUP) as programs:
        ended = programs.run("raise InputError('x: wrong')", tmp_path)
        assert ended.status == 2 and ended.output == "error: x: wrong\n" and not ended.operations
        assert programs.run("1 / 0", tmp_path).status == 1
        assert programs.run("import time; time.sleep(60)", timeout=1).status == -signal.SIGALRM
        assert programs.run("sys.exit(3)").status == 3
