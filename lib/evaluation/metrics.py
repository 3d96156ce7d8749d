"""Retrieval metrics: ranks, R@K, rsum, and their means over folds (docs/method.md, section 7).

`caption_images`: as in `lib.evaluation.similarity`. Ranks count from 0; tables count from 1.
Candidates of equal similarity keep their order in the file, so a model that gives every pair the
same score is not ranked first.
"""

# N images, C captions

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from .similarity import Similarities, fold_blocks
from .tiles import SortedSimilarities, TruePairs


class Ranks(NamedTuple):
    """Ranks, counted from 0.

    image_to_text: (N,) best rank among an image's captions; text_to_image: (C,) rank of the
    caption's image.
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray


class Recalls(NamedTuple):
    """One direction of a table: R@1, R@5, R@10 in percent, median and mean rank from 1."""

    r1: float
    r5: float
    r10: float
    medr: float
    meanr: float


class Scores(NamedTuple):
    """Both directions of a retrieval table."""

    image_to_text: Recalls
    text_to_image: Recalls

    @property
    def rsum(self) -> float:
        """The sum of the six recalls, 0 to 600."""
        return sum(self.image_to_text[:3]) + sum(self.text_to_image[:3])


def ranks(similarities: Similarities, caption_images: np.ndarray | None = None) -> Ranks:
    """Ranks of the true pairs, counted tile by tile.

    similarities: (N, C), a numpy array or a `Similarity`; caption_images: as for
    `resolve_caption_images`. Raises ValueError if the shape or the map does not fit, and for NaN
    or Inf.
    """
    num_images, num_captions = similarities.shape
    pairs = SortedSimilarities(similarities, caption_images)
    true_pairs = pairs.find_true_pairs()
    _check_finite(true_pairs.scores)
    found = Ranks(np.zeros(num_images, np.int64), np.zeros(num_captions, np.int64))
    strips = [rows for rows, _ in pairs.true_tiles]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # the matrix products of a `Similarity` are multithreaded already
        each = pool.map if isinstance(similarities, np.ndarray) else map
        for rows, ahead in zip(strips, each(partial(_count_ahead, pairs, true_pairs), strips)):
            found.image_to_text[rows] = ahead.image_to_text
            found.text_to_image[:] += ahead.text_to_image
    return found._replace(text_to_image=pairs.in_file_order(found.text_to_image))


def _count_ahead(pairs: SortedSimilarities, true_pairs: TruePairs, rows: slice) -> Ranks:
    """Count the candidates ahead of the true ones in some rows of the matrix.

    Returns for each image of `rows` the captions ahead of its best one, (rows,), and for each
    column the images of `rows` ahead of the caption's own image, (C,).
    """
    image = np.arange(rows.start, rows.stop)[:, None]
    captions_ahead: np.ndarray = np.zeros(len(image), np.int64)
    images_ahead: np.ndarray = np.zeros(len(pairs.images), np.int16)
    best_scores, best_captions = true_pairs.best_scores[rows], true_pairs.best_captions[rows]
    for own_rows, columns in pairs.true_tiles:
        tile, is_own = pairs[rows, columns], rows == own_rows
        _check_finite(tile)
        num_self = len(image) if is_own else 0
        better = _ahead(
            tile, best_scores[:, None], pairs.captions[columns], best_captions[:, None], num_self
        )
        # narrow sums are faster
        narrow = np.int16 if tile.shape[1] <= np.iinfo(np.int16).max else np.int64
        captions_ahead += better.sum(1, dtype=narrow)
        num_self = tile.shape[1] if is_own else 0
        better = _ahead(tile, true_pairs.scores[columns], image, pairs.images[columns], num_self)
        images_ahead[columns] = better.sum(0, dtype=np.int16)
    return Ranks(captions_ahead, images_ahead)


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values.sum()):
        raise ValueError(
            "similarities must be finite: NaN would rank first, because comparisons with NaN "
            "are false"
        )


class PairSimilarities(NamedTuple):
    """Similarities of true pairs and of hardest negatives; -inf where there is no negative.

    true: (C,) each caption with its image; hardest_captions: (N,) each image with its most similar
    wrong caption; hardest_images: (C,) each caption with its most similar wrong image.
    """

    true: np.ndarray
    hardest_captions: np.ndarray
    hardest_images: np.ndarray


def pair_similarities(
    similarities: Similarities, caption_images: np.ndarray | None = None
) -> PairSimilarities:
    """Find true pairs and hardest negatives, tile by tile. Arguments: as for `ranks`."""
    num_images, num_captions = similarities.shape
    pairs = SortedSimilarities(similarities, caption_images)
    found = PairSimilarities(
        np.empty(num_captions, np.float32),
        np.full(num_images, -np.inf, np.float32),
        np.full(num_captions, -np.inf, np.float32),
    )
    for rows, own_columns in pairs.true_tiles:
        for _, columns in pairs.true_tiles:
            tile = pairs[rows, columns]
            if columns == own_columns:
                found.true[columns] = pairs.true_scores(tile, rows, columns)
                tile = np.where(
                    np.arange(num_images)[rows, None] == pairs.images[columns], -np.inf, tile
                )
            for hardest, best in (
                (found.hardest_captions[rows], tile.max(1)),
                (found.hardest_images[columns], tile.max(0)),
            ):
                np.maximum(hardest, best, out=hardest)
    return found._replace(
        true=pairs.in_file_order(found.true),
        hardest_images=pairs.in_file_order(found.hardest_images),
    )


def _ahead(
    tile: np.ndarray,
    true_scores: np.ndarray,
    candidate: np.ndarray,
    true_candidate: np.ndarray,
    num_self: int,
) -> np.ndarray:
    """Which candidates of a tile rank ahead of the true one, a mask of the tile's shape.

    These are more similar, or equally similar and earlier in the file. num_self: number of true
    candidates in the tile; each is equal to itself.
    """
    if candidate.max() < true_candidate.min():
        return tile >= true_scores
    if candidate.min() > true_candidate.max():
        return tile > true_scores
    better, equal = tile > true_scores, tile == true_scores
    return (
        better | (equal & (candidate < true_candidate))
        if np.count_nonzero(equal) > num_self
        else better
    )


def scores(true_ranks: Ranks) -> Scores:
    """Compute the retrieval table from the ranks of the true pairs."""
    return Scores(_recalls(true_ranks.image_to_text), _recalls(true_ranks.text_to_image))


def _recalls(ranks_from_0: np.ndarray) -> Recalls:
    r1, r5, r10 = (100.0 * float(np.mean(ranks_from_0 < k)) for k in (1, 5, 10))
    return Recalls(
        r1,
        r5,
        r10,
        float(np.floor(np.median(ranks_from_0)) + 1),
        float(np.mean(ranks_from_0) + 1),
    )


def fold_scores(
    similarities: Similarities, folds: int = 5, caption_images: np.ndarray | None = None
) -> Scores:
    """Mean table over consecutive folds of N / folds images each.

    COCO 1K has five folds of 1000 images (docs/method.md, section 7). Raises ValueError if the
    images do not divide into the folds.
    """
    tables = [
        np.array(scores(ranks(block, images)))
        for block, images in fold_blocks(similarities, folds, caption_images)
    ]
    return Scores(*(Recalls(*map(float, direction)) for direction in np.mean(tables, axis=0)))
