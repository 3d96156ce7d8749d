"""Retrieval metrics: ranks, R@K, rsum, folds and ensembles; numbers in, numbers out (SPEC section 7).

Caption c belongs to image c // 5. Ranks count from 0; tables count from 1. Candidates of equal similarity keep their
order in the file, so that a model which gives every pair the same score ranks by accident and not at the top.
"""

# N images, C = 5N captions

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

CAPTIONS_PER_IMAGE = 5
TILE_IMAGES = 250  # a tile of the similarity matrix is 250 images x 1250 captions, 1.2 MB: it stays in the cache


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


class Similarity:
    """Dot products of N image and C caption embeddings, computed where they are asked for: `similarity[rows, columns]`.

    image_embeddings: tensor (N, E); caption_embeddings: tensor (C, E). Slices give float32 numpy arrays, so that a
    table needs no more memory than a tile of the matrix.
    """

    def __init__(self, image_embeddings, caption_embeddings):
        self.images, self.captions = image_embeddings, caption_embeddings
        self.shape = len(image_embeddings), len(caption_embeddings)

    def __getitem__(self, where):
        rows, columns = where
        return (self.images[rows] @ self.captions[columns].T).numpy()


def ranks(similarities):
    """Ranks of the true pairs, counted tile by tile.

    similarities: (N, 5N), a numpy array or a `Similarity`. Raises ValueError on another shape, NaN or Inf.
    """
    num_images, num_captions = similarities.shape
    if num_captions != CAPTIONS_PER_IMAGE * num_images or not num_images:
        raise ValueError(f"similarities of N images and 5N captions expected, found shape {similarities.shape}")
    tiles = _true_tiles(num_images)
    true_scores = np.concatenate([_true_scores(similarities[tile]) for tile in tiles])  # (N, 5)
    best_caption = CAPTIONS_PER_IMAGE * np.arange(num_images) + true_scores.argmax(1)
    best_scores, true_scores = true_scores.max(1), true_scores.reshape(-1)
    true_image = np.arange(num_captions) // CAPTIONS_PER_IMAGE

    image, caption = np.arange(num_images), np.arange(num_captions)

    def ahead_of_true(rows):
        """How many candidates are ahead, of the images in `rows`, and of all captions among these images."""
        images_ahead, captions_ahead = np.zeros(len(image[rows]), np.int64), np.zeros(num_captions, np.int16)
        for _, columns in tiles:
            tile = similarities[rows, columns]
            if not np.isfinite(tile.sum()):
                raise ValueError("similarities must be finite: no comparison with NaN is true, so it would rank first")
            better = _ahead(tile, best_scores[rows, None], caption[columns], best_caption[rows, None])
            images_ahead += better.sum(1, dtype=np.int16)  # a tile has few enough, and narrow sums are faster
            better = _ahead(tile, true_scores[columns], image[rows, None], true_image[columns])
            captions_ahead[columns] = better.sum(0, dtype=np.int16)
        return images_ahead, captions_ahead

    found = Ranks(np.zeros(num_images, np.int64), np.zeros(num_captions, np.int64))
    strips = [rows for rows, _ in tiles]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        each = pool.map if isinstance(similarities, np.ndarray) else map  # matrix products have threads of their own
        for rows, (images_ahead, captions_ahead) in zip(strips, each(ahead_of_true, strips)):
            found.image_to_text[rows] = images_ahead
            found.text_to_image[:] += captions_ahead
    return found


class PairSimilarities(NamedTuple):
    """What a model makes of true pairs, and of the most similar wrong ones; -inf where there is no wrong one.

    true: (N, 5) of an image with its captions; hardest_captions: (N,) the best wrong caption of every image;
    hardest_images: (C,) the best wrong image of every caption.
    """

    true: np.ndarray
    hardest_captions: np.ndarray
    hardest_images: np.ndarray


def pair_similarities(similarities):
    """True pairs and hardest negatives, tile by tile. similarities: as for `ranks`. Returns `PairSimilarities`."""
    num_images, num_captions = similarities.shape
    found = PairSimilarities(
        np.empty((num_images, CAPTIONS_PER_IMAGE), np.float32),
        np.full(num_images, -np.inf, np.float32),
        np.full(num_captions, -np.inf, np.float32),
    )
    true_image = np.arange(num_captions) // CAPTIONS_PER_IMAGE
    tiles = _true_tiles(num_images)
    for rows, own_columns in tiles:
        for _, columns in tiles:
            tile = similarities[rows, columns]
            if columns == own_columns:
                found.true[rows] = _true_scores(tile)
                tile = np.where(np.arange(num_images)[rows, None] == true_image[columns], -np.inf, tile)
            for hardest, best in (
                (found.hardest_captions[rows], tile.max(1)),
                (found.hardest_images[columns], tile.max(0)),
            ):
                np.maximum(hardest, best, out=hardest)
    return found


def _true_tiles(num_images):
    """Rows and columns of the tiles on the diagonal, which hold the true pairs; the others lie between them."""
    return [
        (
            slice(start, start + TILE_IMAGES),
            slice(CAPTIONS_PER_IMAGE * start, CAPTIONS_PER_IMAGE * (start + TILE_IMAGES)),
        )
        for start in range(0, num_images, TILE_IMAGES)
    ]


def _true_scores(tile):
    """Similarities of n images with their own captions, (n, 5), from their tile (n, 5n)."""
    images = np.arange(len(tile))[:, None]
    return tile[images, CAPTIONS_PER_IMAGE * images + np.arange(CAPTIONS_PER_IMAGE)]


def _ahead(tile, true_scores, candidate, true_candidate):
    """Which candidates of a tile rank before the true one: more similar, or as similar and earlier in the file."""
    if candidate.max() < true_candidate.min():
        return tile >= true_scores
    if candidate.min() > true_candidate.max():
        return tile > true_scores
    better, equal = tile > true_scores, tile == true_scores  # a tile of true pairs: each is equal to itself
    return better | (equal & (candidate < true_candidate)) if np.count_nonzero(equal) > true_scores.size else better


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
    num_images = similarities.shape[0]
    size, rest = divmod(num_images, folds)
    if rest or not size:
        raise ValueError(f"{num_images} images do not divide into {folds} folds")
    tables = []
    for start in range(0, num_images, size):
        block = similarities[start : start + size, CAPTIONS_PER_IMAGE * start : CAPTIONS_PER_IMAGE * (start + size)]
        tables.append(np.array(scores(ranks(block))))
    return Scores(*(Recalls(*map(float, direction)) for direction in np.mean(tables, axis=0)))


def ensemble(models):
    """Mean of several models' similarities: the similarity of their embeddings side by side.

    models: `Similarity` of each, of any embedding sizes. Raises ValueError where they differ in images or captions.
    """
    shapes = {model.shape for model in models}
    if len(shapes) != 1:
        raise ValueError(f"an ensemble needs models of the same images and captions, found {sorted(shapes) or 'none'}")
    images = torch.cat([model.images for model in models], dim=1) / len(models)
    return Similarity(images, torch.cat([model.captions for model in models], dim=1))
