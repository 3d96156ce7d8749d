"""Training steps on a GPU: no step waits for the device, a step that is not finite changes nothing,
and the loader hands over pinned memory."""

import pytest
import torch
from configurations import (
    ALL_GRAPHS,
    CROSS_ATTENTION,
    OTHERS,
    POOLED,
    batch_of_configuration,
    small_setting,
)
from helpers import same
from test_optim import bad_batch, batch_of, everything, setting

from lib.data.batches import TrainingPairs, batches, training_loader
from lib.data.dataset import RetrievalDataset
from lib.model import bert
from lib.model.options import PRECISIONS
from lib.training import engine, optim

pytestmark = pytest.mark.gpu

CONFIGURATIONS = ALL_GRAPHS | POOLED | OTHERS | CROSS_ATTENTION


@pytest.fixture
def no_synchronisation():
    """Inside, whatever waits for the GPU fails. What is done once, such as loading kernels, may."""

    def watch(function):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()

    return watch


def pinned_batch(name):
    batch = batch_of_configuration(CONFIGURATIONS[name][1])
    return batch._replace(regions=batch.regions.pin_memory(), pieces=batch.pieces.pin_memory())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_no_step_waits_for_the_gpu(no_synchronisation, name, precision):
    model, objective, optimizer = small_setting(*CONFIGURATIONS[name], torch.nn.Module.cuda)
    batch, skipped = pinned_batch(name), torch.zeros((), dtype=torch.int32, device="cuda")

    def step():
        engine.seed_step(0, 0)
        return engine.training_step(
            model, objective, optimizer, batch.to("cuda"), use_graph=True, hardest=True,
            precision=precision, skipped=skipped,
        )  # fmt: skip

    step()
    no_synchronisation(step)
    report = step()
    assert bool(report.is_finite) and int(skipped) == 0


def on_gpu(options):
    model, objective, _ = setting(**options)
    model, objective = model.cuda(), objective.cuda()
    return model, objective, optim.build(model, objective, 1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_that_is_not_finite_changes_nothing(precision):
    parts = on_gpu({})
    settings = dict(use_graph=True, precision=precision)
    engine.training_step(*parts, batch_of().to("cuda"), **settings)
    before = {name: value.clone() for name, value in everything(*parts).items()}
    report = engine.training_step(*parts, bad_batch().to("cuda"), **settings)
    assert not bool(report.is_finite) and same(everything(*parts), before)
    report = engine.training_step(*parts, batch_of().to("cuda"), **settings)
    assert bool(report.is_finite) and not same(everything(*parts), before)


def test_the_loader_hands_over_pinned_memory(whole):
    folder = whole / "demo_precomp"
    split = RetrievalDataset(folder, "train", bert.tokeniser(folder / "bert"))
    loader = training_loader(TrainingPairs(split, seed=0), 20, workers=2)
    found = list(batches(loader, pin_memory=True))
    assert found and all(batch.regions.is_pinned() for batch in found)
    unpinned = batches(training_loader(TrainingPairs(split, seed=0), 20, workers=2))
    assert all(same(list(left), list(right)) for left, right in zip(found, unpinned))
