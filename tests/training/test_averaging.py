"""The average of the weights against a loop over steps, and in a whole run."""

import copy
import re

import pytest
import torch
from helpers import Stopped, fit, make_data, read, same, stop_at_step
from torch import nn

from lib.model.checkpoint import load
from lib.system.errors import InputError
from lib.training.averaging import WeightAverage

OPTIONS = (
    "--dataset demo --num_epochs 3 --batch_size 30 --embed_size 16 --nhead 2 --interaction none "
    "--base_loss infonce --workers 0 --save_results 0 --schedule cosine --lr_warmup 3 "
    "--learning_rate 0.01 --save_step 3 --average_from 1 --average_decay 0.6"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=24, dev=10, test=10)  # four steps an epoch


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return fit(OPTIONS, data, tmp_path_factory.mktemp("runs") / "whole")


def changed(model, step):
    """`model` after a step that changes everything."""
    with torch.no_grad():
        for number, value in enumerate(model.state_dict().values()):
            value.copy_(torch.full_like(value, 10 * step + number))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_average_is_a_mean_and_then_exponential(decay):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average, expected = WeightAverage(model, decay), None
    for step in range(1, 15):
        changed(model, step)
        average.update(model)
        values = [value.double() for value in model.state_dict().values()]
        weight = max(1 - decay, 1 / step)
        expected = [
            weight * value + (1 - weight) * (before if step > 1 else 0)
            for value, before in zip(values, expected or values)
        ]
    for (name, found), wanted, now in zip(
        average.model.state_dict().items(), expected, model.state_dict().values()
    ):
        torch.testing.assert_close(found.double(), now.double() if "num_b" in name else wanted)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_an_average_goes_on_from_its_state():
    model = nn.Linear(2, 2)
    first, second = WeightAverage(model, 0.9), WeightAverage(model, 0.9)
    for step in range(4):
        changed(model, step)
        first.update(model)
    second.restore(copy.deepcopy(first.state()))
    for average in (first, second):
        average.update(model)
    assert same(first.state(), second.state())


def validations(folder):
    """(epoch, whether averaged, rsum) of every validation of a run."""
    return [
        (int(epoch), bool(averaged), float(rsum))
        for epoch, averaged, rsum in re.findall(
            r"^epoch (\d+) step \d+ dev: (averaged weights, )?.*rsum (\S+)",
            (folder / "eval.txt").read_text(), re.MULTILINE,
        )
    ]  # fmt: skip


def test_the_average_is_validated_from_its_epoch_on_and_the_best_of_all_is_kept(whole):
    found = validations(whole)
    assert [one[:2] for one in found] == [
        (0, False), (1, False), (1, True), (2, False), (2, True),
    ]  # fmt: skip
    best = max(found, key=lambda one: one[2])
    content, title = load(whole / "model_best.pth"), (whole / "test.md").read_text().split("\n")[0]
    assert (content.epoch - 1, content.is_average) == best[:2]
    assert ("averaged weights" in title) == best[1]
    last, kept = read(whole, "last.pth"), read(whole)
    source = last["average"]["model"] if best[:2] == (2, True) else last["model"]
    assert last["average"]["steps"] == 8
    assert best[0] < 2 or same(kept["model"], source)


@pytest.mark.parametrize("step", [2, 5, 8, 11])
def test_a_stopped_run_goes_on_with_its_average(data, whole, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patched:
        stop_at_step(patched, step)
        with pytest.raises(Stopped):
            fit(OPTIONS, data, tmp_path / "run")
    fit(OPTIONS, data, tmp_path / "run", "--resume", "auto")
    for name in ("last.pth", "model_best.pth"):
        ours, theirs = read(tmp_path / "run", name), read(whole, name)
        for part in ("model", "optimizer", "best_rsum", "average", "is_average"):
            assert same(ours.get(part), theirs.get(part)), part
    assert validations(tmp_path / "run") == validations(whole)


@pytest.mark.parametrize("damage", [
    dict(steps=-1), dict(steps="many"), dict(model={}), dict(model=3),
])  # fmt: skip
def test_a_damaged_average_is_refused(data, whole, tmp_path, damage):
    fit([*OPTIONS, "--num_epochs", "1"], data, tmp_path)
    content = read(tmp_path, "last.pth")
    content["average"] |= damage
    torch.save(content, tmp_path / "last.pth")
    with pytest.raises(InputError, match="does not fit this run"):
        fit(OPTIONS, data, tmp_path, "--resume", "auto")


def test_a_run_is_not_resumed_with_another_average(data, tmp_path):
    fit([*OPTIONS, "--num_epochs", "1"], data, tmp_path)
    with pytest.raises(InputError, match="--average_decay 0.7"):
        fit(OPTIONS, data, tmp_path, "--resume", "auto", "--average_decay", "0.7")
