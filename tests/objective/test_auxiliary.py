"""Terms beside the losses of pairs, against loops."""

import pytest
import torch
from helpers import normal
from test_losses import check_gradients, close, pairs

from lib.objective.auxiliary import FrozenFeatures, SoftLabels, decorrelation_loss


def naive_decorrelation(u, w):
    """A pair of features at a time."""
    loss = 0
    for d in range(u.size(1)):
        for e in range(u.size(1)):
            cosine = u[:, d] @ w[:, e] / (u[:, d].norm() * w[:, e].norm())
            loss = loss + ((1 - cosine) ** 2 if d == e else 0.0051 * cosine**2)
    return loss


@pytest.mark.parametrize("count", [1, 2, 7])
def test_decorrelation_is_the_loop_and_so_is_its_gradient(count):
    u, w = pairs(count, seed=count)
    check_gradients(decorrelation_loss(u, w), naive_decorrelation(u, w), (u, w))


def test_features_that_agree_and_are_orthogonal_cost_nothing():
    u = torch.eye(3).repeat(2, 1)
    close(decorrelation_loss(u, 2 * u), 0)  # the length of a column does not matter
    close(decorrelation_loss(u, -u), 3 * 4)
    close(decorrelation_loss(u, u[:, [1, 2, 0]]), 3 + 3 * 0.0051)


def test_a_feature_that_is_always_zero_has_a_finite_gradient():
    u, w = pairs(4, seed=1)
    u = (u * (torch.arange(u.size(1)) > 0)).detach().requires_grad_()
    loss = decorrelation_loss(u, w)
    gradient = torch.autograd.grad(loss, u)[0]
    assert loss.isfinite() and gradient.isfinite().all() and gradient.abs().max() < 1e5


def naive_labels(features):
    """softmax(T / 0.2), a pair of samples at a time."""
    units = [each / each.norm() for each in features]
    centred = [each - sum(units) / len(units) for each in units]
    weights = [[(a @ b / (a.norm() * b.norm()) / 0.2).exp() for b in centred] for a in centred]
    return [[weight / sum(row) for weight in row] for row in weights]


def naive_soft_labels(similarities, frozen, scale):
    count, loss = len(similarities), 0
    for features, rows in zip(frozen, (similarities, similarities.T)):
        for labels, row in zip(naive_labels(features), rows):
            found = (scale * row).exp() / (scale * row).exp().sum()
            loss = loss + sum(p * (p / q).log() for p, q in zip(labels, found))
    return loss / (2 * count)


def frozen_of(count):
    return FrozenFeatures(*(normal(count, 6, seed=s, dtype=torch.float64) + 1 for s in (3, 4)))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_soft_labels_are_the_loop_and_so_are_their_gradients(count):
    u, w = pairs(count, seed=count)
    labels, frozen = SoftLabels(None).double(), frozen_of(count)
    close(labels.log_scale.exp(), 1 / 0.45, absolute=1e-6)
    expected = naive_soft_labels(u @ w.T, frozen, labels.log_scale.exp())
    assert expected > 0.01
    check_gradients(labels(u @ w.T, frozen), expected, (u, w, labels.log_scale))


def test_soft_labels_of_one_pair_cost_nothing():
    u, w = pairs(1, seed=0)
    close(SoftLabels(None)(u @ w.T, frozen_of(1)), 0)


def test_similarities_of_which_the_labels_are_the_softmax_cost_nothing():
    frozen = frozen_of(5)
    cosines = torch.tensor(naive_labels(frozen.images), dtype=torch.float64).log()
    cosines = (cosines - cosines.diagonal().unsqueeze(1)) * 0.2 + 1  # T: a row's own cosine is 1
    labels = SoftLabels(None).double()
    same = frozen._replace(captions=frozen.images)
    close(labels(cosines * 0.45 / 0.2, same), 0, absolute=1e-6)
    assert labels(cosines * 0.45 / 0.2, frozen) > 0.01


def test_frozen_features_are_sums_over_true_fragments_without_special_pieces():
    words = normal(9, 4)
    words[:4] = 0  # padding and special pieces
    regions, pieces = normal(2, 3, 5, seed=1), torch.tensor([[1, 5, 6, 2], [1, 8, 2, 0]])
    regions[1, 2] = 0
    labels = SoftLabels(words)
    found = labels.read(regions.requires_grad_(), pieces)
    close(found.images, torch.stack([regions[0].sum(0), regions[1, :2].sum(0)]))
    close(found.captions, torch.stack([words[5] + words[6], words[8]]))
    assert not found.images.requires_grad and "words" not in labels.state_dict()
