"""The state of a run, its loop and its reporting, each by itself."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from damage import OPTIONS
from helpers import read, same

import arguments
from lib.evaluation import encoding
from lib.evaluation.metrics import Recalls, Scores
from lib.system.run_folder import BEST, LAST
from lib.training import engine, reporting
from lib.training.loop import Training
from lib.training.run_parts import Data
from lib.training.run_start import RunFolders
from lib.training.run_state import RunState


def open_state(whole, folder, *more):
    """The `RunState` of a run in `folder`, whose folders are not locked any more."""
    parser = arguments.training_parser()
    argv = [*OPTIONS, "--data_path", str(whole), "--logger_name", str(folder), *more]
    (options,) = arguments.runs(arguments.parse_training(parser, argv))
    with RunFolders(options.model_name, options.logger_name) as folders:
        state = RunState(options, folders)
        if not more:
            with torch.no_grad():
                for parameter in state.model.parameters():
                    parameter += 1
            state.skipped.fill_(3)
            state.save()
    return state


def test_a_state_that_is_restored_is_the_one_that_was_saved(whole, tmp_path):
    saved = open_state(whole, tmp_path / "run")
    restored = open_state(whole, tmp_path / "run", "--resume", "auto")
    fresh = open_state(whole, tmp_path / "other", "--resume", "auto")
    assert same(dict(restored.model.state_dict()), dict(saved.model.state_dict()))
    assert same(dict(restored.objective.state_dict()), dict(saved.objective.state_dict()))
    assert not same(dict(fresh.model.state_dict()), dict(saved.model.state_dict()))
    assert int(restored.skipped) == 3 and int(fresh.skipped) == 0
    for state in (restored, fresh):
        assert (state.epoch, state.step_in_epoch, state.step, state.best_rsum) == (0, 0, 0, -1)


def test_a_best_model_holds_no_position(whole, tmp_path):
    state = open_state(whole, tmp_path / "run")
    state.write(state.best_file, 1)
    assert read(tmp_path / "run", LAST)["position"]["skipped"] == 3
    assert (
        "position" not in read(tmp_path / "run", BEST)
        and read(tmp_path / "run", BEST)["epoch"] == 1
    )


# The loop


class Log:
    """A log that keeps what is written."""

    tensorboard = None

    def __init__(self):
        self.lines, self.points = [], []

    def evaluation(self, text):
        self.lines.append(text)

    def scalars(self, values, step):
        self.points.append((step, values))


@pytest.fixture
def state():
    """What loop and reporting read of a state, and a record of the checkpoints that are written."""
    written = []
    return SimpleNamespace(
        model=torch.nn.Identity(), objective=torch.nn.Identity(), device="cpu", log=Log(), epoch=2,
        step=30, best_rsum=-1.0, best_file=Path("model_best.pth"), last_file=Path("last.pth"),
        skipped=torch.tensor(0), data=Data(None, None, None),
        options=SimpleNamespace(val_split="dev", dataset="demo", save_results=0), average=None,
        write=lambda path, epoch, model, is_average: written.append(
            (path.name, epoch, model, is_average)
        ), written=written,
    )  # fmt: skip


def similar(correct):
    """Similarities of 4 images with 20 captions, where the first `correct` images match their
    captions."""
    found = np.zeros((4, 20), np.float32)
    for image in range(4):
        found[image if image < correct else (image + 1) % 4, 5 * image : 5 * image + 5] = 1
    return found


def test_the_first_of_the_best_validations_is_kept(state, monkeypatch):
    found = iter([similar(2), similar(2), similar(4), similar(3)])
    monkeypatch.setattr(encoding, "similarities", lambda *arguments: next(found))
    training, kept = Training(state), []
    for step in (0, 30, 60, 90):
        state.step = step
        training._validate()
        kept.append(len(state.written))
    assert kept == [1, 1, 2, 2] and state.best_rsum == 600
    # before the first step no epoch is counted
    assert state.written == [
        ("model_best.pth", 2, state.model, False), ("model_best.pth", 3, state.model, False),
    ]  # fmt: skip
    assert [line.endswith(" (best so far)") for line in state.log.lines] == [
        True,
        False,
        True,
        False,
    ]


def test_of_weights_and_their_average_the_better_is_kept(state, monkeypatch):
    found = iter([similar(1), similar(2), similar(4), similar(3)])
    models = []
    monkeypatch.setattr(
        encoding, "similarities", lambda model, *rest: models.append(model) or next(found)
    )
    state.average = SimpleNamespace(model=torch.nn.Identity(), steps=torch.tensor(5))
    training, averaged = Training(state), state.average.model
    for _ in range(2):
        training._validate()
    assert models == [state.model, averaged, state.model, averaged]
    assert [one[2:] for one in state.written] == [
        (state.model, False), (averaged, True), (state.model, False),
    ]  # fmt: skip
    assert ["averaged weights" in line for line in state.log.lines] == [False, True, False, True]
    assert "average/rsum" in state.log.points[1][1] and "rsum" in state.log.points[2][1]
    state.average.steps.zero_()  # before its epoch there is none
    monkeypatch.setattr(encoding, "similarities", lambda *arguments: similar(1))
    training._validate()
    assert len(state.log.lines) == 5


def test_a_signal_ends_the_loop_with_its_status(state, capsys):
    training = Training(state)
    training._stop_on_signal(0)
    assert not capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        training._stop_on_signal(130)
    assert ended.value.code == 130
    assert "stopped at step 30, saved in last.pth" in capsys.readouterr().out


def test_the_loop_goes_on_until_there_are_too_many_skipped_steps(state):
    state.skipped.fill_(engine.MOST_SKIPPED - 1)
    Training(state)._stop_if_diverged()  # one too few


# The reporting


def test_a_validation_is_a_line_and_ten_points(state):
    scores = Scores(Recalls(10.0, 20.0, 30.0, 4.0, 5.5), Recalls(11.0, 21.0, 31.0, 5.0, 6.5))
    reporting.write_validation(state, scores, is_best=False)
    assert state.log.lines == [
        "epoch 2 step 30 dev: image to text R@1 10.0 R@5 20.0 R@10 30.0 median 4 mean 5.5; "
        "text to image R@1 11.0 R@5 21.0 R@10 31.0 median 5 mean 6.5; rsum 123.0"
    ]
    ((step, values),) = state.log.points
    assert step == 30 and values == dict(
        r1=10,
        r5=20,
        r10=30,
        medr=4,
        meanr=5.5,
        r1i=11,
        r5i=21,
        r10i=31,
        medri=5,
        meanri=6.5,
        rsum=123,
    )


@pytest.mark.parametrize(
    "save_results, expected",
    [
        (0, ["test.md", "metrics.json"]),
        (1, ["test.md", "metrics.json", "results_demo.npy"]),
    ],
)
def test_the_tables_of_a_run_are_named_before_it_starts(state, save_results, expected):
    assert reporting.find_tables(state) == []  # without a test split there are none
    state.data = state.data._replace(test=SimpleNamespace(split="test"))
    state.options.save_results = save_results
    assert reporting.find_tables(state) == expected
