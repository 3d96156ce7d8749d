"""How far the test images happen to decide a table: bootstrap intervals of the recalls,
and of their differences.

The images are drawn again with replacement, each with its captions, as queries. The gallery stays:
a query's rank against the whole split is what the table counts, and does not change with the draw.
Text to image, an image weighs as much as it has captions, as in the table.
"""

# N images, S samples

from typing import NamedTuple

import numpy as np

from . import metrics

COLUMNS = {
    "i2t_r1": "I2T R@1",
    "i2t_r5": "R@5",
    "i2t_r10": "R@10",
    "t2i_r1": "T2I R@1",
    "t2i_r5": "R@5",
    "t2i_r10": "R@10",
    "rsum": "rsum",
}
LEVEL = 95  # percent of the samples that lie in an interval
SAMPLES_PER_BLOCK = 100  # samples; what they need of memory is 8 N bytes each


class Interval(NamedTuple):
    """A number of the table, in percent, and where 95% of its samples lie."""

    value: float
    low: float
    high: float


def hits(similarities, folds=1, caption_images=None):
    """What each image adds to a table: (N, 6) percent, I2T R@1 R@5 R@10,
    then T2I as the mean of its captions.

    Where all images have equally many captions, the mean over the images is the table, with folds
    the mean table over the folds; otherwise the mean with `image_weights`.
    """
    blocks = (
        metrics.fold_blocks(similarities, folds, caption_images)
        if folds > 1
        else [(similarities, caption_images)]
    )
    return np.concatenate(
        [_hits(metrics.ranks(*block), metrics.resolve_caption_images(*block)) for block in blocks]
    )


def _hits(ranks, caption_images):
    counts = np.bincount(caption_images)
    found = [100.0 * (ranks.image_to_text < k) for k in (1, 5, 10)]
    found += [
        100.0 * (np.bincount(caption_images, ranks.text_to_image < k) / counts) for k in (1, 5, 10)
    ]
    return np.stack(found, axis=1)


def image_weights(similarities, folds=1, caption_images=None):
    """How much an image weighs in text to image: (N,), its captions over the mean of its fold;
    None where all are 1."""
    counts = np.bincount(metrics.resolve_caption_images(similarities, caption_images)).reshape(
        folds, -1
    )
    weights = (counts / counts.mean(1, keepdims=True)).reshape(-1)
    return None if (weights == 1).all() else weights


def intervals(per_image, samples, seed=0, weights=None):
    """The `Interval`s of the means over images of (N, 6) hits, or of their differences,
    by the names of COLUMNS.

    weights: of `image_weights`.
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


def _means(draws, per_image, weights):
    """The seven numbers of draws (S, N), how often each has which image: (S, 7)."""
    if weights is None:
        # rsum is a mean over images too
        return draws @ np.column_stack([per_image, per_image.sum(1)]) / len(per_image)
    weights = np.where(np.arange(6) < 3, 1.0, weights[:, None])  # image to text, images count alike
    means = draws @ (per_image * weights) / (draws @ weights)
    return np.column_stack([means, means.sum(1)])


def compare(models, mean, folds_by_label, samples):
    """Intervals of every row of a table: {label: of `intervals`}.

    models: similarities of each model; mean: those of the ensemble; two models: the rows of each
    and their paired difference too, on the same samples.
    """
    found = {}
    for label, folds in folds_by_label.items():
        weights = image_weights(mean, folds)
        rows = {label: hits(mean, folds)}
        if len(models) == 2:
            first, second = (hits(model, folds) for model in models)
            rows |= {f"{label}, model 1": first, f"{label}, model 2": second}
            rows[f"{label}, model 1 - model 2"] = first - second
        found |= {
            name: intervals(per_image, samples, weights=weights) for name, per_image in rows.items()
        }
    return found


def markdown(intervals_by_label, samples):
    """A table of intervals, a row a label."""
    rows = [
        f"| {label} | "
        + " | ".join(f"{one.value:.1f} ({one.low:.1f} to {one.high:.1f})" for one in found.values())
        + " |"
        for label, found in intervals_by_label.items()
    ]
    head = (
        f"| {LEVEL}% of {samples} bootstrap samples of the images | "
        f"{' | '.join(COLUMNS.values())} |"
    )
    return "\n".join([head, "|---" * (len(COLUMNS) + 1) + "|", *rows])
