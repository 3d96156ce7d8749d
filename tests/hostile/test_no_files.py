"""Links, pipes, devices and folders in place of files, and files that may not be read."""

import builtins
import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from damage import CAPTIONS, OPTIONS, TRAIN, WEIGHTS

import eval as evaluation
import train
from lib.data import dataset
from lib.data.region_file import RegionFile
from lib.system import files
from lib.system.errors import InputError


def as_folder(path):
    path.mkdir()


def as_pipe(path):
    os.mkfifo(path)


def as_dangling_link(path):
    path.symlink_to(path.with_name("nowhere"))


def as_link_to_itself(path):
    path.symlink_to(path)


def as_device(path):
    path.symlink_to("/dev/zero")


def as_link_to_a_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


IN_PLACE = {
    "a folder": (as_folder, "a folder, not a file"),
    "a pipe": (as_pipe, "a pipe, socket or device, not a file"),
    "a dangling link": (as_dangling_link, "a link to a file that is not there"),
    "a link to itself": (as_link_to_itself, "too many levels of symbolic links"),
    "a device": (as_device, "a pipe, socket or device, not a file"),
    "a link to a pipe": (as_link_to_a_pipe, "a pipe, socket or device, not a file"),
}
DATA_FILES = {  # file of a data folder -> what its refusal says is expected
    TRAIN: "region features",
    CAPTIONS: "a caption per line",
    "dev_ims.npy": "region features",
    "test_caps.txt": "a caption per line",
    "bert/config.json": "a file of a BERT folder",
    "bert/vocab.txt": "a file of a BERT folder",
    "bert/tokenizer_config.json": "a file of a BERT folder",
    WEIGHTS: "a file of a BERT folder",
}


def in_place_of(path, put):
    path.unlink()
    put(path)


@pytest.mark.parametrize("put, found", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("name", DATA_FILES)
def test_what_is_no_file_is_refused_at_once(data, untouched, refusal, name, put, found):
    path = data / "demo_precomp" / name
    in_place_of(path, put)
    expected = [path, found, DATA_FILES[name], "expected"]
    refusal(
        train.main, *OPTIONS, "--data_path", data, "--logger_name", untouched, expected=expected
    )


@pytest.mark.parametrize("put, found", IN_PLACE.values(), ids=IN_PLACE)
def test_a_checkpoint_that_is_no_file_is_refused_at_once(finished, tmp_path, refusal, put, found):
    path = shutil.copytree(finished, tmp_path / "run") / "model_best.pth"
    in_place_of(path, put)
    refusal(
        evaluation.main, "--model_path", tmp_path / "run", expected=[path, found, "--model_path"]
    )
    if put is not as_folder:  # a folder is searched for the best model in it
        refusal(evaluation.main, "--model_path", path, expected=[path, found, "--model_path"])


def deny(monkeypatch, name):
    """Opening files of that name is not permitted; nor to root,
    whom permission bits do not bind."""

    def opened(path, *arguments, **settings):
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return builtins.open(path, *arguments, **settings)

    monkeypatch.setattr(files, "open", opened, raising=False)


@pytest.mark.parametrize("name", DATA_FILES)
def test_a_file_that_may_not_be_read_is_refused(data, untouched, refusal, monkeypatch, name):
    path = data / "demo_precomp" / name
    deny(monkeypatch, path.name)
    expected = [path, "not to be opened (permission denied)", DATA_FILES[name]]
    refusal(
        train.main, *OPTIONS, "--data_path", data, "--logger_name", untouched, expected=expected
    )


def test_a_checkpoint_that_may_not_be_read_is_refused(finished, refusal, monkeypatch):
    deny(monkeypatch, "model_best.pth")
    expected = [finished / "model_best.pth", "not to be opened (permission denied)"]
    refusal(evaluation.main, "--model_path", finished, expected=expected)


@contextlib.contextmanager
def as_nobody():
    """Inside, permission bits bind."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_permission_bits_are_such_an_obstacle():
    # not below tmp_path, which only its owner may enter
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path, closed = Path(folder, "file"), Path(folder, "closed")
        path.write_text("x")
        path.chmod(0)
        closed.mkdir()
        (closed / "file").write_text("x")
        closed.chmod(0)
        with as_nobody():
            for file in (path, closed / "file"):
                assert files.why_unreadable(file) == "not to be opened (permission denied)"
            for read in (RegionFile, dataset.read_lines):
                with pytest.raises(
                    InputError, match="file: not to be opened .permission denied.; "
                ):
                    read(path)
        closed.chmod(0o755)


def test_a_file_below_a_file_and_a_name_too_long_are_obstacles(tmp_path):
    (tmp_path / "file").write_text("x")
    assert files.why_unreadable(tmp_path / "file") is None
    assert files.why_unreadable(tmp_path / "file" / "below") == "not to be opened (not a directory)"
    assert files.why_unreadable(tmp_path / ("x" * 300)) == "not to be opened (file name too long)"
    assert files.why_unreadable(tmp_path / "other") == "no such file"
