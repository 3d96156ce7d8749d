"""Training steps on a GPU: no step waits for the device, a step that is not finite changes nothing,
and the loader hands over pinned memory."""

import itertools

import pytest
import torch
from helpers import same
from published import make_model, make_objective, small_bert
from test_optim import bad_batch, batch_of, everything, setting
from torch import nn

from lib.data.batches import TrainingPairs, batches, training_loader
from lib.data.dataset import RetrievalDataset
from lib.model import bert
from lib.model.options import POOLINGS, PRECISIONS
from lib.objective.options import LOSSES
from lib.training import engine, optim

pytestmark = pytest.mark.gpu

GRAPHS = [
    *itertools.product(("fusion", "standalone"), ("both", "intra", "inter")), ("none", "both")
]  # fmt: skip
CONFIGURATIONS = {
    **{
        f"{interaction}, {relation}, {loss}": (
            dict(interaction=interaction, relation=relation, base_loss=loss, gnn_loss=loss), {}
        )
        for (interaction, relation), loss in itertools.product(GRAPHS, LOSSES)
    },
    **{pooling: ({}, dict(pooling=pooling)) for pooling in POOLINGS},
    "masked padding": (dict(mask_padding=1), dict(mask_padding=1)),
    "everything connected": (dict(connection=0), {}),
    "no relevance": (dict(relevance=0), {}),
    "squared distance": (dict(distance="l2sq"), {}),
    "BiGRU": ({}, dict(reader="bigru")),
}  # fmt: skip


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


def small_setting(graph, encoders):
    """A small model, its objective and its optimiser on the GPU, in training mode."""
    reader = small_bert(vocab_size=90, hidden_size=24, num_attention_heads=3, intermediate_size=32)
    if encoders.get("reader") == "bigru":
        reader = nn.Embedding(90, 30)
    shared = dict(embed_size=64, nhead=4, dropout=0.1)
    settings = shared | encoders | dict(reader=reader)
    model = make_model(region_dim=12, **settings).cuda().train()
    objective = make_objective(topk=5, **shared, **graph).cuda().train()
    return model, objective, optim.build(model, objective, 1e-4)


def pinned_batch():
    batch = batch_of(lengths=(14, 9, 8, 6, 5, 3, 3, 2))
    return batch._replace(regions=batch.regions.pin_memory(), pieces=batch.pieces.pin_memory())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_no_step_waits_for_the_gpu(no_synchronisation, name, precision):
    model, objective, optimizer = small_setting(*CONFIGURATIONS[name])
    batch, skipped = pinned_batch(), torch.zeros((), dtype=torch.int32, device="cuda")

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
