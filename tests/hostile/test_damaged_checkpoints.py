"""Damaged checkpoints and run folders, full disks and texts that name nothing."""

import argparse
import errno
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import OPTIONS, contents, saved_with
from test_no_files import as_folder, in_place_of

import eval as evaluation
import train
from lib.system import files


def options_with(**changes):
    def damage(path):
        saved_with(path, options=torch.load(path, weights_only=True)["options"] | changes)

    return damage


def model_with(change):
    """Damage: one weight replaced by change(weight)."""

    def damage(path):
        state = torch.load(path, weights_only=True)["model"]
        name = "text_encoder.projection.weight"
        saved_with(path, model=state | {name: change(state[name])})

    return damage


def entries(**changes):
    return lambda path: saved_with(path, **changes)


def cut_to(share):
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def without_member(name):
    """Damage: a zip file that lacks a member."""

    def damage(path):
        content = {}
        with zipfile.ZipFile(path) as file:
            content = {
                member: file.read(member) for member in file.namelist() if not member.endswith(name)
            }
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            for member, data in content.items():
                file.writestr(member, data)

    return damage


def published(path, **changes):
    content = {
        "model": [{}, {}],
        "opt": argparse.Namespace(embed_size=16),
        "epoch": 1,
        "best_rsum": 1.0,
    }
    torch.save(content | changes, path)


def nan_at(weight):
    weight[1, 1] = np.nan
    return weight


NO_MODEL = ["not a checkpoint of this model", "expected a file written by train.py"]
CHECKPOINTS = {
    **{
        f"cut to {share:.0%}": (cut_to(share), ["expected", "again"])
        for share in (0.001, 0.1, 0.6, 0.9, 0.999)
    },
    "without its pickle": (without_member("data.pkl"), ["cannot be read", "expected"]),
    "without a record": (without_member("data/3"), ["cannot be read", "expected"]),
    "a zip of something else": (
        lambda path: zipfile.ZipFile(path, "w").writestr("x", "y"),
        ["cannot be read"],
    ),
    "a zip of nothing": (lambda path: zipfile.ZipFile(path, "w").close(), ["expected"]),
    "a web page": (lambda path: path.write_text("<!doctype html>\n"), ["expected", "again"]),
    "zeros": (lambda path: path.write_bytes(bytes(1000)), ["expected", "again"]),
    "an array": (
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'"),
        ["expected", "again"],
    ),
    "a list": (lambda path: torch.save([1], path), [*NO_MODEL, "a list"]),
    "nothing": (lambda path: torch.save(None, path), [*NO_MODEL, "a NoneType"]),
    "an epoch in words": (entries(epoch="last"), NO_MODEL),
    "an infinite epoch": (entries(epoch=float("inf")), NO_MODEL),
    "an epoch of many numbers": (entries(epoch=torch.ones(3)), NO_MODEL),
    "an rsum in words": (entries(best_rsum="high"), NO_MODEL),
    "a model that is a list": (entries(model=[1, 2]), NO_MODEL),
    "options that are a list": (entries(options=["nhead"]), NO_MODEL),
    "an embedding in words": (options_with(embed_size="many"), [*NO_MODEL, "embed_size 'many'"]),
    "an embedding of nothing": (options_with(embed_size=0), [*NO_MODEL, "embed_size 0"]),
    "a negative embedding": (options_with(embed_size=-16), [*NO_MODEL, "embed_size -16"]),
    "an embedding of 10**12": (
        options_with(embed_size=10**12),
        [*NO_MODEL, "embed_size 1000000000000"],
    ),
    "no head": (options_with(nhead=0), [*NO_MODEL, "nhead 0"]),
    "heads that do not divide": (options_with(nhead=3), [*NO_MODEL, "nhead 3"]),
    "a dropout of 7": (options_with(dropout=7.0), [*NO_MODEL, "dropout 7.0"]),
    "a dropout in words": (options_with(dropout="x"), [*NO_MODEL, "dropout 'x'"]),
    "a residual weight that is NaN": (
        options_with(residual_weight=float("nan")),
        [*NO_MODEL, "residual_weight nan"],
    ),
    "a data set that is a number": (options_with(dataset=5), [*NO_MODEL, "dataset 5"]),
    "a BERT that is a number": (options_with(bert_path=5), [*NO_MODEL, "bert_path 5"]),
    "a seed that is a tensor": (options_with(seed=torch.ones(2)), [*NO_MODEL, "seed"]),
    "a split of selection that is a list": (
        options_with(val_split=[1]),
        [*NO_MODEL, "val_split [1]"],
    ),
    "a weight that is a word": (
        model_with(lambda weight: "x"),
        ["projection.weight is not a plain tensor"],
    ),
    "a weight of another shape": (
        model_with(lambda weight: weight[:, :3]),
        ["projection.weight is (16, 3)"],
    ),
    "a sparse weight": (
        model_with(torch.Tensor.to_sparse),
        ["projection.weight is not a plain tensor"],
    ),
    "a complex weight": (
        model_with(lambda weight: weight + 1j),
        ["projection.weight is not a plain tensor"],
    ),
    "a weight without memory": (
        model_with(lambda weight: weight.to("meta")),
        ["text_encoder.projection.weight"],
    ),
    "a weight of NaN": (
        model_with(nan_at),
        ["text_encoder.projection.weight contains NaN or Inf", "another checkpoint"],
    ),
    "weights that overflow": (
        model_with(lambda weight: weight * 0 + 3e38),
        ["NaN or Inf in the embeddings of the test split", "another checkpoint"],
    ),
    "a weight too many": (
        lambda path: saved_with(
            path, model=torch.load(path, weights_only=True)["model"] | {"x": torch.ones(1)}
        ),
        ["found x, which the model does not have", "--bert_path"],
    ),
    "published, without sizes": (published, [*NO_MODEL, "nhead"]),
    "published, of one encoder": (lambda path: published(path, model=[{}]), NO_MODEL),
    "published, options in a list": (lambda path: published(path, opt=[1]), NO_MODEL),
    "published, of other names": (
        lambda path: published(path, model=[{"conv1.weight": torch.ones(1)}, {}]),
        [*NO_MODEL, "conv1.weight"],
    ),
}


@pytest.mark.parametrize("damage, expected", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused_and_the_run_folder_is_left(
    finished, tmp_path, refusal, damage, expected
):
    copied = shutil.copytree(finished, tmp_path / "run")
    damage(copied / "model_best.pth")
    before = contents(copied)
    error = refusal(evaluation.main, "--model_path", copied, expected=expected)
    assert str(copied / "model_best.pth") in error or "demo_precomp" in error
    assert contents(copied) == before


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "null", "\0"])
def test_metrics_that_are_not_ours_are_left_alone(finished, tmp_path, refusal, content):
    copied = shutil.copytree(finished, tmp_path / "run")
    (copied / "metrics.json").write_text(content)
    before = contents(copied)
    expected = [copied / "metrics.json", "expected a JSON object", "Move the file away"]
    refusal(evaluation.main, "--model_path", copied, expected=expected)
    assert contents(copied) == before


def fail_to(monkeypatch, name, code):
    """Let a call of lib.system.files.os fail as the file system makes it fail."""

    def failing(*arguments):
        raise OSError(
            code, os.strerror(code), *(str(arguments[0]),) if isinstance(arguments[0], Path) else ()
        )

    monkeypatch.setattr(files.os, name, failing)


@pytest.mark.parametrize(
    "name, code, found",
    [
        ("fsync", errno.ENOSPC, "found no space left on device"),
        ("replace", errno.EROFS, "found read-only file system"),
        ("replace", errno.EACCES, "found permission denied"),
        ("fsync", errno.EDQUOT, "found disk quota exceeded"),
    ],
    ids=str,
)
def test_a_disk_that_takes_nothing_leaves_the_run_folder_as_it_was(
    finished, refusal, monkeypatch, name, code, found
):
    before = contents(finished)
    fail_to(monkeypatch, name, code)
    refusal(
        evaluation.main,
        "--model_path",
        finished,
        expected=[found, "expected to write there", "make room"],
    )
    monkeypatch.undo()
    assert contents(finished) == before


@pytest.mark.parametrize("name", ["train.txt", "Parameters.txt"])
def test_a_folder_in_the_way_of_a_log_is_named(whole, tmp_path, refusal, name):
    (tmp_path / "run" / name / "kept").mkdir(parents=True)
    argv = [*OPTIONS, "--data_path", whole, "--logger_name", tmp_path / "run", "--overwrite", "1"]
    refusal(train.main, *argv, expected=[name, "found a folder", "move the folder away"])
    assert (tmp_path / "run" / name / "kept").is_dir()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("test.md", ["found a folder", "move the folder away"]),
        ("metrics.json", ["a folder, not a file", "Move the file away"]),
    ],
)
def test_a_folder_in_the_way_of_a_table_is_named(finished, tmp_path, refusal, name, expected):
    copied = shutil.copytree(finished, tmp_path / "run")
    in_place_of(copied / name, as_folder)
    before = contents(copied)
    refusal(evaluation.main, "--model_path", copied, expected=[name, *expected])
    assert {
        name: content for name, content in contents(copied).items() if name.suffix != ".md"
    } == {name: content for name, content in before.items() if name.suffix != ".md"}


@pytest.mark.parametrize("option", ["--logger_name", "--model_name"])
def test_a_run_folder_that_cannot_be_is_refused(whole, tmp_path, refusal, option):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("not-there")
    for name in ("loop", "nowhere", "loop/run", "x" * 300):
        argv = [
            *OPTIONS,
            "--data_path",
            whole,
            "--logger_name",
            tmp_path / "run",
            option,
            tmp_path / name,
        ]
        refusal(train.main, *argv, expected=[tmp_path / name, "expected", "name another"])
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


NO_NAME, EMPTY = "cannot be part of a file's name", "found an empty text"
TEXTS = {
    "no data set": (["--dataset", ""], ["--dataset", EMPTY]),
    "a data set of two lines": (["--dataset", "a\nb"], ["--dataset", NO_NAME]),
    "a data set with a long name": (["--dataset", "x" * 300], ["--dataset", NO_NAME]),
    "a data set that is not there": (
        ["--dataset", "x" * 80],
        ["x_precomp", "no such folder", "--dataset"],
    ),
    "no split": (["--val_split", ""], ["--val_split", EMPTY]),
    "a split elsewhere": (["--val_split", "../../x"], ["--val_split", NO_NAME]),
    "a split that is not there": (
        ["--val_split", "x"],
        ["x_ims.npy", "no such file", "dev, test, train"],
    ),
    "no BERT": (["--bert_path", ""], ["--bert_path", EMPTY]),
    "a BERT that is a file": (
        ["--bert_path", __file__],
        ["test_damaged_checkpoints.py", "expected a BERT", "--bert_path"],
    ),
    "a BERT that is a folder of code": (
        ["--bert_path", str(Path(__file__).parent)],
        ["tests", "config.json"],
    ),
    "no device": (["--device", ""], ["--device", EMPTY]),
    "a data folder that is a file": (
        ["--data_path", __file__],
        ["test_damaged_checkpoints.py", "name another place"],
    ),
}


@pytest.mark.parametrize("more, expected", TEXTS.values(), ids=TEXTS)
def test_a_text_that_names_nothing_is_refused(
    whole, untouched, refusal, monkeypatch, tmp_path, more, expected
):
    monkeypatch.chdir(tmp_path)
    refusal(
        train.main,
        *OPTIONS,
        "--data_path",
        whole,
        "--logger_name",
        untouched,
        *more,
        expected=expected,
    )
