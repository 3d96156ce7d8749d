"""The folders of a run: one in the other, with logs that are gone,
with the best model of another run."""

import shutil

import pytest
import torch
from damage import OPTIONS, contents

import train


def command(whole, models, logs, *more):
    return [
        str(one)
        for one in (
            *OPTIONS,
            "--data_path",
            whole,
            "--model_name",
            models,
            "--logger_name",
            logs,
            *more,
        )
    ]


@pytest.mark.parametrize(
    "models, logs", [("run", "run/log"), ("run/models", "run"), ("run", "run/a/log")]
)
def test_one_folder_of_a_run_may_lie_in_the_other(whole, tmp_path, refusal, models, logs):
    """Scripts of the published code keep --logger_name in --model_name."""
    models, logs = tmp_path / models, tmp_path / logs
    train.main(command(whole, models, logs))
    before = contents(tmp_path)
    refusal(
        train.main, *command(whole, models, logs), expected=[models / "last.pth", "--resume auto"]
    )
    train.main(command(whole, models, logs, "--resume", "auto", "--num_epochs", 2))
    assert torch.load(models / "last.pth", weights_only=True)["epoch"] == 2
    train.main(command(whole, models, logs, "--overwrite", "1"))
    after = contents(tmp_path)
    assert {name for name in before if "events" not in name.name} == {
        n for n in after if "events" not in n.name
    }
    assert (
        after[(logs / "train.txt").relative_to(tmp_path)]
        == before[(logs / "train.txt").relative_to(tmp_path)]
    )


@pytest.mark.parametrize(
    "models, logs, notes", [("run", "run/log", "run/notes.txt"), ("run/models", "run", "run/x/y")]
)
def test_files_beside_the_inner_folder_are_still_in_the_way(
    whole, tmp_path, refusal, models, logs, notes
):
    (tmp_path / notes).parent.mkdir(parents=True)
    (tmp_path / notes).write_text("mine")
    refusal(
        train.main,
        *command(whole, tmp_path / models, tmp_path / logs),
        expected=["run: the folder contains other files"],
    )
    assert {str(name) for name in contents(tmp_path)} == {notes}


def test_logs_that_are_gone_are_told(whole, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    size = (run / "train.txt").stat().st_size
    (run / "train.txt").unlink()
    train.main(command(whole, run, run, "--resume", "auto", "--num_epochs", 2))
    assert (
        f"warning: {run / 'train.txt'}: no such file, expected {size} bytes"
        in capsys.readouterr().out
    )
    assert "epoch 1 step" in (run / "train.txt").read_text()


def test_the_best_model_of_another_run_is_not_taken_for_this_one(
    whole, finished, tmp_path, refusal
):
    """Its table would stand at the end."""
    run = shutil.copytree(finished, tmp_path / "run")
    content = torch.load(run / "model_best.pth", weights_only=True)
    torch.save(content | {"best_rsum": content["best_rsum"] - 1}, run / "model_best.pth")
    before = contents(run)
    for models in (run, tmp_path / "new"):
        expected = [run / "model_best.pth", "another run or of another epoch", "move this one away"]
        refusal(
            train.main,
            *command(whole, models, models, "--resume", run, "--num_epochs", 2),
            expected=expected,
        )
    assert contents(run) == before
    (run / "model_best.pth").unlink()
    train.main(command(whole, run, run, "--resume", "auto", "--num_epochs", 2))
    assert torch.load(run / "model_best.pth", weights_only=True)["epoch"] == 2


def test_a_best_model_that_was_written_just_before_a_kill_is_taken(whole, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    content = torch.load(run / "model_best.pth", weights_only=True)
    torch.save(
        content | {"epoch": 2, "best_rsum": content["best_rsum"] + 1}, run / "model_best.pth"
    )
    train.main(command(whole, run, run, "--resume", "auto", "--num_epochs", 2))
    assert torch.load(run / "last.pth", weights_only=True)["epoch"] == 2
