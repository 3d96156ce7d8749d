"""Bootstrap confidence intervals of the recalls, and of differences between two models.

Query images are resampled with replacement, each with its captions. The gallery is not resampled:
the rank of a query against the whole split is the same in every sample. In text-to-image retrieval,
an image is weighted by its number of captions, as in the table.
"""

# N images, S samples

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import metrics
from .similarity import Similarities, fold_blocks, resolve_caption_images

COLUMNS = {
    "i2t_r1": "I2T R@1",
    "i2t_r5": "R@5",
    "i2t_r10": "R@10",
    "t2i_r1": "T2I R@1",
    "t2i_r5": "R@5",
    "t2i_r10": "R@10",
    "rsum": "rsum",
}
LEVEL = 95  # percent of the samples inside an interval
SAMPLES_PER_BLOCK = 100  # one sample needs 8 N bytes of memory


class Interval(NamedTuple):
    """A value of the table, in percent, and the bounds of its 95% interval."""

    value: float
    low: float
    high: float


def hits(
    similarities: Similarities, folds: int = 1, caption_images: np.ndarray | None = None
) -> np.ndarray:
    """Contribution of each image to a table, (N, 6) in percent.

    The columns are I2T R@1, R@5, R@10, then T2I as the mean over the image's captions. The mean
    over the images is the table (with folds: the mean table) if all images have the same number of
    captions. Otherwise it is the mean weighted by `image_weights`.
    """
    blocks = (
        fold_blocks(similarities, folds, caption_images)
        if folds > 1
        else [(similarities, caption_images)]
    )
    return np.concatenate(
        [_hits(metrics.ranks(*block), resolve_caption_images(*block)) for block in blocks]
    )


def _hits(ranks: metrics.Ranks, caption_images: np.ndarray) -> np.ndarray:
    counts = np.bincount(caption_images)
    columns = [100.0 * (ranks.image_to_text < k) for k in (1, 5, 10)]
    columns += [
        100.0 * (np.bincount(caption_images, ranks.text_to_image < k) / counts) for k in (1, 5, 10)
    ]
    return np.stack(columns, axis=1)


def image_weights(
    similarities: Similarities, folds: int = 1, caption_images: np.ndarray | None = None
) -> np.ndarray | None:
    """Weight of each image in text-to-image retrieval, (N,), or None if all weights are 1.

    The weight is the image's number of captions, divided by the mean number in its fold.
    """
    caption_images = resolve_caption_images(similarities, caption_images)
    counts = np.bincount(caption_images).reshape(folds, -1)
    weights = (counts / counts.mean(1, keepdims=True)).reshape(-1)
    return None if (weights == 1).all() else weights


def intervals(
    per_image: np.ndarray, samples: int, seed: int = 0, weights: np.ndarray | None = None
) -> dict[str, Interval]:
    """Intervals of the means over images, by the names of COLUMNS.

    per_image: (N, 6) `hits`, or differences of them; weights: from `image_weights`.
    """
    generator, num_images = np.random.default_rng(seed), len(per_image)
    chances = np.full(num_images, 1 / num_images)
    means = [
        _means(
            generator.multinomial(
                num_images, chances, size=min(SAMPLES_PER_BLOCK, samples - start)
            ),
            per_image,
            weights,
        )
        for start in range(0, samples, SAMPLES_PER_BLOCK)
    ]
    low, high = np.percentile(np.concatenate(means), [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)
    values = _means(np.ones((1, num_images)), per_image, weights)[0]
    return {name: Interval(*map(float, row)) for name, row in zip(COLUMNS, zip(values, low, high))}


def _means(draws: np.ndarray, per_image: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """The values of COLUMNS for each sample, (S, 7). draws: (S, N) counts of each image."""
    if weights is None:
        # rsum is a mean over images too
        return draws @ np.column_stack([per_image, per_image.sum(1)]) / len(per_image)
    weights = np.where(np.arange(6) < 3, 1.0, weights[:, None])  # image to text is unweighted
    means = draws @ (per_image * weights) / (draws @ weights)
    return np.column_stack([means, means.sum(1)])


def compare(
    models: Sequence[Similarities],
    mean: Similarities,
    folds_by_label: dict[str, int],
    samples: int,
) -> dict[str, dict[str, Interval]]:
    """Intervals of every row of a table, by the labels of the rows.

    models: similarities of each model; mean: similarities of their ensemble. With two models, the
    result includes the rows of each model and their paired difference, on the same samples.
    """
    by_label: dict[str, dict[str, Interval]] = {}
    for label, folds in folds_by_label.items():
        weights = image_weights(mean, folds)
        rows = {label: hits(mean, folds)}
        if len(models) == 2:
            first, second = (hits(model, folds) for model in models)
            rows |= {f"{label}, model 1": first, f"{label}, model 2": second}
            rows[f"{label}, model 1 - model 2"] = first - second
        by_label |= {
            name: intervals(per_image, samples, weights=weights) for name, per_image in rows.items()
        }
    return by_label


def markdown(intervals_by_label: dict[str, dict[str, Interval]], samples: int) -> str:
    """Format intervals as a Markdown table, one row per label."""
    rows = [
        f"| {label} | "
        + " | ".join(f"{one.value:.1f} ({one.low:.1f} to {one.high:.1f})" for one in row.values())
        + " |"
        for label, row in intervals_by_label.items()
    ]
    head = (
        f"| {LEVEL}% of {samples} bootstrap samples of the images | "
        f"{' | '.join(COLUMNS.values())} |"
    )
    return "\n".join([head, "|---" * (len(COLUMNS) + 1) + "|", *rows])
