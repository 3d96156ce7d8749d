"""InfoNCE against a loop over pairs, and its temperature."""

import math

import pytest
import torch
from test_losses import check_gradients, close, naive_positives, pairs

from lib.objective.losses import InfoNCE, find_positives


def naive_infonce(u, w, is_positive, scale):
    """Mean over anchors of both directions of -log softmax at the own pair;
    other positives are not in the sum."""
    losses = []
    for rows in (u @ w.T, w @ u.T):
        for anchor in range(len(u)):
            others = [j for j in range(len(u)) if j == anchor or not is_positive[anchor][j]]
            denominator = sum((scale * rows[anchor, j]).exp() for j in others)
            losses.append(denominator.log() - scale * rows[anchor, anchor])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("mask_repeat", [False, True])
@pytest.mark.parametrize(
    "seed, ids", [(0, [0, 1]), (1, [3, 1, 3, 2, 3]), (2, [*range(9)]), (3, [0, 0, 1, 1, 2, 2, 2])]
)
def test_infonce_is_the_loop_and_so_is_its_temperatures_gradient(seed, ids, mask_repeat):
    u, w = pairs(len(ids), seed)
    infonce = InfoNCE().double()
    positives = find_positives(torch.tensor(ids), mask_repeat)
    expected = naive_infonce(
        u, w, naive_positives(torch.tensor(ids), mask_repeat), infonce.log_scale.exp()
    )
    close(infonce.log_scale.exp(), 1 / 0.07, absolute=1e-5)
    assert expected > 0.01
    check_gradients(infonce(u @ w.T, positives), expected, (u, w, infonce.log_scale))


def test_a_fixed_temperature_has_no_parameter():
    u, w = pairs(5, seed=4)
    infonce, positives = InfoNCE(0.05).double(), find_positives(torch.arange(5))
    assert not list(infonce.parameters())
    close(infonce(u @ w.T, positives), naive_infonce(u, w, torch.eye(5).tolist(), 20).detach())


def test_infonce_of_equal_embeddings_is_the_logarithm_of_the_batch():
    u = torch.tensor([[0.6, 0.8]]).repeat(4, 1)
    close(InfoNCE()(u @ u.T, find_positives(torch.arange(4))), math.log(4), absolute=1e-6)
    close(
        InfoNCE()(u @ u.T, find_positives(torch.tensor([1, 1, 2, 3]))),
        (math.log(3) + math.log(4)) / 2,
        absolute=1e-6,
    )


@pytest.mark.parametrize("ids", [[4, 4, 4], [1]])
def test_infonce_of_one_image_costs_nothing(ids):
    u, w = pairs(len(ids), seed=5)
    infonce = InfoNCE().double()
    loss = infonce(u @ w.T, find_positives(torch.tensor(ids)))
    close(loss, 0)
    for gradient in torch.autograd.grad(loss, (u, w, infonce.log_scale)):
        close(gradient, torch.zeros_like(gradient))


def test_the_temperature_stays_above_a_hundredth_and_comes_back():
    u, w = pairs(6, seed=3)
    infonce, positives = InfoNCE().double(), find_positives(torch.arange(6))
    torch.nn.init.constant_(infonce.log_scale, 9.0)
    loss = infonce(u @ w.T, positives)
    close(infonce.log_scale.exp(), 100)
    close(loss, naive_infonce(u, w, torch.eye(6).tolist(), 100).detach(), absolute=1e-6)
    loss.backward()
    # some pair is not the nearest, so that a higher temperature costs less
    assert infonce.log_scale.grad > 0
    torch.optim.SGD(infonce.parameters(), lr=0.1).step()
    infonce(u @ w.T, positives)
    assert infonce.log_scale.exp() < 99
