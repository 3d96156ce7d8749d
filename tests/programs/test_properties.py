"""Properties of pooling, relations and ranks that hold for any lengths, shapes and values."""

import math
from functools import partial

import helpers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import SEEDS, property_of

from lib.evaluation import metrics, tiles
from lib.model.matches import BlockLimits
from lib.model.pooling import l2_normalise, length_groups, masked_mean, max_k_mean, real_mask
from lib.objective import relation
from lib.objective.relation import connection, distance_relevance, fragment_matches

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


close = partial(helpers.close, absolute=1e-9)
normal = partial(helpers.normal, dtype=torch.float64)


@property_of()
@given(LENGTHS, st.integers(0, 3), st.integers(1, 5), SEEDS)
def test_pooling_is_the_loop_over_true_fragments_and_junk_changes_nothing(lengths, more, k, seed):
    fragments, counts = (
        normal(len(lengths), max(lengths) + more, 3, seed=seed),
        torch.tensor(lengths),
    )
    mean, largest = masked_mean(fragments, counts), max_k_mean(fragments, counts, k)
    for sample, length, found_mean, found_largest in zip(
        fragments.tolist(), lengths, mean, largest
    ):
        for feature in range(3):
            column = [row[feature] for row in sample[:length]]
            assert math.isclose(found_mean[feature], sum(column) / length, abs_tol=1e-12)
            top = sorted(column, reverse=True)[:k]
            assert math.isclose(found_largest[feature], sum(top) / len(top), abs_tol=1e-12)
    is_padding = ~real_mask(counts, fragments.size(1)).unsqueeze(2)
    for junk in (float("nan"), float("inf"), -1e300, 1e300):
        spoilt = fragments.masked_fill(is_padding, junk)
        assert torch.equal(masked_mean(spoilt, counts), mean) and torch.equal(
            max_k_mean(spoilt, counts, k), largest
        )


@property_of()
@given(LENGTHS, SEEDS)
def test_pooling_does_not_know_the_order_of_fragments_or_samples(lengths, seed):
    fragments, counts = normal(len(lengths), max(lengths), 2, seed=seed), torch.tensor(lengths)
    turned = fragments.clone()
    for row, length in enumerate(lengths):
        turned[row, :length] = fragments[row, :length].flip(0)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    for pool in (masked_mean, max_k_mean):
        close(pool(turned, counts), pool(fragments, counts), absolute=1e-12)
        close(pool(fragments[order], counts[order]), pool(fragments, counts)[order], absolute=1e-12)
    assert (max_k_mean(fragments, counts, 1) >= max_k_mean(fragments, counts, 2)).all()
    close(max_k_mean(fragments, counts, 99), masked_mean(fragments, counts), absolute=1e-12)


@property_of()
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(0, 200))
def test_groups_are_a_partition_in_order(lengths, most_padding):
    groups = length_groups(torch.tensor(lengths), most_padding)
    assert [index for run, _ in groups for index in range(run.start, run.stop)] == list(
        range(len(lengths))
    )
    for run, longest in groups:
        assert longest == max(lengths[run])
        assert (
            sum(longest - length for length in lengths[run]) <= most_padding
            or run.stop - run.start == 1
        )


@property_of()
@given(st.integers(1, 5), st.integers(1, 9), st.floats(1e-3, 1e3), SEEDS)
def test_normalised_vectors_have_length_one_whatever_their_scale(count, dim, scale, seed):
    vectors = normal(count, dim, seed=seed)
    normalised = l2_normalise(vectors * scale)
    lengths = (vectors * scale).norm(dim=1)
    close(normalised.norm(dim=1), lengths / (lengths + 1e-8), absolute=1e-12)
    close(normalised * (lengths + 1e-8)[:, None], vectors * scale, absolute=1e-9 * scale)


def cosine(left, right):
    lengths = [
        max(math.sqrt(sum(value * value for value in vector)), 1e-12) for vector in (left, right)
    ]
    return sum(x * y for x, y in zip(left, right)) / lengths[0] / lengths[1]


def naive_pair(words, length, regions, topk):
    """Section 4 of docs/method.md for a pair, lists in: (mean, K largest) of caption to image,
    of image to caption."""
    read = words[: max(length, topk)]
    match = [[cosine(word, region) for region in regions] for word in read]
    match = [[value if value >= 0 else 0.1 * value for value in row] for row in match]
    columns = [[row[region] for row in match] for region in range(len(regions))]
    to_image, to_caption = [], []
    for row in match:
        shares = [
            row[region] / max(math.sqrt(sum(value * value for value in columns[region])), 1e-12)
            for region in range(len(regions))
        ]
        to_image.append(max(shares))
    for region in range(len(regions)):
        shares = [
            row[region] / max(math.sqrt(sum(value * value for value in row)), 1e-12)
            for row in match[:length]
        ]
        to_caption.append(max(shares))
    results = []
    for values, counted in ((to_image, length), (to_caption, len(regions))):
        largest = sorted(values, reverse=True)[:topk]
        results.append((sum(values[:counted]) / counted, largest + [0.0] * (topk - len(largest))))
    return results


@property_of(max_examples=40)
@given(LENGTHS, st.integers(0, 3), st.integers(1, 5), st.integers(1, 9), st.integers(0, 300), SEEDS)
def test_fragment_matches_are_the_loop_over_pairs(lengths, more, num_regions, topk, matches, seed):
    count, longest = len(lengths), max(lengths) + more
    words, regions = (
        normal(count, longest, 3, seed=seed),
        normal(count, num_regions, 3, seed=seed + 1),
    )
    counts = torch.tensor(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(relation.BLOCKS, "cpu", BlockLimits(matches % 5 + 1, matches % 20, matches))
        t2i, i2t = fragment_matches(words, counts, regions, topk)
        junk = words.masked_fill(~real_mask(counts.clamp(min=topk), longest).unsqueeze(2), 1e6)
        for found, expected in zip(fragment_matches(junk, counts, regions, topk), (t2i, i2t)):
            assert torch.equal(found.mean, expected.mean) and torch.equal(
                found.largest, expected.largest
            )
    for caption, length in enumerate(lengths):
        for image in range(count):
            to_image, to_caption = naive_pair(
                words[caption].tolist(), length, regions[image].tolist(), topk
            )
            close(t2i.mean[caption, image], to_image[0], absolute=3e-6)
            close(t2i.largest[caption, image], to_image[1], absolute=3e-6)
            close(i2t.mean[image, caption], to_caption[0], absolute=3e-6)
            close(i2t.largest[image, caption], to_caption[1], absolute=3e-6)


@property_of()
@given(st.integers(1, 12), st.floats(0, 1), SEEDS)
def test_a_connection_joins_the_closest_and_whoever_is_as_close(count, threshold, seed):
    closeness = normal(count, count, seed=seed).round(decimals=1)
    least = max(math.floor(count * threshold), 1)
    for row, joined in zip(closeness.tolist(), connection(closeness, threshold).tolist()):
        assert joined == [sum(other > value for other in row) < least for value in row]
        assert sum(joined) >= least


@property_of()
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9), SEEDS)
def test_relevance_falls_with_distance_and_is_one_for_the_same(left, right, dim, seed):
    x, y = normal(left, dim, seed=seed), normal(right, dim, seed=seed + 1)
    close(
        distance_relevance(x, y),
        [[math.exp(-math.dist(a, b)) for b in y.tolist()] for a in x.tolist()],
    )
    assert torch.equal(distance_relevance(x, x).diagonal(), torch.ones(left, dtype=torch.float64))
    assert torch.equal(distance_relevance(x, y), distance_relevance(y, x).T)


@property_of()
@given(st.integers(1, 9), st.integers(0, 2), st.integers(1, 6), SEEDS)
def test_ranks_are_places_in_a_sorted_list(num_images, decimals, tile_images, seed):
    matrix = (
        np.random.default_rng(seed).standard_normal((num_images, 5 * num_images)).astype(np.float32)
    )
    matrix = matrix.round(decimals)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_IMAGES", tile_images)
        found = metrics.ranks(matrix)
    order_of_captions = np.argsort(-matrix, axis=1, kind="stable")
    order_of_images = np.argsort(-matrix, axis=0, kind="stable")
    for image in range(num_images):
        places = [order_of_captions[image].tolist().index(5 * image + which) for which in range(5)]
        assert found.image_to_text[image] == min(places)
    for caption in range(5 * num_images):
        assert found.text_to_image[caption] == order_of_images[:, caption].tolist().index(
            caption // 5
        )


@property_of()
@given(st.integers(1, 8), SEEDS)
def test_ranks_know_the_order_of_similarities_alone(num_images, seed):
    draw = np.random.default_rng(seed)
    matrix = draw.standard_normal((num_images, 5 * num_images))
    found = metrics.ranks(matrix)
    for changed in (matrix * 3 + 7, np.exp(matrix), np.arctan(matrix)):
        for ours, theirs in zip(metrics.ranks(changed), found):
            assert np.array_equal(ours, theirs)
    order = draw.permutation(num_images)
    captions = (5 * order[:, None] + np.arange(5)).ravel()
    moved = metrics.ranks(matrix[order][:, captions])
    assert np.array_equal(moved.image_to_text, found.image_to_text[order])
    assert np.array_equal(moved.text_to_image, found.text_to_image[captions])
    table = metrics.scores(found)
    assert 0 <= table.image_to_text.r1 <= table.image_to_text.r5 <= table.image_to_text.r10 <= 100
    assert table.rsum <= 600 and (table.rsum == 600) == all(max(ranks) < 1 for ranks in found)
