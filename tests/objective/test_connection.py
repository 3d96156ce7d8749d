"""Where the connection of a block is decided: all connected, a learnt threshold, and the share that
is connected."""

import copy

import pytest
import torch
from helpers import close
from test_graph import batch_of, objective_of
from test_optim import batch_of as training_batch
from test_optim import setting, step

from lib.objective import relation
from lib.objective.relation import InstanceRelations, Relation, Relations

BLOCKS = dict(both=("i2i", "i2t", "t2i", "t2t"), intra=("i2i", "t2t"), inter=("i2t", "t2i"))


@pytest.mark.parametrize("blocks", BLOCKS)
def test_connection_0_connects_all_whatever_connection_does(monkeypatch, blocks):
    monkeypatch.setattr(relation, "connection", None)
    objective = objective_of(topk=4, relation=blocks, connection=0)
    found = objective.relations(*batch_of())
    for name, block in found._asdict().items():
        assert block.connection.dtype == torch.bool
        assert block.connection.all() if name in BLOCKS[blocks] else not block.connection.any()


@pytest.mark.parametrize("connection", [1, 0])
def test_a_threshold_of_one_is_connection_0_to_the_bit(connection):
    results = []
    for options in (dict(threshold=1.0), dict(threshold=0.3, connection=connection)):
        images, captions = batch_of()
        objective = objective_of(topk=4, gnn_loss="vse", base_loss="vse", **options)
        loss = objective(images, captions, torch.arange(4), use_graph=True)
        loss.total.backward()
        results.append([loss.total, images.embedding.grad, captions.embedding.grad])
    is_same = all(torch.equal(first, second) for first, second in zip(*results, strict=True))
    assert is_same is not bool(connection)


@pytest.mark.parametrize("blocks, expected", [
    ("both", (1 + 5 + 2 + 9) / 36), ("intra", (1 + 9) / 18), ("inter", (5 + 2) / 18)
])  # fmt: skip
def test_the_share_is_of_the_blocks_that_take_part_and_counts_weights_above_0(blocks, expected):
    connections = []
    for count in (1, 5, 2, 9):  # soft and hard
        weights = torch.tensor([0.1] * count + [0.0] * (9 - count)).view(3, 3)
        connections.append(weights if count % 2 else weights > 0)
    relations = Relations(*(Relation(found, None) for found in connections))
    found = InstanceRelations(4, 0.5, blocks).connected_share(relations)
    close(found, torch.tensor(expected))
    assert found.ndim == 0 and not found.requires_grad


def test_the_share_comes_with_the_loss_once_the_graph_takes_part():
    for options, use_graph, expected in (
        ({}, True, 0.5),
        (dict(threshold=0.25), True, 0.25),
        (dict(connection=0), True, 1.0),
        ({}, False, None),
        (dict(interaction="none"), True, None),
    ):
        report = step(*setting(**options), training_batch(), use_graph=use_graph)
        found = report.connected
        assert found is None if expected is None else float(found) == expected


class LearntThreshold(InstanceRelations):
    """The recipe: one threshold a block, learnt through soft connections."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.thresholds = torch.nn.ParameterDict(
            {block: torch.nn.Parameter(torch.zeros(())) for block in Relations._fields}
        )

    def connect(self, block, closeness):
        return torch.sigmoid((closeness - self.thresholds[block]) / 0.1)


@pytest.mark.parametrize("interaction", ["fusion", "standalone"])
def test_gradient_reaches_a_learnt_threshold_of_every_block(interaction):
    images, captions = batch_of()
    objective = objective_of(topk=4, gnn_loss="vse", base_loss="vse", interaction=interaction)
    objective.relations = LearntThreshold(4, 0.5)
    loss = objective(images, captions, torch.arange(4), use_graph=True)
    loss.total.backward()
    gradients = [one.grad for one in objective.relations.thresholds.values()]
    assert len(gradients) == 4 and all(one.isfinite() and one != 0 for one in gradients)
    assert loss.connected == 1  # no weight is 0


def test_the_gradient_of_a_learnt_threshold_is_the_difference_quotient():
    images, captions = (
        side._replace(
            embedding=side.embedding.detach().double(),
            unnormalised=side.unnormalised.detach().double(),
        )
        for side in batch_of()
    )
    objective = objective_of(topk=4, gnn_loss="vse", base_loss="vse", relation="intra")
    objective.relations = LearntThreshold(4, 0.5, "intra")
    objective.double()
    threshold = objective.relations.thresholds["i2i"]

    def total(shift=0.0):
        changed = copy.deepcopy(objective)
        changed.relations.thresholds["i2i"].data += shift
        return changed(images, captions, torch.arange(4), use_graph=True).total.detach()

    objective(images, captions, torch.arange(4), use_graph=True).total.backward()
    close(threshold.grad, (total(1e-6) - total(-1e-6)) / 2e-6, 1e-5)


@pytest.mark.parametrize("interaction", ["fusion", "standalone"])
def test_a_graph_without_connections_trains_and_has_no_effect(monkeypatch, interaction):
    monkeypatch.setattr(relation, "connection", lambda closeness, threshold: closeness > 1e9)
    parts = setting(gnn_loss="vse", base_loss="vse", interaction=interaction)
    report = step(*parts, training_batch())
    assert report.connected == 0 and report.is_finite
    images, captions = batch_of()
    objective = objective_of(interaction=interaction)
    before = objective.enhance(images, captions, objective.relations(images, captions))
    images.embedding.data[3], captions.embedding.data[3] = 9, -9
    after = objective.enhance(images, captions, objective.relations(images, captions))
    for old, new in zip(before, after):
        assert torch.equal(old[:3], new[:3]) and not torch.equal(old[3], new[3])
