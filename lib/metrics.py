"""Retrieval metrics: ranks, R@K, rsum, folds and ensembles; numbers in, numbers out (SPEC section 7).

Caption c belongs to image c // 5. Ranks count from 0; tables count from 1. Candidates of equal similarity keep their
order in the file, so that a model which gives every pair the same score ranks by accident and not at the top.
"""

# N images, C = 5N captions

from typing import NamedTuple

import numpy as np

CAPTIONS_PER_IMAGE = 5


class Ranks(NamedTuple):
    """Ranks from 0. image_to_text: (N,) best rank of an image's captions; text_to_image: (C,) rank of the image."""

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
    def rsum(self):
        """The six recalls added, 0 to 600."""
        return sum(self.image_to_text[:3]) + sum(self.text_to_image[:3])


def similarity(image_embeddings, caption_embeddings):
    """Dot products of the two sets of embeddings, (N, E) and (C, E). Returns (N, C)."""
    return image_embeddings @ caption_embeddings.T


def ranks(similarities):
    """Ranks of the true pairs. similarities: (N, 5N) array. Raises ValueError on another shape or NaN."""
    similarities = np.asarray(similarities)
    num_images = len(similarities)
    if similarities.shape != (num_images, CAPTIONS_PER_IMAGE * num_images) or not num_images:
        raise ValueError(f"similarities of N images and 5N captions expected, found shape {similarities.shape}")
    if not np.isfinite(similarities.sum()):
        raise ValueError("similarities must be finite: a comparison with NaN would rank it first")
    is_own = np.arange(num_images)
    own = similarities.reshape(num_images, num_images, CAPTIONS_PER_IMAGE)[is_own, is_own]  # (N, 5)
    best_caption = CAPTIONS_PER_IMAGE * is_own + own.argmax(1)
    image_to_text = np.empty(num_images, dtype=np.int64)
    text_to_image = np.zeros(similarities.shape[1], dtype=np.int64)
    true_scores, true_image = own.reshape(-1), np.arange(similarities.shape[1]) // CAPTIONS_PER_IMAGE
    captions = np.arange(similarities.shape[1])
    for image, row in enumerate(similarities):  # one row of the matrix at a time: no second matrix is ever made
        best = row[best_caption[image]]
        image_to_text[image] = np.count_nonzero(row > best) + np.count_nonzero(row[: best_caption[image]] == best)
        text_to_image += (row > true_scores) | ((row == true_scores) & (image < true_image))
    return Ranks(image_to_text, text_to_image)


def scores(found):
    """Retrieval table of `Ranks`."""
    return Scores(_recalls(found.image_to_text), _recalls(found.text_to_image))


def _recalls(ranks_from_0):
    return Recalls(
        *(100.0 * float(np.mean(ranks_from_0 < k)) for k in (1, 5, 10)),
        float(np.floor(np.median(ranks_from_0)) + 1),
        float(np.mean(ranks_from_0) + 1),
    )


def fold_scores(similarities, folds=5):
    """Mean table over consecutive folds of N / folds images each: COCO 1K is five folds of 1000 (SPEC section 7).

    Raises ValueError if the images do not divide into the folds.
    """
    size, rest = divmod(len(similarities), folds)
    if rest or not size:
        raise ValueError(f"{len(similarities)} images do not divide into {folds} folds")
    tables = []
    for start in range(0, len(similarities), size):
        block = similarities[start : start + size, CAPTIONS_PER_IMAGE * start : CAPTIONS_PER_IMAGE * (start + size)]
        tables.append(np.array(scores(ranks(block))))
    return Scores(*(Recalls(*map(float, direction)) for direction in np.mean(tables, axis=0)))


def ensemble(similarities):
    """Mean of several runs' similarity matrices of one shape, an iterable of (N, C). Returns (N, C)."""
    total, count = None, 0
    for matrix in similarities:
        if total is not None and matrix.shape != total.shape:
            raise ValueError(f"an ensemble needs matrices of one shape, found {total.shape} and {matrix.shape}")
        total = matrix.copy() if total is None else total + matrix
        count += 1
    if not count:
        raise ValueError("an ensemble needs at least one similarity matrix")
    return total / count
