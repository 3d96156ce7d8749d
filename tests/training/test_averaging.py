"""The average of the weights against a loop over steps, and in a whole run."""

import copy
import re

import pytest
import torch
from helpers import Stopped, fit, make_data, read, same, stop_at_step
from processes import in_processes
from test_distributed_steps import tiny_setting
from torch import nn

from benchmarks.scaling import own_shard
from lib.model.checkpoint import load
from lib.results.html_report import read_curves
from lib.system import distributed
from lib.system.errors import InputError
from lib.training import engine, optim
from lib.training.averaging import WeightAverage
from lib.training.validations import read_validations

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


YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_average_is_a_mean_and_then_exponential(decay):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average, expected = WeightAverage(model, decay), None
    average.update(model, NO)  # a first step that is skipped
    for step in range(1, 15):
        changed(model, step)
        average.update(model, YES)
        average.update(model, NO)
        values = [value.double() for value in model.state_dict().values()]
        weight = max(1 - decay, 1 / step) if decay else 1 / step
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
        first.update(model, YES)
    second.restore(copy.deepcopy(first.state()))
    for average in (first, second):
        average.update(model, YES)
    assert same(first.state(), second.state()) and first.state()["steps"] == 5


def averaged_steps():
    """Five steps of the small model, of which the second and third are not finite in one process.
    Returns the state of the average after each, and of the model in the end."""
    model, objective, batches = tiny_setting(base_loss="infonce", interaction="none")
    optimizer = optim.build(model, objective, learning_rate=1e-3)
    replicas = distributed.wrap_ddp(engine.BatchLoss(model, objective))
    average, found = WeightAverage(model, 0.5), []
    for number, batch in enumerate(batches[:5]):
        batch = own_shard(batch)
        if number in (1, 2) and distributed.rank() == distributed.world_size() - 1:
            batch.regions[0, 0, 0] = float("nan")
        report = engine.training_step(
            model, objective, optimizer, batch, use_graph=False, replicas=replicas
        )
        average.update(model, report.is_finite)
        found.append(copy.deepcopy(average.state()))
    return found, copy.deepcopy(dict(model.state_dict()))


def test_a_step_that_is_skipped_leaves_the_average_as_it_is():
    found, model = averaged_steps()
    assert [state["steps"] for state in found] == [1, 1, 1, 2, 3]
    assert same(found[0], found[1]) and same(found[0], found[2])
    assert not same(found[2]["model"], found[3]["model"])
    for name, value in found[4]["model"].items():
        assert value.isfinite().all() and ("num_b" not in name or torch.equal(value, model[name]))


def test_the_average_of_two_processes_is_that_of_one_and_the_same_in_both():
    (alone, _), (first, second) = averaged_steps(), in_processes(2, averaged_steps)
    assert same(first, second)
    assert [state["steps"] for state in first[0]] == [1, 1, 1, 2, 3]
    for name, value in alone[-1]["model"].items():
        if value.dim() > 1:  # Adam moves by its rate what has no gradient but rounding: not most
            assert (first[0][-1]["model"][name] - value).abs().median() < 2e-5, name


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
    read_back = read_validations(whole)
    assert [(one.epoch, one.is_average, one.rsum) for one in read_back] == found
    curves = read_curves(whole)
    assert curves.has_average and curves.rsum == [
        (4 * epoch + 4, rsum) for epoch, averaged, rsum in found if not averaged
    ]
    rows = re.findall(
        r"^\|[* ]+(\d)( averaged)? \|", (whole / "eval.txt").read_text(), re.MULTILINE
    )
    assert [(int(epoch), bool(averaged)) for epoch, averaged in rows] == [one[:2] for one in found]
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
