"""Terms beside the losses of pairs, against loops."""

import pytest
import torch
from test_losses import check_gradients, close, pairs

from lib.objective.auxiliary import decorrelation_loss


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
