"""Every option of the objective changes the terms of the loss that it is for, and no other."""

import dataclasses

import pytest
import torch
from helpers import normal
from test_graph import batch_of, objective_of

from lib.objective.auxiliary import FrozenFeatures
from lib.objective.options import ObjectiveOptions

BASE, GRAPH = {"base"}, {"cross", "graph"}
REGULARISER = {"regulariser"}
MIXTURE = dict(base_loss="infonce+vse", gnn_loss="infonce+vse")
READ_BY = dict(  # the losses that read an option, if the usual ones do not
    mask_repeat=dict(negatives="all"),
    negatives=dict(gnn_loss="vse"),
    temperature=MIXTURE,
    vse_weight=MIXTURE,
)
CHANGES = dict(  # another value, and the terms that it changes
    base_loss=("infonce", BASE),
    gnn_loss=("vse", GRAPH),
    margin=(0.3, BASE | GRAPH),
    negatives=("all", BASE | GRAPH),
    temperature=(0.2, BASE | GRAPH),
    vse_weight=(1.0, BASE | GRAPH),
    decorrelation=(0.5, {"decorrelation"}),
    soft_labels=(0.5, {"soft_labels"}),
    longest_distance=(1.2, GRAPH),
    mask_repeat=(0, BASE | GRAPH),
    interaction=("standalone", GRAPH),
    relation=("intra", GRAPH | REGULARISER),
    connection=(0, GRAPH),
    relevance=(0, GRAPH | REGULARISER),
    distance=("l2sq", GRAPH | REGULARISER),
    num_layers_enc=(2, GRAPH),
    mask_weight=(3.0, GRAPH),
    threshold=(0.2, GRAPH),
    topk=(3, GRAPH | REGULARISER),
    reg_loss_weight=(3.0, REGULARISER),
    norm_input=(0, GRAPH),
    cross_loss=(0, {"cross"}),
)


def terms(**options):
    """Terms of the loss of a batch in which two pairs are of one image."""
    torch.manual_seed(0)
    # vse draws nothing: what is drawn for the other terms does not depend on the base loss
    objective = objective_of(**(dict(topk=4, base_loss="vse") | options))
    images, captions = batch_of(8, lengths=(9, 8, 7, 6, 5, 5, 4, 3))
    image_ids = torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])
    loss = objective(
        images._replace(unnormalised=images.unnormalised * 3), captions, image_ids, use_graph=True,
        hardest=True, generator=torch.Generator().manual_seed(0),
        frozen=FrozenFeatures(normal(8, 5, seed=1), normal(8, 6, seed=2)),
    )  # fmt: skip
    return {name: float(value.detach()) for name, value in loss.terms.items()}


def test_every_option_is_here():
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(ObjectiveOptions)}


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_its_terms_and_no_other(name):
    value, expected = CHANGES[name]
    others = READ_BY.get(name, {})
    before, after = terms(**others), terms(**others | {name: value})
    changed = {term for term in before | after if before.get(term) != after.get(term)}
    assert changed == expected
