"""The contents of a checkpoint are checked before anything is changed: options, counters, logs,
weights, moments."""

import math
import shutil

import pytest
import torch
from damage import OPTIONS, contents, saved_with

import eval as evaluation
import train
from lib.model import state
from lib.system import run_folder
from lib.training import engine

BEST, LAST = run_folder.BEST, run_folder.LAST


class Stopped(Exception):
    """Ends a run where a test wants it to end."""


@pytest.fixture(scope="module")
def interrupted(whole, tmp_path_factory):
    """The folder of a run that ended after step 4 of 10, saved after step 3;
    tests leave it as it is."""
    folder, steps, compute = (
        tmp_path_factory.mktemp("runs") / "interrupted",
        [],
        engine.training_step,
    )

    def step(*arguments, **settings):
        steps.append(None)
        if len(steps) > 4:
            raise Stopped
        return compute(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "training_step", step)
        with pytest.raises(Stopped):
            train.main([*command(whole, folder), "--save_step", "3"])
    return folder


def command(data, folder, *more):
    return [*OPTIONS, "--data_path", str(data), "--logger_name", str(folder), *more]


def entry(name, value):
    return lambda content: content | {name: value}


def without(name):
    return lambda content: {key: value for key, value in content.items() if key != name}


def inside(*path, change):
    """Damage: content[path[0]][path[1]]... replaced by change(of it)."""

    def damage(content):
        if not path:
            return change(content)
        copied = list(content) if isinstance(content, list) else dict(content)
        copied[path[0]] = inside(*path[1:], change=change)(copied[path[0]])
        return copied

    return damage


def put(*path):
    """Damage: the last of `path` put in the place that the others name."""
    return inside(*path[:-1], change=lambda _: path[-1])


def moment(name, change):
    return inside("optimizer", "state", 0, name, change=change)


def sharing(content):
    states = content["optimizer"]["state"]
    return put("optimizer", "state", 0, "exp_avg", states[0]["exp_avg_sq"])(content)


LOST = {  # what is changed in last.pth -> what the refusal says was found
    "no epoch": (without("epoch"), ["epoch is missing, expected a whole number from 0 to 1"]),
    "no step": (without("step"), ["step is missing"]),
    "no options": (without("options"), ["options None, expected a dict"]),
    "no optimizer": (without("optimizer"), ["optimizer is missing"]),
    "an epoch in words": (entry("epoch", "1"), ["epoch '1', expected a whole number"]),
    "an epoch that is true": (entry("epoch", True), ["epoch True, expected a whole number"]),
    "a negative epoch": (entry("epoch", -1), ["epoch -1, expected a whole number from 0 to 1"]),
    "an epoch beyond the run": (
        entry("epoch", 7),
        ["epoch 7, expected a whole number from 0 to 1"],
    ),
    "a negative step": (entry("step", -3), ["step -3"]),
    "a huge step": (entry("step", 10**30), ["step 1000000", "expected a whole number from 0 to"]),
    "an endless step": (entry("step", 1 << 1000), ["step a number of 1001 bits"]),
    "a score of NaN": (entry("best_rsum", math.nan), ["best_rsum nan, expected a number from -1"]),
    "a score beyond all": (entry("best_rsum", 1e9), ["best_rsum 1000000000.0"]),
    "a place in words": (put("position", "step_in_epoch", "3"), ["step_in_epoch '3'"]),
    "a place below the epoch": (put("position", "step_in_epoch", -1), ["step_in_epoch -1"]),
    "a place beyond the step": (
        put("position", "step_in_epoch", 4),
        ["step_in_epoch 4 of epoch 0 at step 3"],
    ),
    "a place beyond the epoch": (
        lambda content: put("position", "step_in_epoch", 99)(entry("step", 99)(content)),
        ["step_in_epoch 99, expected 0 to 10"],
    ),
    "no place": (put("position", None), ["position None, expected a dict"]),
    "skipped in words": (put("position", "skipped", "no"), ["skipped 'no'"]),
    "a log elsewhere": (put("position", "log_sizes", {"../x": 1}), ["log_sizes names '../x'"]),
    "a log that is no log": (
        put("position", "log_sizes", {"notes.txt": 1}),
        ["log_sizes names 'notes.txt'"],
    ),
    "a log of negative size": (put("position", "log_sizes", {"train.txt": -1}), ["train.txt -1"]),
    "a log of nothing": (put("position", "log_sizes", {"train.txt": 0}), ["train.txt 0, expected"]),
    "a log of a fraction": (put("position", "log_sizes", {"train.txt": 1.5}), ["train.txt 1.5"]),
    "a log that ends in a line": (
        put("position", "log_sizes", {"train.txt": 7}),
        ["train.txt", "7 bytes"],
    ),
    "reports in words": (
        put("position", "step_log", "reports", "none"),
        ["reports 'none', expected a list"],
    ),
    "a report of nothing": (
        put("position", "step_log", "reports", [{}]),
        ["step_log reports a dict"],
    ),
    "a loss of many numbers": (
        put("position", "step_log", "reports", 0, "loss", torch.ones(3)),
        ["step_log loss a tensor of shape (3,)"],
    ),
    "a connected share of many numbers": (
        put("position", "step_log", "reports", 0, "connected", torch.ones(3)),
        ["step_log connected a tensor of shape (3,)"],
    ),
    "warnings in words": (
        put("position", "step_log", "warned", "none"),
        ["step_log warned 'none', expected a list"],
    ),
    "a term of two lines": (
        put("position", "step_log", "reports", 0, "terms", {"a\nb": torch.ones(())}),
        ["step_log terms ['a\\nb']"],
    ),
    "a step that is neither": (
        put("position", "step_log", "reports", 0, "is_finite", torch.ones(())),
        ["step_log is_finite"],
    ),
    "waiting for NaN": (put("position", "step_log", "waited", math.nan), ["waited nan"]),
    "options in a list": (put("options", [1]), ["options [1], expected a dict"]),
    "options without a seed": (
        inside("options", change=without("seed")),
        ["the option seed is missing"],
    ),
    "an option that is a tensor": (
        put("options", "margin", torch.ones(2)),
        ["margin a tensor of shape (2,)"],
    ),
    "an option that is NaN": (
        put("options", "margin", math.nan),
        ["margin nan, expected a plain value"],
    ),
    "an option of sets": (put("options", "margin", {"a": {1}}), ["margin a set"]),
    "a pooling of no name": (
        put("options", "pooling", "sum"),
        ["pooling 'sum', expected one of maxk+relation"],
    ),
    "no text encoder": (
        put("options", "text_encoder", None),
        ["text_encoder None, expected one of bert, bigru"],
    ),
    "words without a vocabulary": (
        put("options", "text_encoder", "bigru"),
        ["vocabulary None, expected a list"],
    ),
    "a weight of NaN": (
        inside("model", "image_encoder.projection.bias", change=lambda t: t * math.nan),
        ["image_encoder.projection.bias contains NaN or Inf"],
    ),
    "a weight of another shape": (
        put("model", "image_encoder.projection.bias", torch.ones(3)),
        ["projection.bias is (3,), expected (16,)"],
    ),
    "a weight of another type": (
        put("model", "image_encoder.projection.bias", torch.ones(16).double()),
        ["is of type torch.float64"],
    ),
    "a weight too few": (
        inside("model", change=without("image_encoder.projection.bias")),
        ["is missing, expected"],
    ),
    "a weight too many": (
        inside("objective", change=entry("x", torch.ones(1))),
        ["objective has 'x'"],
    ),
    "moments too small": (
        moment("exp_avg", lambda t: t[:1]),
        ["optimizer state 0: exp_avg is (1, 128), expected"],
    ),
    "moments of doubles": (
        moment("exp_avg", torch.Tensor.double),
        ["exp_avg is of type torch.float64"],
    ),
    "moments in another order": (
        moment("exp_avg_sq", lambda t: t.T.contiguous().T),
        ["exp_avg_sq has strides (1, 16), expected (128, 1)"],
    ),
    "moments without memory of their own": (
        moment("exp_avg", lambda t: torch.zeros(1).expand(t.shape)),
        ["exp_avg has strides (0, 0)"],
    ),
    "moments that share memory": (sharing, ["optimizer state shares memory"]),
    "steps that share memory": (
        lambda content: put(
            "optimizer", "state", 0, "step", content["optimizer"]["state"][1]["step"]
        )(content),
        ["optimizer state shares memory"],
    ),
    "moments of one weight lost": (
        inside("optimizer", "state", change=without(0)),
        ["optimizer state 0 is missing"],
    ),
    "all moments lost": (
        put("optimizer", "state", {}),
        ["optimizer state 0 is missing, expected the moments of step"],
    ),
    "a sparse moment": (
        moment("exp_avg", torch.Tensor.to_sparse),
        ["exp_avg is not a plain tensor"],
    ),
    "a moment of Inf": (moment("exp_avg", lambda t: t + math.inf), ["exp_avg contains NaN or Inf"]),
    "negative squares": (moment("exp_avg_sq", lambda t: t - 1), ["exp_avg_sq is negative"]),
    "a moment too few": (
        inside("optimizer", "state", 0, change=without("exp_avg")),
        ["optimizer state 0 is a dict"],
    ),
    "moments of nothing": (
        inside("optimizer", "state", change=entry(9999, {})),
        ["optimizer state of parameter 9999"],
    ),
    "steps of the future": (moment("step", lambda t: t + 100), ["step 103, expected 0 to 3"]),
    "half a step": (moment("step", lambda t: t - 0.5), ["step 2.5, expected 0 to 3"]),
    "a group too few": (
        inside("optimizer", "param_groups", change=lambda found: found[:1]),
        ["1 groups"],
    ),
    "another rate": (
        put("optimizer", "param_groups", 0, "initial_lr", 1e9),
        ["initial_lr 1000000000.0, expected"],
    ),
    "a rate of NaN": (
        put("optimizer", "param_groups", 0, "lr", math.nan),
        ["lr nan, expected a number from 0 to"],
    ),
    "betas in words": (
        put("optimizer", "param_groups", 0, "betas", "ab"),
        ["betas 'ab', expected [0.9, 0.999]"],
    ),
    "other parameters": (
        put("optimizer", "param_groups", 0, "params", [0, 0]),
        ["group encoders: params [0, 0]"],
    ),
}


@pytest.mark.parametrize("damage, expected", LOST.values(), ids=LOST)
def test_a_damaged_state_is_refused_before_anything_is_changed(
    whole, interrupted, tmp_path, refusal, damage, expected
):
    folder = shutil.copytree(interrupted, tmp_path / "run")
    content = torch.load(folder / LAST, weights_only=True)
    torch.save(damage(content), folder / LAST)
    before = contents(folder)
    expected = [
        folder / LAST if "bytes" not in expected[-1] else folder,
        *expected,
        "expected",
        "--resume none",
    ]
    refusal(train.main, *command(whole, folder, "--resume", "auto"), expected=expected)
    assert contents(folder) == before


def test_fewer_epochs_than_are_trained_are_refused(whole, finished, tmp_path, refusal):
    folder = shutil.copytree(finished, tmp_path / "run")
    saved_with(folder / LAST, epoch=1)
    argv = command(whole, folder, "--resume", "auto")
    train.main(argv)  # all epochs are done: the table alone
    content = torch.load(folder / LAST, weights_only=True)
    options = content["options"] | {"num_epochs": 3}
    saved_with(folder / LAST, epoch=2, step=20, options=options)
    expected = ["has trained 2 epochs (found --num_epochs 1", "Give --num_epochs 2"]
    refusal(train.main, *argv, expected=expected)


def test_values_are_shown_short():
    assert state.short_repr("x" * 1000) == "'" + "x" * 59
    assert state.short_repr(torch.ones(2, 3)) == "a tensor of shape (2, 3)"
    assert (
        state.short_repr([1, "a", None]) == "[1, 'a', None]" and state.short_repr([[1]]) == "a list"
    )


DAMAGED_BEST = {
    "no checkpoint": (lambda content: {"format": "hrem-1"}, "not a checkpoint of this model"),
    "another size": (
        put("model", "image_encoder.mlp.0.weight", torch.ones(3)),
        "mlp.0.weight is (3,)",
    ),
}


@pytest.mark.parametrize("damage, expected", DAMAGED_BEST.values(), ids=DAMAGED_BEST)
def test_a_damaged_best_model_is_met_before_the_run_goes_on(
    whole, finished, tmp_path, refusal, damage, expected
):
    folder = shutil.copytree(finished, tmp_path / "run")
    torch.save(damage(torch.load(folder / BEST, weights_only=True)), folder / BEST)
    before = contents(folder)
    argv = command(whole, folder, "--resume", "auto")
    assert "move it away" not in refusal(
        train.main, *argv, expected=[folder / BEST, expected, "Put a complete copy"]
    )
    argv += ["--num_epochs", "2"]
    refusal(
        train.main,
        *argv,
        expected=[folder / BEST, expected, "Put a complete copy", "or move it away"],
    )
    assert contents(folder) == before
    (folder / BEST).unlink()
    train.main(argv)  # the remedy


def test_nothing_is_built_where_a_checkpoint_says_the_data_are(finished, tmp_path, refusal):
    content = torch.load(finished / BEST, weights_only=True)
    options = content["options"] | dict(data_path=str(tmp_path / "elsewhere"))
    torch.save(content | dict(options=options), tmp_path / "file.pth")
    refusal(
        evaluation.main, tmp_path / "file.pth", expected=["elsewhere/demo_precomp: no such folder"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]
