"""Stopping and going on: a run that was interrupted in any way ends as one that never was."""

import os
import re
import resource
import shutil

import pytest
import torch
from helpers import Stopped, make_data, read, same, scalars, shared, stop_at_step

import train
from lib.system import files, run_folder
from lib.system.errors import InputError
from lib.training import engine, logs

OPTIONS = (
    "--dataset demo --num_epochs 2 --batch_size 20 --embed_size 32 --nhead 2 --warmup 4 "
    "--log_step 4 --val_step 4 --save_results 0 --learning_rate 0.002 --workers 0 --save_step 3"
).split()  # on the data here 6 steps an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=24, dev=10, test=10)


def command(data, folder, *more):
    return [*OPTIONS, "--data_path", str(data), "--logger_name", str(folder), *more]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing disturbed; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main(command(data, folder))
    return shared(folder)


def check_same_run(folder, whole):
    """Weights, moments, counts, logs and curves are those of the undisturbed run, bit for bit."""
    for name in (run_folder.LAST, run_folder.BEST):
        ours, theirs = read(folder, name), read(whole, name)
        for part in ("model", "objective", "optimizer", "epoch", "step", "best_rsum"):
            assert same(ours[part], theirs[part]), f"{name}: {part}"
    for name in ("train.txt", "eval.txt", "test.md"):
        assert (folder / name).read_text() == (whole / name).read_text().replace(
            str(whole), str(folder)
        ), name
    ours, theirs = scalars(folder), scalars(whole)
    for name in ("batch_time", "data_time"):
        assert [step for step, _ in ours.pop(name)] == [step for step, _ in theirs.pop(name)]
    assert ours == theirs
    assert not files.find_temporaries(folder)


@pytest.mark.parametrize(
    "step, workers", [*((step, "0") for step in (0, 2, 3, 5, 6, 7, 11)), (5, "2"), (6, "2")]
)
def test_a_stopped_run_goes_on_as_if_it_never_had(
    data, whole, tmp_path, monkeypatch, step, workers
):
    with monkeypatch.context() as patched:
        stop_at_step(patched, step)
        with pytest.raises(Stopped):
            train.main(command(data, tmp_path / "run", "--workers", workers))
    train.main(command(data, tmp_path / "run", "--workers", workers, "--resume", "auto"))
    check_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_run_stopped_while_a_file_is_written_goes_on(data, whole, tmp_path, monkeypatch, number):
    """The number-th checkpoint is written half; what is there before is what the run goes on
    from."""
    met, save = [], torch.save

    def save_half(content, file):
        met.append(None)
        save(content, file)
        if len(met) == number:
            file.truncate(1000)
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save_half)
        with pytest.raises(Stopped):
            train.main(command(data, tmp_path / "run"))
    assert (tmp_path / "run" / run_folder.LAST).exists() == (number > 1)
    train.main(command(data, tmp_path / "run", "--resume", "auto"))
    check_same_run(tmp_path / "run", whole)


def test_a_finished_run_that_is_resumed_stays_the_same(data, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    train.main(command(data, folder, "--resume", "auto"))
    assert (folder / "test.md").read_bytes() == (whole / "test.md").read_bytes()
    assert (folder / "eval.txt").read_bytes() == (whole / "eval.txt").read_bytes()


def test_more_epochs_go_on_from_a_finished_run(data, whole, tmp_path):
    folder = tmp_path / "run"
    train.main(command(data, folder, "--num_epochs", "1"))
    train.main(command(data, folder, "--resume", "auto"))
    ours, theirs = read(folder, run_folder.LAST), read(whole, run_folder.LAST)
    assert same(ours["model"], theirs["model"]) and same(ours["optimizer"], theirs["optimizer"])


def test_a_run_goes_on_from_a_file_elsewhere(data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at_step(patched, 10)
        with pytest.raises(Stopped):
            train.main(command(data, tmp_path / "first"))
    before = {path: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    train.main(command(data, tmp_path / "second", "--resume", str(tmp_path / "first")))
    assert {path: path.read_bytes() for path in (tmp_path / "first").iterdir()} == before
    for name in (run_folder.LAST, run_folder.BEST):
        assert same(read(tmp_path / "second", name)["model"], read(whole, name)["model"])
    steps = [step for step, _ in scalars(tmp_path / "second")["Iter"]]
    assert steps == [step for step, _ in scalars(whole)["Iter"] if step > 9]


def test_auto_starts_a_run_where_there_is_none(data, whole, tmp_path):
    train.main(command(data, tmp_path / "run", "--resume", "auto"))
    check_same_run(tmp_path / "run", whole)


def test_what_a_folder_holds_is_not_replaced_unasked(data, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        InputError,
        match=r"last\.pth: the folder already contains a run.*--resume auto.*--overwrite 1",
    ):
        train.main(command(data, folder))
    (folder / run_folder.LAST).unlink()
    with pytest.raises(InputError, match=r"model_best\.pth: the folder already contains a run"):
        train.main(command(data, folder, "--resume", "auto"))
    with pytest.raises(InputError, match="the folder already contains a run"):
        train.main(command(data, folder, "--resume", str(whole)))
    del before[run_folder.LAST]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_overwriting_leaves_nothing_of_the_run_before(data, whole, tmp_path, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "run")
    stop_at_step(monkeypatch, 1)
    with pytest.raises(Stopped):
        train.main(command(data, folder, "--overwrite", "1"))
    names = {
        re.sub(r"tfevents\..*", "tfevents", path.name)
        for path in folder.iterdir()
        if path.name[0] != "."
    }
    assert names == {
        "last.pth",
        "train.txt",
        "Parameters.txt",
        "events.out.tfevents",
        "run_manifest.json",
    }
    assert read(folder, run_folder.LAST)["step"] == 0


@pytest.mark.parametrize(
    "option, value", [("--batch_size", "30"), ("--seed", "1"), ("--mask_weight", "1.5")]
)
def test_a_run_goes_on_with_the_options_it_began_with(data, whole, tmp_path, option, value):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=rf"found {option} {value}, expected {option} "):
        train.main(command(data, folder, "--resume", "auto", option, value))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda path: os.truncate(path, 5000), "cannot be read as a checkpoint"),
        (lambda path: path.write_bytes(b""), "cannot be read as a checkpoint"),
        (
            lambda path: shutil.copy(path.with_name(run_folder.BEST), path),
            "expected a last.pth written by train.py",
        ),
        (lambda path: torch.save({"opt": 1}, path), "expected a last.pth written by train.py"),
        (
            lambda path: torch.save(torch.load(path, weights_only=True) | {"optimizer": {}}, path),
            "does not fit this run",
        ),
        (
            lambda path: torch.save(torch.load(path, weights_only=True) | {"model": {}}, path),
            "does not fit this run",
        ),
    ],
    ids=[
        "truncated",
        "empty",
        "the best model",
        "another program's",
        "without moments",
        "without weights",
    ],
)
def test_a_damaged_file_is_not_gone_on_from(data, whole, tmp_path, damage, expected):
    folder = shutil.copytree(whole, tmp_path / "run")
    damage(folder / run_folder.LAST)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=expected):
        train.main(command(data, folder, "--resume", "auto"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("limit", [30_000, 250_000])
def test_a_full_disk_stops_with_the_earlier_checkpoint_whole(
    data, whole, tmp_path, monkeypatch, limit
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at_step(patched, 8)
        with pytest.raises(Stopped):
            train.main(command(data, folder))
    before = (folder / run_folder.LAST).read_bytes()
    assert len(before) > limit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(
            InputError,
            match=r"\.pth.*: found file too large, expected to write there.*--resume auto",
        ):
            train.main(command(data, folder, "--resume", "auto"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / run_folder.LAST).read_bytes() == before and not files.find_temporaries(folder)
    train.main(command(data, folder, "--resume", "auto"))
    check_same_run(folder, whole)


def test_a_log_that_cannot_be_written_is_told_in_a_line(tmp_path):
    log = logs.RunLog(tmp_path)
    writers = {"train": log.train, "eval": log.evaluation}
    for name, write in writers.items():
        write("a line")
        os.truncate(tmp_path / f"{name}.txt", 10**6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, write in writers.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
        try:
            with pytest.raises(InputError, match=rf"{name}\.txt: found file too large"):
                write("a line")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_log_is_not_written_through_a_link(tmp_path):
    log = logs.RunLog(tmp_path / "run")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / "train.txt").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"train\.txt: found "):
        log.train("a line")
    assert (tmp_path / "precious").read_text() == "mine"


def test_files_are_flushed_before_they_are_renamed(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: told.append("flushed"))
    rename = os.replace
    monkeypatch.setattr(
        files.os, "replace", lambda *paths: (told.append("renamed"), rename(*paths))
    )
    with files.atomic_write(tmp_path / "file") as file:
        file.write(b"content")
    assert (
        told == ["flushed", "renamed", "flushed"] and (tmp_path / "file").read_bytes() == b"content"
    )


def poison_steps(monkeypatch, steps):
    """The loss of these steps, counted from 0, is not a number."""
    from graph_lib import Objective

    compute, met = Objective.forward, []

    def forward(self, *arguments, **settings):
        loss = compute(self, *arguments, **settings)
        met.append(None)
        if len(met) - 1 in steps:
            terms = loss.terms | {"base": loss.terms["base"] * float("nan")}
            return loss._replace(total=sum(terms.values()), terms=terms)
        return loss

    monkeypatch.setattr(Objective, "forward", forward)


def test_twenty_steps_in_a_row_without_a_number_stop_the_run(data, tmp_path, monkeypatch):
    folder, options = tmp_path / "run", ["--num_epochs", "5", "--val_step", "0", "--save_step", "0"]
    with monkeypatch.context() as patched:
        stop_at_step(patched, 8)
        with pytest.raises(Stopped):
            train.main(command(data, tmp_path / "good", *options, "--save_step", "1"))
    poison_steps(monkeypatch, range(8, 28))
    with pytest.raises(
        InputError,
        match=r"last\.pth: .*diverged at step 30.* 20 consecutive steps.*--learning_rate",
    ):
        train.main(command(data, folder, *options))
    stopped, good = read(folder, run_folder.LAST), read(tmp_path / "good", run_folder.LAST)
    for part in ("model", "objective", "optimizer"):
        assert same(stopped[part], good[part])
    assert (
        "skipped 2 steps that were not finite (2 so far) in base"
        in (folder / "train.txt").read_text()
    )


def test_nineteen_do_not(data, tmp_path, monkeypatch):
    poison_steps(monkeypatch, range(5, 24))
    train.main(command(data, tmp_path / "run", "--num_epochs", "5"))
    log = (tmp_path / "run" / "train.txt").read_text()
    assert "(19 so far) in base" in log and not log.splitlines()[-1].count("skipped")


def test_out_of_memory_is_told_in_a_line(data, tmp_path, monkeypatch):
    def step(*arguments, **settings):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
        )

    monkeypatch.setattr(engine, "training_step", step)
    with pytest.raises(
        InputError, match=r"--batch_size 20 \(CUDA out of memory\).*try --batch_size 10"
    ):
        train.main(command(data, tmp_path / "run"))


def test_curves_of_one_second_are_in_files_of_their_own_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(logs.time, "time", lambda: 1000.7)
    log, sizes = None, {}
    for step in range(3):  # a run that is resumed twice within a second
        log = logs.RunLog(tmp_path, sizes)
        log.scalars({"Loss": float(step)}, step)
        log.tensorboard._writer.close()
        sizes = log.sizes()
    names = sorted(path.name.split(".")[3] for path in tmp_path.glob("events*"))
    assert names == ["1000", "1001", "1002"]
    assert scalars(tmp_path)["Loss"] == [(0, 0.0), (1, 1.0), (2, 2.0)]
