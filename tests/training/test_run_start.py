"""What a run may begin in, go on with and replace, and what it leaves alone."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from damage import OPTIONS, contents, saved_with

import eval as evaluation
import train
from lib.model import checkpoint
from lib.system import run_folder
from lib.system.run_folder import MANIFEST, RunFolder
from lib.training import engine

FOREIGN = {
    "report_old.html": "<p>",
    "results_mine.npy": "x",
    "embeddings_mine.npz": "x",
    "events.out.tfevents.1.host": "x",
    "README.md": "mine",
    "notes.txt": "mine",
}


def command(whole, folder, *more):
    return [*OPTIONS, "--data_path", whole, "--logger_name", folder, *more]


def fit(whole, folder, *more):
    train.main([str(argument) for argument in command(whole, folder, *more)])
    return folder


def visible(folder):
    """Contents of a folder but for locks."""
    return {name: content for name, content in contents(folder).items() if name.name[0] != "."}


def place(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def check_there(folder, files):
    assert {name: (folder / name).read_text() for name in files} == files


# Files of others


def test_a_folder_with_other_files_is_no_place_to_start_a_run(whole, tmp_path, refusal):
    folder = place(tmp_path / "run", FOREIGN)
    for more in ([], ["--resume", "auto"]):
        refusal(
            train.main,
            *command(whole, folder, *more),
            expected=["the folder contains other files", "--overwrite 1"],
        )
        assert set(contents(folder)) == set(map(Path, FOREIGN))
    check_there(folder, FOREIGN)


def test_asked_for_a_run_starts_beside_other_files_and_leaves_them(whole, tmp_path):
    folder = place(tmp_path / "run", FOREIGN)
    fit(whole, folder, "--overwrite", "1")
    check_there(folder, FOREIGN)
    assert (
        not set(FOREIGN) & set(RunFolder(folder).read()["files"]) and (folder / "test.md").exists()
    )
    fit(whole, folder, "--overwrite", "1")  # and once more, over that run
    check_there(folder, FOREIGN)
    fit(whole, folder, "--resume", "auto", "--num_epochs", "2")
    check_there(folder, FOREIGN)


@pytest.mark.parametrize(
    "name", ["train.txt", "eval.txt", "test.md", "results_demo.npy", "metrics.json", "last.pth",
                                  "model_best.pth", "Parameters.txt"])  # fmt: skip
def test_a_file_of_others_with_a_name_of_ours_is_refused_before_anything_is_written(
    whole, tmp_path, refusal, name
):
    folder = place(tmp_path / "run", {name: "mine"})
    refusal(
        train.main, *command(whole, folder, "--overwrite", "1"), expected=[folder / name, "away"]
    )
    assert visible(folder) == {Path(name): b"mine"}


@pytest.mark.parametrize("name", ["train.txt", "last.pth", "model_best.pth", "test.md"])
@pytest.mark.parametrize("more", [["--overwrite", "1"], ["--resume", "auto", "--num_epochs", "2"]])
def test_nothing_is_written_through_a_link(whole, copied, tmp_path, refusal, name, more):
    (copied / name).rename(tmp_path / "precious")
    (copied / name).symlink_to(tmp_path / "precious")
    before = visible(tmp_path)
    refusal(train.main, *command(whole, copied, *more), expected=[copied / name, "found a link"])
    assert visible(tmp_path) == before


def test_notes_in_the_folder_of_a_run_do_no_harm(whole, copied):
    place(copied, {"README.md": "mine"})
    fit(whole, copied, "--resume", "auto", "--num_epochs", "2")
    check_there(copied, {"README.md": "mine"})


@pytest.mark.parametrize("damage", ["metrics.json", "test.md"])
def test_a_damaged_table_of_the_run_before_is_replaced(whole, copied, damage):
    (copied / damage).write_text("{damaged")
    fit(whole, copied, "--overwrite", "1")
    assert (copied / damage).read_text() != "{damaged"


@pytest.mark.parametrize("more, expected", [
    (["--dataset", "nowhere"], "nowhere_precomp: no such folder"),
    (["--bert_path", "nowhere"], "nowhere"), (["--val_split", "nowhere"], "nowhere"),
    (["--img_dim", "7"], "--img_dim"),
], ids=["data", "BERT", "split", "features"])  # fmt: skip
def test_nothing_is_deleted_before_all_is_checked(whole, copied, refusal, more, expected):
    before = contents(copied)
    refusal(train.main, *command(whole, copied, "--overwrite", "1", *more), expected=[expected])
    assert contents(copied) == before


def test_a_damaged_manifest_stops_all(whole, copied, refusal):
    (copied / MANIFEST).write_text(
        json.dumps({"format": "hrem-run-1", "files": ["../precious.md"]})
    )
    before = contents(copied)
    for more in ([], ["--overwrite", "1"], ["--resume", "auto"]):
        refusal(
            train.main, *command(whole, copied, *more), expected=[copied / MANIFEST, "move it away"]
        )
    assert contents(copied) == before


# Runs that are not replaced unasked


def test_a_run_whose_checkpoints_were_moved_away_is_not_replaced(whole, copied, tmp_path, refusal):
    for name in (run_folder.LAST, run_folder.BEST):
        (copied / name).rename(tmp_path / name)
    before = contents(copied)
    for more in ([], ["--resume", "auto"]):
        expected = [
            copied,
            "found neither last.pth nor model_best.pth",
            "Put them back",
            "--overwrite 1",
        ]
        refusal(train.main, *command(whole, copied, *more), expected=expected)
        assert visible(copied) == {
            name: content for name, content in before.items() if name.name[0] != "."
        }
    fit(whole, copied, "--overwrite", "1")
    assert (copied / "last.pth").exists()


def test_logs_of_another_run_are_not_replaced_by_a_run_with_its_models_elsewhere(
    whole, copied, tmp_path, refusal
):
    before = visible(copied)
    more = ["--model_name", tmp_path / "models"]
    refusal(
        train.main,
        *command(whole, copied, *more),
        expected=[copied, "another run", "--overwrite 1"],
    )
    assert visible(copied) == before and not (tmp_path / "models").exists()
    fit(whole, copied, *more, "--overwrite", "1")
    assert not (copied / "last.pth").exists() and (tmp_path / "models" / "last.pth").exists()
    models, logs = (RunFolder(folder).read() for folder in (tmp_path / "models", copied))
    assert models["run"]["id"] == models["run"]["log"] == logs["log"] and logs["run"] is None
    refusal(
        train.main,
        *command(whole, tmp_path / "models"),
        expected=["models/last.pth: the folder already contains a run"],
    )


def test_files_of_others_where_the_logs_would_go_are_refused(whole, tmp_path, refusal):
    folder, more = place(tmp_path / "logs", FOREIGN), ["--model_name", tmp_path / "models"]
    refusal(
        train.main,
        *command(whole, folder, *more),
        expected=[folder, "the folder contains other files"],
    )
    assert set(contents(tmp_path)) == {Path("logs") / name for name in FOREIGN}
    fit(whole, folder, *more, "--overwrite", "1")
    check_there(folder, FOREIGN)


def test_a_run_that_goes_on_with_other_logs_begins_them_and_keeps_the_first(
    whole, tmp_path, refusal
):
    models = ["--model_name", tmp_path / "models"]
    first = fit(whole, tmp_path / "first", *models)
    before = contents(first)
    fit(whole, tmp_path / "second", *models, "--resume", "auto", "--num_epochs", "2")
    assert (
        "epoch 1 step" in (tmp_path / "second" / "train.txt").read_text()
        and contents(first) == before
    )
    more = [*models, "--resume", "auto", "--num_epochs", "3"]
    refusal(train.main, *command(whole, first, *more), expected=[first, "another run"])
    assert visible(first) == {
        name: content for name, content in before.items() if name.name[0] != "."
    }
    fit(whole, tmp_path / "second", *more)
    epochs = re.findall(
        r"^epoch (\d) step", (tmp_path / "second" / "eval.txt").read_text(), re.MULTILINE
    )
    assert epochs == ["1", "2"]


def test_a_run_that_has_only_begun_goes_on_from_the_file_it_was_given(
    whole, copied, tmp_path, monkeypatch
):
    """Killed before its first saving, whichever way the command is repeated."""
    monkeypatch.setattr(checkpoint, "save", lambda *arguments, **settings: 1 / 0)
    more = ["--num_epochs", "2"]
    with pytest.raises(ZeroDivisionError):
        fit(whole, tmp_path / "new", "--resume", copied, *more)
    monkeypatch.undo()
    assert not (tmp_path / "new" / "last.pth").exists()
    for name, repeated in {"auto": ["--resume", "auto"], "same": ["--resume", copied]}.items():
        folder = shutil.copytree(tmp_path / "new", tmp_path / name)
        fit(whole, folder, *repeated, *more)
        assert torch.load(folder / "last.pth", weights_only=True)["step"] == 20
        assert "epoch 0 step" not in (folder / "eval.txt").read_text()


def test_a_run_does_not_go_on_from_a_file_that_it_would_delete(whole, copied, tmp_path, refusal):
    before = visible(copied)
    more = [
        "--model_name",
        tmp_path / "models",
        "--overwrite",
        "1",
        "--resume",
        copied,
        "--num_epochs",
        "2",
    ]
    refusal(
        train.main,
        *command(whole, copied, *more),
        expected=[copied / "last.pth", "Give another --logger_name"],
    )
    assert visible(copied) == before and not visible(tmp_path / "models")


def test_best_of_the_run_before_does_not_count_where_its_model_is_missing(
    whole, copied, tmp_path, capsys
):
    """The old best score would keep every later model from being kept."""
    saved_with(copied / "last.pth", best_rsum=599.0)
    (copied / "model_best.pth").unlink()
    elsewhere = shutil.copytree(copied, tmp_path / "source")
    fit(whole, copied, "--resume", "auto", "--num_epochs", "2")
    assert (
        "model_best.pth: no such file; the next validated model becomes the best"
        in capsys.readouterr().out
    )
    fit(whole, tmp_path / "new", "--resume", elsewhere, "--num_epochs", "2")
    for folder in (copied, tmp_path / "new"):
        assert torch.load(folder / "model_best.pth", weights_only=True)["epoch"] == 2


def test_a_finished_run_without_its_best_model_is_refused(whole, copied, refusal):
    (copied / "model_best.pth").unlink()
    before = contents(copied)
    expected = [copied / "model_best.pth", "Put it back", "--num_epochs"]
    refusal(train.main, *command(whole, copied, "--resume", "auto"), expected=expected)
    assert contents(copied) == before


def test_another_val_split_does_not_go_on_with_the_best_score_of_the_first(whole, copied, refusal):
    before = contents(copied)
    more = ["--resume", "auto", "--num_epochs", "2", "--val_split", "test"]
    refusal(
        train.main,
        *command(whole, copied, *more),
        expected=["found --val_split test", "expected --val_split dev"],
    )
    assert contents(copied) == before


def test_skipped_steps_in_a_row_are_counted_across_a_restart(whole, tmp_path, monkeypatch, refusal):
    compute = engine.batch_loss

    def poisoned(*arguments, **settings):
        loss = compute(*arguments, **settings)
        return loss._replace(total=loss.total * float("nan"))

    monkeypatch.setattr(engine, "batch_loss", poisoned)
    fit(whole, tmp_path / "run")  # ten steps
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["position"]["skipped"] == 10
    more = ["--resume", "auto", "--num_epochs", "3"]
    refusal(
        train.main,
        *command(whole, tmp_path / "run", *more),
        expected=["diverged at step 20", "20 consecutive steps"],
    )


# Names


@pytest.mark.parametrize("option", ["--dataset", "--val_split"])
@pytest.mark.parametrize(
    "name", ["group/mini", "..", "/tmp/x", "a\x1b[31m", "a\nb", "x" * 81, "a\ud800"]
)
def test_names_that_no_file_can_have_are_refused_at_the_start(tmp_path, refusal, option, name):
    expected = [option, "cannot be part of a file's name", "rename"]
    refusal(train.main, "--logger_name", tmp_path / "run", f"{option}={name}", expected=expected)
    if option == "--dataset":
        refusal(evaluation.main, f"--dataset={name}", expected=expected)
        refusal(evaluation.main, f"--split={name}", expected=["--split", *expected[1:]])
    assert not list(tmp_path.iterdir())


def test_a_name_in_a_checkpoint_that_no_file_can_have_is_refused(whole, copied, refusal):
    path = copied / "model_best.pth"
    options = torch.load(path, weights_only=True)["options"]
    saved_with(path, options=options | {"dataset": "../demo"})
    before = visible(copied)
    refusal(evaluation.main, copied, expected=[path, "cannot be part of a file's name"])
    assert visible(copied) == before
