"""Ranks, tables and folds against loops over images and captions."""

import numpy as np
import pytest
from test_similarity import similarity_of

from lib.evaluation import tiles
from lib.evaluation.metrics import Ranks, Recalls, Scores, fold_scores, ranks, scores


def random_matrix(num_images, seed, decimals=None):
    """(N, 5N) float32; rounded to few decimals many are equal."""
    matrix = np.random.default_rng(seed).standard_normal((num_images, 5 * num_images))
    return (matrix if decimals is None else matrix.round(decimals)).astype(np.float32)


def naive_ranks(matrix):
    """Sort the candidates of every query, equal ones in the file's order,
    and look where the true one stands."""
    num_images, num_captions = matrix.shape
    image_to_text, text_to_image = [], []
    for image in range(num_images):
        order = sorted(range(num_captions), key=lambda caption: (-matrix[image, caption], caption))
        image_to_text.append(min(order.index(5 * image + which) for which in range(5)))
    for caption in range(num_captions):
        order = sorted(range(num_images), key=lambda image: (-matrix[image, caption], image))
        text_to_image.append(order.index(caption // 5))
    return image_to_text, text_to_image


def naive_recalls(found):
    from_1 = sorted(rank + 1 for rank in found)
    middle = [from_1[(len(from_1) - 1) // 2], from_1[len(from_1) // 2]]
    return [100 * sum(rank <= k for rank in from_1) / len(from_1) for k in (1, 5, 10)] + [
        sum(middle) // 2,
        sum(from_1) / len(from_1),
    ]


def check_ranks(similarities, matrix):
    found = ranks(similarities)
    assert (found.image_to_text.tolist(), found.text_to_image.tolist()) == naive_ranks(matrix)


@pytest.mark.parametrize("tile_images", [1, 4, 250])
@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("num_images", [1, 2, 13])
def test_ranks_are_the_loop_however_tiles_are_cut(monkeypatch, num_images, decimals, tile_images):
    monkeypatch.setattr(tiles, "TILE_IMAGES", tile_images)
    matrix = random_matrix(num_images, seed=num_images, decimals=decimals)
    check_ranks(matrix, matrix)


@pytest.mark.parametrize("tile_images", [3, 250])
def test_ranks_of_embeddings_are_those_of_their_dot_products(monkeypatch, tile_images):
    monkeypatch.setattr(tiles, "TILE_IMAGES", tile_images)
    similarity = similarity_of(11, 6, seed=0)
    check_ranks(similarity, (similarity.images.double() @ similarity.captions.double().T).numpy())


@pytest.mark.parametrize("tile_images", [2, 250])
def test_candidates_of_equal_similarity_keep_the_files_order(monkeypatch, tile_images):
    monkeypatch.setattr(tiles, "TILE_IMAGES", tile_images)
    found = ranks(np.full((5, 25), 0.5, dtype=np.float32))
    assert found.image_to_text.tolist() == [0, 5, 10, 15, 20]
    assert found.text_to_image.tolist() == [image for image in range(5) for _ in range(5)]


def test_an_image_ranks_by_the_best_of_its_captions():
    matrix = np.zeros((3, 15), dtype=np.float32)
    matrix[1] = [0, 0, 0, 0, 9, 1, 1, 7, 1, 1, 8, 0, 0, 0, 0]
    assert ranks(matrix).image_to_text[1] == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0), (3, 2), (1, 19)])
def test_similarities_that_are_not_finite_are_refused(monkeypatch, where, value):
    monkeypatch.setattr(tiles, "TILE_IMAGES", 2)
    matrix = random_matrix(4, seed=0)
    matrix[where] = value
    with pytest.raises(ValueError, match="finite"):
        ranks(matrix)


@pytest.mark.parametrize("shape", [(4, 19), (5, 21), (20, 4), (4, 0), (0, 4), (0, 0)])
def test_other_shapes_than_equally_many_captions_an_image_are_refused_by_name(shape):
    with pytest.raises(ValueError, match=str(shape[0]) + r".*" + str(shape[1])):
        ranks(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("seed, count", [(0, 1), (1, 2), (2, 7), (3, 60), (4, 61)])
def test_tables_are_the_loop_over_ranks(seed, count):
    draw = np.random.default_rng(seed)
    found = Ranks(draw.integers(0, 25, count), draw.integers(0, 25, 5 * count))
    table = scores(found)
    np.testing.assert_allclose(table.image_to_text, naive_recalls(found.image_to_text.tolist()))
    np.testing.assert_allclose(table.text_to_image, naive_recalls(found.text_to_image.tolist()))


def test_ranks_at_the_edges_of_r_at_k_and_counted_from_one():
    table = scores(Ranks(np.array([0, 1, 4, 5, 9, 10]), np.array([0])))
    assert table.image_to_text == pytest.approx((100 / 6, 50.0, 500 / 6, 5.0, 29 / 6 + 1))
    assert table.text_to_image == (100.0, 100.0, 100.0, 1.0, 1.0)


def test_rsum_adds_the_six_recalls_alone():
    table = Scores(Recalls(1.0, 2.0, 4.0, 1000.0, 1000.0), Recalls(8.0, 16.0, 32.0, 1000.0, 1000.0))
    assert table.rsum == 63.0
    assert scores(Ranks(np.zeros(3, int), np.zeros(15, int))).rsum == 600.0


@pytest.mark.parametrize("folds", [1, 2, 3, 6])
def test_fold_scores_are_the_mean_of_the_tables_of_every_fold(folds):
    similarity = similarity_of(12, 5, seed=2)
    matrix, size = similarity[:, :], 12 // folds
    tables = []
    for fold in range(folds):
        block = matrix[fold * size : (fold + 1) * size, 5 * fold * size : 5 * (fold + 1) * size]
        tables.append([naive_recalls(direction) for direction in naive_ranks(block)])
    for found in (fold_scores(similarity, folds), fold_scores(matrix, folds)):
        np.testing.assert_allclose(found, np.mean(tables, axis=0))
        assert found.rsum == pytest.approx(np.mean(tables, axis=0)[:, :3].sum())


@pytest.mark.parametrize("num_images, folds", [(12, 5), (3, 5)])
def test_images_that_do_not_divide_into_folds_are_refused(num_images, folds):
    with pytest.raises(ValueError, match=f"{num_images} images.*{folds} folds"):
        fold_scores(random_matrix(num_images, seed=0), folds)
