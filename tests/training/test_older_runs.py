"""Run folders from before there were manifests, and those of the published code."""

import re

import pytest
import torch
from damage import contents, saved_with
from test_programs import as_published
from test_run_start import FOREIGN, check_there, command, fit, place, visible

import eval as evaluation
import train
from lib.system.run_folder import MANIFEST, RunFolder


@pytest.fixture
def older(copied):
    """A run folder from before there were manifests, and some of the options."""
    (copied / MANIFEST).unlink()
    for name in ("last.pth", "model_best.pth"):
        options = torch.load(copied / name, weights_only=True)["options"]
        saved_with(
            copied / name, options={key: options[key] for key in options if key != "strip_accents"}
        )
    lines = (copied / "Parameters.txt").read_text().splitlines(keepends=True)
    (copied / "Parameters.txt").write_text(
        "".join(line for line in lines if not line.startswith("strip_accents"))
    )
    return copied


def test_an_older_run_goes_on_and_its_files_are_ours_then(whole, older):
    place(older, FOREIGN)
    names = set(contents(older))
    fit(whole, older, "--resume", "auto", "--num_epochs", "2")
    own = set(RunFolder(older).read()["files"])
    assert {
        "train.txt",
        "eval.txt",
        "last.pth",
        "model_best.pth",
        "Parameters.txt",
        "test.md",
        "metrics.json",
    } <= own
    assert "results_demo.npy" in own and not own & set(FOREIGN) and names <= set(contents(older))
    check_there(older, FOREIGN)
    assert (
        len(re.findall("^epoch . step 10:", (older / "train.txt").read_text(), re.MULTILINE)) == 1
    )


def test_an_older_run_is_replaced_when_asked_and_nothing_else(whole, older, refusal):
    place(older, FOREIGN)
    before = contents(older)
    refusal(
        train.main,
        *command(whole, older),
        expected=["last.pth: the folder already contains a run", "--overwrite 1"],
    )
    assert contents(older) == before
    fit(whole, older, "--overwrite", "1", "--seed", "1", "--save_results", "0")
    check_there(older, FOREIGN)
    assert not (older / "results_demo.npy").exists() and len(list(older.glob("*tfevents*"))) == 2


def test_an_older_run_in_two_folders_goes_on(whole, tmp_path):
    models = ["--model_name", tmp_path / "models"]
    fit(whole, tmp_path / "logs", *models)
    for folder in ("models", "logs"):
        (tmp_path / folder / MANIFEST).unlink()
    fit(whole, tmp_path / "logs", *models, "--resume", "auto", "--num_epochs", "2")
    log = (tmp_path / "logs" / "train.txt").read_text()
    assert "epoch 0 step 10:" in log and "epoch 1 step 20:" in log
    assert "train.txt" in RunFolder(tmp_path / "logs").read()["files"]


def test_a_published_run_folder_is_evaluated_and_never_changed(whole, tmp_path, refusal):
    folder = place(tmp_path / "published", {"train.log": "theirs", "README.md": "theirs"})
    as_published(fit(whole, tmp_path / "run", "--embed_size", "32"), folder / "model_best.pth")
    before = contents(folder)
    argv = [folder, "--data_path", whole, "--bert_path", whole / "demo_precomp" / "bert"]
    evaluation.main([str(argument) for argument in argv])
    assert before.items() <= contents(folder).items() and (folder / "test.md").exists()
    before = visible(folder)
    for more in ([], ["--resume", "auto"]):
        error = refusal(
            train.main,
            *command(whole, folder, *more),
            expected=["model_best.pth: the folder already contains a run"],
        )
        assert "--overwrite" not in error  # it would not help
    refusal(
        train.main, *command(whole, folder, "--overwrite", "1"), expected=["move the file away"]
    )
    assert visible(folder) == before
