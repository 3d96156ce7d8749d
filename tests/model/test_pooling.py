"""Masks, groups, poolings and L2 normalisation against loops over samples."""

import functools
from functools import partial

import helpers
import pytest
import torch
from published import make_model, small_bert

from lib.model.fragment import FragmentRelation
from lib.model.pooling import (
    AttentionPooling,
    l2_normalise,
    length_groups,
    masked_mean,
    max_k_mean,
    real_mask,
)

BATCHES = {  # true lengths, fragments they are padded to
    "full": ([4, 4, 4], 4),
    "ragged": ([7, 5, 2, 1], 7),
    "not sorted": ([1, 6, 3, 6, 2], 6),
    "padded beyond the longest": ([3, 1], 8),
    "one fragment": ([1, 1], 1),
    "one sample": ([5], 5),
}
LENGTHS = [
    [9, 9, 7, 4, 3, 3],
    [1, 8, 2, 8, 1, 1, 30],
    [5],
    [4] * 40,
    [200, 1, 200, 1],
    [1, 50, 100],
]


close = partial(helpers.close, absolute=1e-12)
normal = partial(helpers.normal, dtype=torch.float64)


def batch(name):
    lengths, longest = BATCHES[name]
    return normal(len(lengths), longest, 3, seed=len(name)), torch.tensor(lengths)


def naive_mean(fragments, lengths):
    return torch.stack(
        [sum(sample[:length]) / length for sample, length in zip(fragments, lengths.tolist())]
    )


def naive_max_k_mean(fragments, lengths, k):
    rows = []
    for sample, length in zip(fragments.tolist(), lengths.tolist()):
        columns = [
            sorted((row[feature] for row in sample[:length]), reverse=True)[:k]
            for feature in range(3)
        ]
        rows.append([sum(column) / len(column) for column in columns])
    return rows


@pytest.mark.parametrize("name", BATCHES)
def test_attention_pooling_is_a_softmax_of_each_dimension(name):
    fragments, lengths = batch(name)
    torch.manual_seed(0)
    pool = AttentionPooling(3, dropout=0.5).double().eval()
    junk = torch.full_like(fragments, 1e3)
    is_real = real_mask(lengths, fragments.size(1)).unsqueeze(-1)
    inputs = torch.where(is_real, fragments, junk).requires_grad_()
    expected = []
    for sample, length in zip(inputs, lengths.tolist()):
        scores = [pool.score.weight @ row + pool.score.bias for row in sample[:length]]
        total = sum(score.exp() for score in scores)
        expected.append(sum(score.exp() / total * row for score, row in zip(scores, sample)))
    # its weights are a softmax in float32
    found, expected = pool(inputs, lengths), torch.stack(expected)
    helpers.close(found, expected.detach(), absolute=1e-6)
    leaves = (inputs, *pool.parameters())
    for ours, loop in zip(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves)
    ):
        helpers.close(ours, loop, absolute=1e-6)


def test_attention_pooling_begins_near_the_mean():
    fragments, lengths = batch("not sorted")
    torch.manual_seed(0)
    pool = AttentionPooling(3).double()
    helpers.close(pool(1e-3 * fragments, lengths), masked_mean(1e-3 * fragments, lengths), 1e-5)
    with torch.no_grad():  # a bias is the same for all fragments
        before = pool(fragments, lengths)
        pool.score.bias += 5
    helpers.close(pool(fragments, lengths), before, absolute=1e-6)


def test_the_fragments_that_attention_pools_are_dropped_in_training():
    fragments, lengths = batch("not sorted")
    pool = AttentionPooling(3, dropout=0.5).double().train()
    torch.manual_seed(3)
    found = pool(fragments, lengths)
    torch.manual_seed(3)
    dropped = torch.nn.functional.dropout(fragments, 0.5)
    assert (dropped == 0).any()
    helpers.close(found, pool.eval()(dropped, lengths), absolute=1e-9)


@pytest.mark.parametrize("junk", [1e9, float("nan"), float("inf")])
def test_junk_in_the_padding_does_not_reach_attention_pooling(junk):
    fragments, lengths = batch("not sorted")
    spoilt = fragments.masked_fill(~real_mask(lengths, 6).unsqueeze(2), junk).requires_grad_()
    pool = AttentionPooling(3, dropout=0.5).double()
    torch.manual_seed(0)
    found = pool(spoilt, lengths)
    torch.manual_seed(0)
    assert torch.equal(found, pool(fragments, lengths))
    found.sum().backward()
    assert all(one.grad.isfinite().all() for one in (spoilt, *pool.parameters()))


def test_only_captions_are_dropped_before_attention_pooling():
    model = make_model(small_bert(), 5, embed_size=8, nhead=2, pooling="attention", dropout=0.3)
    assert model.image_encoder.fragment_relation.pool.dropout.p == 0
    assert model.text_encoder.fragment_relation.pool.dropout.p == 0.3


@pytest.mark.parametrize("name", BATCHES)
def test_the_mask_is_true_where_a_fragment_is_real(name):
    lengths, longest = BATCHES[name]
    expected = [[position < length for position in range(longest)] for length in lengths]
    assert real_mask(torch.tensor(lengths), longest).tolist() == expected


@pytest.mark.parametrize("most_padding", [0, 3, 64, 10**6])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_runs_hold_every_sample_once_in_order_and_little_padding(lengths, most_padding):
    groups = length_groups(torch.tensor(lengths), most_padding)
    assert [index for run, _ in groups for index in range(run.start, run.stop)] == [
        *range(len(lengths))
    ]
    for number, (run, longest) in enumerate(groups):
        inside = lengths[run]
        assert inside and longest == max(inside)
        assert sum(longest - length for length in inside) <= most_padding or len(inside) == 1
        # a run ends only where the next sample would bring too much padding
        if number + 1 < len(groups):
            grown = lengths[run.start : run.stop + 1]
            assert sum(max(grown) - length for length in grown) > most_padding


@pytest.mark.parametrize("name", BATCHES)
def test_the_masked_mean_is_the_loop(name):
    fragments, lengths = batch(name)
    close(masked_mean(fragments, lengths), naive_mean(fragments, lengths))


@pytest.mark.parametrize("k", [1, 2, 3, 10])
@pytest.mark.parametrize("name", BATCHES)
def test_the_mean_of_the_k_largest_is_the_loop(name, k):
    fragments, lengths = batch(name)
    close(max_k_mean(fragments, lengths, k), naive_max_k_mean(fragments, lengths, k))


def test_the_two_largest_are_averaged_unless_there_is_one():
    fragments = torch.tensor([[[1.0], [-5.0], [3.0]], [[-2.0], [9.0], [9.0]]])
    assert max_k_mean(fragments, torch.tensor([3, 1])).tolist() == [[2.0], [-2.0]]


@pytest.mark.parametrize("junk", [1e9, -1e9, float("nan"), float("inf")])
@pytest.mark.parametrize("pool", [masked_mean, max_k_mean, functools.partial(max_k_mean, k=5)])
def test_junk_in_the_padding_changes_nothing(pool, junk):
    fragments, lengths = batch("not sorted")
    spoilt = fragments.masked_fill(~real_mask(lengths, 6).unsqueeze(2), junk)
    assert torch.equal(pool(spoilt, lengths), pool(fragments, lengths))


def test_gradient_of_the_mean_is_shared_by_the_true_fragments():
    fragments, lengths = batch("ragged")
    fragments.requires_grad_()
    masked_mean(fragments, lengths).sum().backward()
    for gradient, length in zip(fragments.grad, lengths.tolist()):
        close(gradient[:length], [[1 / length] * 3] * length)
        assert not gradient[length:].any()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_gradient_of_the_k_largest_is_shared_by_them(k):
    fragments, lengths = batch("ragged")
    fragments.requires_grad_()
    max_k_mean(fragments, lengths, k).sum().backward()
    for sample, gradient, length in zip(fragments.detach(), fragments.grad, lengths.tolist()):
        counted = min(k, length)
        for feature in range(3):
            largest = set(sample[:length, feature].argsort(descending=True)[:counted].tolist())
            expected = [1 / counted if position in largest else 0.0 for position in range(7)]
            close(gradient[:, feature], expected)


def test_l2_normalisation_adds_its_constant_outside_the_norm():
    vectors = torch.tensor([[3.0, 4.0], [3e-8, 4e-8], [-1.0, 0.0]], dtype=torch.float64)
    expected = [[0.6 / (1 + 2e-9), 0.8 / (1 + 2e-9)], [0.5, 2 / 3], [-1 / (1 + 1e-8), 0]]
    close(l2_normalise(vectors), expected, absolute=1e-15)


def test_l2_normalisation_is_the_loop_over_any_leading_shape():
    vectors = normal(2, 3, 5)
    expected = [
        [(row / (sum(value**2 for value in row) ** 0.5 + 1e-8)).tolist() for row in block]
        for block in vectors
    ]
    close(l2_normalise(vectors), expected)


def test_a_vector_of_zeros_stays_zero_with_a_finite_gradient():
    vectors = torch.zeros(2, 3, requires_grad=True)
    normalised = l2_normalise(vectors)
    assert torch.equal(normalised, torch.zeros(2, 3))
    normalised.sum().backward()
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize("residual_weight", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("name", BATCHES)
def test_fragments_pool_to_a_weighted_sum_of_largest_and_related(name, residual_weight):
    torch.manual_seed(0)
    relation = FragmentRelation(8, heads=2, dropout=0.0, residual_weight=residual_weight)
    lengths, longest = BATCHES[name]
    fragments = normal(len(lengths), longest, 8).float()
    for row, (sample, length) in enumerate(zip(fragments, lengths)):
        related = relation.layer(sample[None, :length])[0].mean(0)
        residual = sample[:length].sort(dim=0, descending=True).values[:2].mean(0)
        expected = residual_weight * residual + (1 - residual_weight) * related
        close(
            relation(fragments, torch.tensor(lengths))[row].detach(),
            expected.detach(),
            absolute=2e-6,
        )


def test_junk_in_the_padding_does_not_reach_the_pooled_vector():
    relation = FragmentRelation(8, heads=2, dropout=0.0)
    lengths = torch.tensor([4, 2, 1])
    fragments = normal(3, 6, 8).float()
    spoilt = fragments.masked_fill(~real_mask(lengths, 6).unsqueeze(2), 77.0)
    assert torch.equal(relation(fragments, lengths), relation(spoilt, lengths))


@pytest.mark.parametrize("part", ["attention", "dropout", "dropout1", "dropout2"])
def test_each_dropout_of_the_transformer_acts_in_training_alone(part):
    relation = FragmentRelation(8, heads=2, dropout=0.0)
    layer, fragments, lengths = relation.layer, normal(3, 6, 8).float(), torch.tensor([6, 4, 2])
    if part == "attention":
        layer.self_attn.dropout = 0.5
    else:
        getattr(layer, part).p = 0.5
    assert not torch.equal(relation.train()(fragments, lengths), relation(fragments, lengths))
    assert torch.equal(relation.eval()(fragments, lengths), relation(fragments, lengths))
