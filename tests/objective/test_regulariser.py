"""The regulariser against a loop over pairs."""

import math

import pytest
import torch
from test_relation import close, naive_relevance, normal, unit_rows

from lib.objective.relation import Relation, Relations, distance_relevance, regulariser


def cross_relations(i2t, t2i):
    return Relations(None, Relation(None, i2t), Relation(None, t2i), None)


def naive_softmax(row):
    return [math.exp(value) / sum(map(math.exp, row)) for value in row]


def naive_regulariser(i2t, t2i, target):
    total, count = 0, len(target)
    transposed = [list(column) for column in zip(*target)]
    for learnt, given in ((i2t.tolist(), target), (t2i.tolist(), transposed)):
        for learnt_row, given_row in zip(learnt, given):
            for p, q in zip(naive_softmax(learnt_row), naive_softmax(given_row)):
                total += p * math.log(p / q) / count
    return total


@pytest.mark.parametrize("count, seed", [(1, 0), (2, 1), (6, 2), (30, 3)])
def test_the_regulariser_is_the_loop(count, seed):
    u, w = unit_rows(count, 8, seed), unit_rows(count, 8, seed + 10)
    i2t, t2i = (2 * normal(count, count, seed=seed + shift) for shift in (20, 30))
    close(
        regulariser(cross_relations(i2t, t2i), u, w),
        naive_regulariser(i2t, t2i, naive_relevance(u, w)),
    )


def test_the_regulariser_is_zero_where_relevance_follows_the_embeddings():
    u, w = unit_rows(5, 8, 0), unit_rows(5, 8, 1)
    target = distance_relevance(u, w)
    close(regulariser(cross_relations(target + 3, target.T - 2), u, w), 0)
    assert regulariser(cross_relations(target.T, target), u, w) > 1e-4


def test_gradient_of_the_regulariser_reaches_the_relevance_alone():
    u, w = unit_rows(4, 8, 0).requires_grad_(), unit_rows(4, 8, 1).requires_grad_()
    i2t, t2i = normal(4, 4, seed=2).requires_grad_(), normal(4, 4, seed=3).requires_grad_()
    loss = regulariser(cross_relations(i2t, t2i), u, w)
    gradients = torch.autograd.grad(loss, (i2t, t2i, u, w), allow_unused=True)
    assert gradients[2] is None and gradients[3] is None
    assert gradients[0].any() and gradients[1].any()
    step = torch.zeros_like(i2t)
    step[1, 2] = 1e-4
    ahead, behind = (
        naive_regulariser(i2t + sign * step, t2i, naive_relevance(u, w)) for sign in (1, -1)
    )
    close(gradients[0][1, 2], (ahead - behind) / 2e-4, absolute=1e-8)
