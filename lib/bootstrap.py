"""How far the test images happen to decide a table: bootstrap intervals of the recalls, and of their differences.

The images are drawn again with replacement, each with its five captions, as queries. The gallery stays: a query's
rank against the whole split is what the table counts, and does not change with the draw.
"""

# N images, S samples

from typing import NamedTuple

import numpy as np

from lib import metrics
from lib.metrics import CAPTIONS_PER_IMAGE

COLUMNS = {
    "i2t_r1": "I2T R@1", "i2t_r5": "R@5", "i2t_r10": "R@10", "t2i_r1": "T2I R@1", "t2i_r5": "R@5", "t2i_r10": "R@10",
    "rsum": "rsum",
}  # fmt: skip
LEVEL = 95  # percent of the samples that lie in an interval
AT_ONCE = 100  # samples; what they need of memory is 8 N bytes each


class Interval(NamedTuple):
    """A number of the table, in percent, and where 95% of its samples lie."""

    value: float
    low: float
    high: float


def hits(similarities, folds=1):
    """What each image adds to a table: (N, 6) percent, I2T R@1 R@5 R@10, then T2I as the mean of its captions.

    The mean over the images is the table, with folds the mean table over the folds.
    """
    size = similarities.shape[0] // folds
    blocks = [
        similarities[start : start + size, CAPTIONS_PER_IMAGE * start : CAPTIONS_PER_IMAGE * (start + size)]
        for start in (range(0, size * folds, size) if folds > 1 else ())
    ]
    return np.concatenate([_hits(metrics.ranks(block)) for block in blocks or [similarities]])


def _hits(ranks):
    ranks_of = ranks.image_to_text[:, None], ranks.text_to_image.reshape(-1, CAPTIONS_PER_IMAGE)
    return np.stack([100.0 * (found < k).mean(1) for found in ranks_of for k in (1, 5, 10)], axis=1)


def intervals(per_image, samples, seed=0):
    """The `Interval`s of the means over images of (N, 6) hits, or of their differences, by the names of COLUMNS."""
    per_image = np.column_stack([per_image, per_image.sum(1)])  # rsum is a mean over images too
    generator, num_images = np.random.default_rng(seed), len(per_image)
    chances = np.full(num_images, 1 / num_images)
    means = [
        generator.multinomial(num_images, chances, size=min(AT_ONCE, samples - start)) @ per_image / num_images
        for start in range(0, samples, AT_ONCE)
    ]
    low, high = np.percentile(np.concatenate(means), [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)
    return {name: Interval(*map(float, row)) for name, row in zip(COLUMNS, zip(per_image.mean(0), low, high))}


def compare(models, mean, folds_by_label, samples):
    """Intervals of every row of a table: {label: of `intervals`}.

    models: similarities of each model; mean: those of the ensemble; two models: the rows of each and their paired
    difference too, on the same samples.
    """
    found = {}
    for label, folds in folds_by_label.items():
        found[label] = intervals(hits(mean, folds), samples)
        if len(models) == 2:
            first, second = (hits(model, folds) for model in models)
            found[f"{label}, model 1"] = intervals(first, samples)
            found[f"{label}, model 2"] = intervals(second, samples)
            found[f"{label}, model 1 - model 2"] = intervals(first - second, samples)
    return found


def markdown(intervals_by_label, samples):
    """A table of intervals, a row a label."""
    rows = [
        f"| {label} | "
        + " | ".join(f"{one.value:.1f} ({one.low:.1f} to {one.high:.1f})" for one in found.values())
        + " |"
        for label, found in intervals_by_label.items()
    ]
    head = f"| {LEVEL}% of {samples} bootstrap samples of the images | {' | '.join(COLUMNS.values())} |"
    return "\n".join([head, "|---" * (len(COLUMNS) + 1) + "|", *rows])
