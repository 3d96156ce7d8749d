"""Losses of several matrices at once against one after the other."""

import pytest
import torch
from test_losses import MARGIN, check_gradients, close, pairs

from lib.objective.losses import (
    find_positives,
    hinge_loss,
    similarity_matrices,
    triplet_loss,
)


def test_several_triplet_losses_are_each_drawn_in_its_turn():
    """Losses, gradients and the state of the generator are those of one after the other."""
    positives = find_positives(torch.tensor([3, 1, 3, 2, 4]))
    leaves = [leaf for seed in range(3) for leaf in pairs(5, seed)]
    sides = [leaves[:2], leaves[2:4], leaves[4:]]
    ours, theirs = (torch.Generator().manual_seed(1) for _ in range(2))
    found = triplet_loss(similarity_matrices(sides), positives, MARGIN, 1.7, ours)
    expected = torch.stack(
        [triplet_loss(u @ w.T, positives, MARGIN, 1.7, theirs) for u, w in sides]
    )
    assert (expected > 0).all() and torch.equal(ours.get_state(), theirs.get_state())
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    close(found.detach(), expected.detach())
    check_gradients((weights * found).sum(), (weights * expected).sum(), leaves)


@pytest.mark.parametrize("negatives", ["all", "hardest", "selective"])
def test_several_hinge_losses_are_those_of_each(negatives):
    positives = find_positives(torch.tensor([3, 1, 3, 2, 4]))
    leaves = [leaf for seed in range(2) for leaf in pairs(5, seed)]
    sides = [leaves[:2], leaves[2:]]
    found = hinge_loss(similarity_matrices(sides), positives, MARGIN, negatives)
    expected = torch.stack([hinge_loss(u @ w.T, positives, MARGIN, negatives) for u, w in sides])
    close(found.detach(), expected.detach())
    check_gradients(found @ found.detach(), expected @ found.detach(), leaves)
