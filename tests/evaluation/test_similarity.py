"""Similarities computed on demand, and their mean over models, against dot products."""

import numpy as np
import pytest
import torch

from lib.evaluation.similarity import Similarity, ensemble, top_indices


def similarity_of(num_images, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return Similarity(
        torch.randn(num_images, dim, generator=generator),
        torch.randn(5 * num_images, dim, generator=generator),
    )


def test_similarity_gives_any_tile_of_the_dot_products():
    similarity = similarity_of(6, 4, seed=1)
    whole = np.array(
        [[float(image @ caption) for caption in similarity.captions] for image in similarity.images]
    )
    assert similarity.shape == (6, 30)
    for where in (
        (slice(None), slice(None)),
        (slice(2, 4), slice(10, 25)),
        (slice(5, 9), slice(0, 1)),
    ):
        tile = similarity[where]
        assert isinstance(tile, np.ndarray) and tile.dtype == np.float32
        np.testing.assert_allclose(tile, whole[where], atol=1e-6, rtol=0)


def test_an_ensemble_is_the_mean_of_the_similarities():
    models = [similarity_of(7, dim, seed) for seed, dim in enumerate((4, 9, 6))]
    found = ensemble(models)
    assert found.shape == (7, 35)
    mean = sum(model[:, :] for model in models) / 3
    np.testing.assert_allclose(found[:, :], mean, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found[2:5, 3:30], mean[2:5, 3:30], atol=1e-6, rtol=0)


def test_an_ensemble_of_one_model_is_that_model():
    model = similarity_of(4, 6, seed=0)
    np.testing.assert_array_equal(ensemble([model])[:, :], model[:, :])


def test_an_ensemble_of_other_images_or_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 20\).*\(5, 25\)"):
        ensemble([similarity_of(5, 6, seed=0), similarity_of(4, 6, seed=0)])
    with pytest.raises(ValueError, match="none"):
        ensemble([])


@pytest.mark.parametrize("count", [0, 1, 2, 7, 28, 29, 30, 99])
@pytest.mark.parametrize(
    "kind", ["different", "with ties", "all equal", "with NaN", "whole numbers"]
)
def test_the_largest_are_the_first_of_all_sorted(kind, count):
    scores = np.random.default_rng(3).standard_normal(29).astype(np.float32)
    if kind == "with NaN":
        scores[[2, 11, 12]] = np.nan
    elif kind != "different":
        scores = scores.round() * (kind != "all equal")
    scores = scores.astype(np.int64) if kind == "whole numbers" else scores
    expected = np.argsort(-scores, kind="stable")[:count]
    assert top_indices(scores, count).tolist() == expected.tolist()
