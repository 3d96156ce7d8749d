"""Conversions that are killed, that meet damaged state or a full disk,
or that run beside another one."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kills import Programs
from own_features import entry, features, tsv_line, write_json
from test_check import run

import train
from lib.data import __main__ as data_command
from lib.data import conversion, demo, layout
from lib.data.dataset import RetrievalDataset
from lib.data.region_file import RegionFile
from lib.model import bert
from lib.system.errors import InputError

ROOT = Path(__file__).parents[2]
SPLITS = ["train", "test", "train", "train", "test"]
SETUP = "from lib.data import convert, __main__ as data_command\nconvert.IMAGES_PER_WRITE = 3"


def new_inputs(folder, first=1000, splits=SPLITS, sentences=5):
    """Write a.tsv and split.json of five images with 6 boxes each; names start at `first`."""
    folder.mkdir(exist_ok=True)
    (folder / "a.tsv").write_bytes(
        b"".join(tsv_line(first + n, 6, features(first + n, 6)) for n in (3, 1, 4, 0, 2))
    )
    images = [
        entry(n, split, sentences(n) if callable(sentences) else sentences)
        for n, split in enumerate(splits)
    ]
    write_json(
        folder, [image | dict(filename=f"{first + n}.jpg") for n, image in enumerate(images)]
    )
    return folder


def arguments(inputs, out, *more):
    command = [
        "convert",
        "--tsv",
        inputs / "a.tsv",
        "--json",
        inputs / "split.json",
        "--out",
        out,
        "--regions",
        4,
    ]
    return [*command, *more]


def statement(inputs, out, *more):
    return f"data_command.main({list(map(str, arguments(inputs, out, *more)))!r})"


def content(out):
    """{name: bytes} of the visible files of a folder."""
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def programs():
    with Programs(SETUP) as programs:
        yield programs


@pytest.fixture
def inputs(tmp_path):
    return new_inputs(tmp_path / "inputs")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "mine_precomp"


def converted(inputs, folder, *more):
    """The files of an undisturbed conversion."""
    assert run(*arguments(inputs, folder, *more)) == 0
    return content(folder)


def is_refused(out):
    """Whether all readers refuse the folder: those of each split, and those of all splits."""
    found = []
    for split in ("train", "test", "dev"):
        try:
            RegionFile(out / f"{split}_ims.npy")
        except InputError as error:
            found.append("a conversion is moving its files" in str(error))
        else:
            found.append(False)
    try:
        layout.find_splits(out)
    except InputError as error:
        return all(found) and "run the same command again" in str(error)
    return False


def test_a_conversion_killed_before_any_operation_is_repeated_by_the_same_command(
    programs, inputs, out, tmp_path
):
    expected = converted(inputs, tmp_path / "whole_precomp")
    operations = set()

    def prepare():
        shutil.rmtree(out, ignore_errors=True)

    command = statement(inputs, out)
    for killed in programs.killed_at_each(command, out, prepare):
        operations.add(killed.operation)
        found = content(out) if out.exists() else {}
        assert (
            is_refused(out) if os.path.lexists(out / layout.SWITCH) else found in ({}, expected)
        ), killed
        again = programs.run(command)
        assert again.status == 0 and content(out) == expected, (killed, again)
        assert {path.name for path in out.iterdir()} - set(expected) == {conversion.LOCK}
    assert {
        "os.remove .converted",
        "os.rmdir .conversion",
        "open .conversion/train_ims.npy",
    } <= operations
    assert "os.rename .conversion/train_ims.npy train_ims.npy" in operations


def test_an_overwriting_conversion_killed_before_any_operation_leaves_the_old_files_or_the_new(
    programs, inputs, out, tmp_path
):
    before = new_inputs(
        tmp_path / "before", 2000, ["train", "val", "train", "test", "train"], lambda n: 1 + n
    )
    old, kept = (
        tmp_path / "old_precomp",
        [f"dev_{end}" for end in layout.ENDS],
    )
    previous = converted(before, old)
    (old / "notes.txt").write_text("mine")
    expected = converted(inputs, tmp_path / "whole_precomp")
    expected |= {name: content for name, content in previous.items() if name in kept} | {
        "notes.txt": b"mine"
    }
    assert "train_caps_images.txt" in previous and "train_caps_images.txt" not in expected

    def prepare():
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(old, out)

    seen = set()
    command = statement(inputs, out, "--overwrite")
    for killed in programs.killed_at_each(command, out, prepare):
        if os.path.lexists(out / layout.SWITCH):
            assert is_refused(out), killed
            seen.add("refused")
        else:
            found = content(out)
            assert found == previous | {"notes.txt": b"mine"} or found == expected, killed
            seen.add("old" if found != expected else "new")
        again = programs.run(command)
        assert again.status == 0 and content(out) == expected, (killed, again)
    # after the last operation, the conversion is complete
    assert seen == {"old", "refused"}


def test_training_and_check_refuse_a_folder_between_two_conversions(tmp_path, refusal):
    demo.build(tmp_path / "demo_precomp", sizes={"train": 10, "dev": 5, "test": 5})
    (tmp_path / "demo_precomp" / layout.SWITCH).write_text("{}")
    tokeniser = bert.tokeniser(tmp_path / "demo_precomp" / "bert")
    for split in ("train", "dev", "test"):
        with pytest.raises(
            InputError,
            match="or was stopped meanwhile .found .converted.*same command again",
        ):
            RetrievalDataset(tmp_path / "demo_precomp", split, tokeniser)
    options = [
        "--dataset",
        "demo",
        "--data_path",
        tmp_path,
        "--logger_name",
        tmp_path / "run",
        "--num_epochs",
        1,
    ]
    refusal(train.main, *options, expected=["demo_precomp: a conversion is moving its files"])
    refusal(
        data_command.main,
        "check",
        tmp_path / "demo_precomp",
        expected=["a conversion is moving its files"],
    )
    assert not (tmp_path / "run").exists()


def test_links_and_folders_under_the_names_of_the_files(inputs, out, tmp_path, capsys):
    out.mkdir()
    (tmp_path / "precious").write_text("mine")
    (out / "train_caps.txt").symlink_to(tmp_path / "precious")
    (out / "test_caps_images.txt").symlink_to(tmp_path / "nowhere")
    assert run(*arguments(inputs, out)) == 2
    assert "found test_caps_images.txt, train_caps.txt, expected none" in capsys.readouterr().err
    assert run(*arguments(inputs, out, "--overwrite")) == 0
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "nowhere").exists()
    assert not (out / "train_caps.txt").is_symlink() and not os.path.lexists(
        out / "test_caps_images.txt"
    )
    (out / "test_ids.txt").unlink()
    (out / "test_ids.txt").mkdir()
    before = content_of_files(out)
    assert run(*arguments(inputs, out, "--overwrite")) == 2
    assert "test_ids.txt: found a folder, expected a file or nothing" in capsys.readouterr().err
    assert content_of_files(out) == before


def content_of_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_other_splits_stay_and_are_named(inputs, out, capsys):
    out.mkdir()
    (out / "dev_caps.txt").write_text("mine")
    assert run(*arguments(inputs, out)) == 0
    assert (
        f"not changed: files of dev in {out}, of which the JSON contains no image"
        in capsys.readouterr().out
    )
    assert (out / "dev_caps.txt").read_text() == "mine"


def test_a_second_conversion_into_the_same_folder_is_refused(inputs, out, capsys):
    slow = (
        "import time; from lib.data import work_folder, __main__ as data_command; from lib.system "
        "import errors\n"
        "store = work_folder.store\n"
        "work_folder.store = lambda *found: (time.sleep(60), "
        "store(*found))\nerrors.command_line(data_command.main)\n"
    )
    command = [sys.executable, "-c", slow, *map(str, arguments(inputs, out))]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    started = time.time()
    while not (out / layout.WORK / "inputs.json").exists():
        assert process.poll() is None and time.time() - started < 60
        time.sleep(0.02)
    before = content_of_files(out)
    assert run(*arguments(inputs, out, "--overwrite")) == 2
    assert f"mine_precomp: in use by process {process.pid} on " in capsys.readouterr().err
    assert content_of_files(out) == before
    process.kill()
    process.wait()
    assert run(*arguments(inputs, out)) == 0
    assert "resuming the conversion" in capsys.readouterr().out


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink("../precious", path)]
)
def test_something_else_in_place_of_the_lock_is_one_line(inputs, out, tmp_path, make, capsys):
    (tmp_path / "precious").write_text("mine")
    out.mkdir()
    make(out / conversion.LOCK)
    assert run(*arguments(inputs, out)) == 2
    error = capsys.readouterr().err
    assert str(out / conversion.LOCK) in error and error.count("\n") == 1
    assert (tmp_path / "precious").read_text() == "mine" and os.listdir(out) == [conversion.LOCK]


@pytest.mark.parametrize("name", ["a.tsv", "split.json"])
def test_a_pipe_in_place_of_an_input_is_not_waited_for(inputs, out, name, capsys):
    (inputs / name).unlink()
    os.mkfifo(inputs / name)
    assert run(*arguments(inputs, out)) == 2
    assert (
        f"{name}: a pipe, socket or device, not a file" in capsys.readouterr().err
        and not out.exists()
    )


def test_the_record_of_an_extraction_is_removed_only_when_that_is_asked_for(inputs, out):
    out.mkdir()
    (out / layout.EXTRACTION).write_text("{}")
    assert run(*arguments(inputs, out)) == 2
    assert [path.name for path in out.glob("*.*") if path.name[0] != "."] == [layout.EXTRACTION]
    assert run(*arguments(inputs, out, "--overwrite")) == 0
    assert not (out / layout.EXTRACTION).exists() and (out / "train_ims.npy").exists()
