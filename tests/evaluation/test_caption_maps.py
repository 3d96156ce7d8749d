"""Ranks, folds and intervals for images with different numbers of captions, compared with loops."""

import itertools

import numpy as np
import pytest
import torch

from lib.evaluation import bootstrap, metrics, tiles
from lib.evaluation.similarity import Similarity, ensemble


def random_map(num_images, seed, is_sorted):
    """The image of each caption, with 1 to 7 captions per image."""
    draw = np.random.default_rng(seed)
    images = np.repeat(np.arange(num_images), draw.integers(1, 8, num_images))
    return images if is_sorted else draw.permutation(images)


def random_matrix(images, seed, decimals):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((images.max() + 1, len(images))).round(decimals).astype(np.float32)


def naive_ranks(matrix, images):
    """Sort the candidates of every query, equal ones in the file's order,
    and look where the true ones stand."""
    num_images, num_captions = matrix.shape
    image_to_text, text_to_image = [], []
    for image in range(num_images):
        order = sorted(range(num_captions), key=lambda caption: (-matrix[image, caption], caption))
        image_to_text.append(
            min(rank for rank, caption in enumerate(order) if images[caption] == image)
        )
    for caption in range(num_captions):
        order = sorted(range(num_images), key=lambda image: (-matrix[image, caption], image))
        text_to_image.append(order.index(images[caption]))
    return image_to_text, text_to_image


MAPS = [
    (n, seed, is_sorted)
    for n, seed in ((1, 0), (2, 1), (9, 2), (14, 3))
    for is_sorted in (True, False)
]


@pytest.mark.parametrize("tile_images", [1, 3, 250])
@pytest.mark.parametrize("decimals", [7, 1, 0])
@pytest.mark.parametrize("num_images, seed, is_sorted", MAPS)
def test_ranks_of_any_map_are_the_loop(
    monkeypatch, num_images, seed, is_sorted, decimals, tile_images
):
    monkeypatch.setattr(tiles, "TILE_IMAGES", tile_images)
    images = random_map(num_images, seed, is_sorted)
    matrix = random_matrix(images, seed, decimals)
    found = metrics.ranks(matrix, images)
    assert (found.image_to_text.tolist(), found.text_to_image.tolist()) == naive_ranks(
        matrix, images
    )


def test_an_image_of_very_many_captions_ranks_by_the_loop():
    images = np.repeat([0, 1, 2], [40_000, 2, 3])  # more than a 16-bit number counts
    matrix = np.zeros((3, len(images)), np.float32)
    matrix[1] = images == 0
    matrix[0] = images != 0
    found = metrics.ranks(matrix, images)
    assert found.image_to_text.tolist() == [5, 40_000, 40_002]
    assert found.text_to_image[[0, 40_000, 40_002]].tolist() == [1, 1, 2]


@pytest.mark.parametrize("per_image", [1, 2, 3, 7])
def test_without_a_map_captions_are_in_order(per_image):
    images = np.repeat(np.arange(6), per_image)
    matrix = random_matrix(images, per_image, 1)
    for ours, theirs in zip(metrics.ranks(matrix), naive_ranks(matrix, images)):
        assert ours.tolist() == theirs


@pytest.mark.parametrize("num_images, seed, is_sorted", MAPS)
def test_a_similarity_carries_its_map(num_images, seed, is_sorted):
    images = random_map(num_images, seed, is_sorted)
    torch.manual_seed(seed)
    similarity = Similarity(torch.randn(num_images, 4), torch.randn(len(images), 4), images)
    for found in (similarity, ensemble([similarity, similarity])):
        assert [one.tolist() for one in metrics.ranks(found)] == [
            *naive_ranks(similarity[:, :], images)
        ]


def test_an_ensemble_of_other_pairs_is_refused():
    one, other = (
        Similarity(torch.eye(2), torch.eye(2)[[0, 1, 1]], images)
        for images in ([0, 1, 1], [1, 0, 0])
    )
    with pytest.raises(ValueError, match="same pairs"):
        ensemble([one, other])


@pytest.mark.parametrize("images", [[0, 1], [0, 0, 0], [0, 1, 2], [0, -1, 1], [[0, 1, 1]]])
def test_a_map_that_does_not_fit_is_refused(images):
    with pytest.raises(
        ValueError, match="each of the 3 captions, and .* each of the 2 images, found"
    ):
        metrics.ranks(np.zeros((2, 3), np.float32), images)


@pytest.mark.parametrize("is_sorted", [True, False])
def test_folds_are_consecutive_images_with_their_captions(is_sorted):
    images = random_map(12, 5, is_sorted)
    matrix, tables = random_matrix(images, 5, 1), []
    for start in range(0, 12, 3):
        columns = [caption for caption, image in enumerate(images) if start <= image < start + 3]
        ranks = naive_ranks(
            matrix[start : start + 3, columns], [images[caption] - start for caption in columns]
        )
        tables.append(
            [[100 * np.mean([rank < k for rank in one]) for k in (1, 5, 10)] for one in ranks]
        )
    found = metrics.fold_scores(matrix, 4, images)
    np.testing.assert_allclose([one[:3] for one in found], np.mean(tables, axis=0))


@pytest.mark.parametrize("num_images, seed, is_sorted", MAPS)
def test_pairs_and_hardest_negatives_of_any_map_by_loops(monkeypatch, num_images, seed, is_sorted):
    monkeypatch.setattr(tiles, "TILE_IMAGES", 3)
    images = random_map(num_images, seed, is_sorted)
    matrix = random_matrix(images, seed, 7)
    found = metrics.pair_similarities(matrix, images)
    is_true = np.arange(num_images)[:, None] == images
    wrong = np.where(is_true, -np.inf, matrix)
    np.testing.assert_array_equal(found.true, matrix.T[is_true.T])
    np.testing.assert_array_equal(found.hardest_captions, wrong.max(1))
    np.testing.assert_array_equal(found.hardest_images, wrong.max(0))


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_intervals_weigh_images_by_their_captions(is_sorted, folds):
    images = random_map(12, 7, is_sorted)
    similarity = Similarity(
        torch.from_numpy(random_matrix(images, 7, 7)), torch.eye(len(images)), images
    )
    table = metrics.fold_scores(similarity, folds)
    found = bootstrap.compare([similarity], similarity, {"12": folds}, 40)["12"]
    expected = [*table.image_to_text[:3], *table.text_to_image[:3], table.rsum]
    np.testing.assert_allclose([one.value for one in found.values()], expected)
    assert all(0 <= one.low <= one.high <= 100 + 1e-9 for one in list(found.values())[:6])


def test_intervals_of_a_map_are_the_loop_over_samples():
    images = random_map(9, 8, is_sorted=False)
    matrix = random_matrix(images, 8, 7)
    ranks, generator, tables = naive_ranks(matrix, images), np.random.default_rng(3), []
    for _ in range(60):
        drawn = np.arange(9).repeat(generator.multinomial(9, [1 / 9] * 9))
        captions = [caption for image in drawn for caption in np.flatnonzero(images == image)]
        chosen = [ranks[0][image] for image in drawn], [ranks[1][caption] for caption in captions]
        row = [100 * np.mean([rank < k for rank in one]) for one in chosen for k in (1, 5, 10)]
        tables.append([*row, sum(row)])
    weights = bootstrap.image_weights(matrix, 1, images)
    found = bootstrap.intervals(bootstrap.hits(matrix, 1, images), 60, seed=3, weights=weights)
    np.testing.assert_allclose(
        [one.low for one in found.values()], np.percentile(tables, 2.5, axis=0)
    )
    np.testing.assert_allclose(
        [one.high for one in found.values()], np.percentile(tables, 97.5, axis=0)
    )


def test_maps_of_all_small_shapes_rank_by_the_loop():
    for images in itertools.product(range(3), repeat=4):
        if len(set(images)) == 3:
            matrix = random_matrix(np.array(images), sum(images), 0)
            found = metrics.ranks(matrix, images)
            assert (found.image_to_text.tolist(), found.text_to_image.tolist()) == naive_ranks(
                matrix, images
            )
