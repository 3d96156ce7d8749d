"""Retrieval metrics: ranks, R@K, rsum, folds and ensembles; numbers in, numbers out
(docs/method.md, section 7).

A map says which image every caption belongs to: `caption_images`, (C,) whole numbers. Without a
map, every image has equally many captions, in the order of the images. Ranks count from 0; tables
count from 1. Candidates of equal similarity keep their order in the file, so that a model which
gives every pair the same score ranks by accident and not at the top.
"""

# N images, C captions

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

CAPTIONS_PER_IMAGE = 5  # of Flickr30K, COCO and the demo data
# a tile of the similarity matrix is 250 images x 1250 captions, 1.2 MB: it stays in the cache
TILE_IMAGES = 250


class Ranks(NamedTuple):
    """Ranks from 0. image_to_text: (N,) best rank of an image's captions;
    text_to_image: (C,) rank of the image."""

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
    """Dot products of N image and C caption embeddings, computed where they are asked for:
    `similarity[rows, columns]`.

    image_embeddings: tensor (N, E); caption_embeddings: tensor (C, E); caption_images: the image of
    every caption, or None where all images have equally many, in order. Slices give float32 numpy
    arrays, so that a table needs no more memory than a tile of the matrix.
    """

    def __init__(self, image_embeddings, caption_embeddings, caption_images=None):
        self.images, self.captions = image_embeddings, caption_embeddings
        self.shape = len(image_embeddings), len(caption_embeddings)
        self.caption_images = caption_images

    def __getitem__(self, where):
        rows, columns = where
        return (self.images[rows] @ self.captions[columns].T).numpy()


def captions_in_order(num_images, num_captions):
    """The map of captions that belong to the images in order, equally many to each: (C,).
    Raises ValueError."""
    per_image, rest = divmod(num_captions, num_images or 1)
    if rest or not per_image or not num_images:
        raise ValueError(
            f"equally many captions of every image expected, found {num_images} images and "
            f"{num_captions} captions"
        )
    return np.arange(num_captions) // per_image


def resolve_caption_images(similarities, caption_images=None):
    """The map of similarities (N, C): the one given, a `Similarity`'s own,
    or captions in order. Raises ValueError."""
    num_images, num_captions = similarities.shape
    if caption_images is None and isinstance(similarities, Similarity):
        caption_images = similarities.caption_images
    if caption_images is None:
        return captions_in_order(num_images, num_captions)
    caption_images = np.asarray(caption_images)
    if caption_images.shape != (num_captions,) or not np.array_equal(
        np.unique(caption_images), np.arange(num_images)
    ):
        raise ValueError(
            f"an image of every caption expected, each of the {num_images} images for one of the "
            f"{num_captions} captions at least, found a map of shape {caption_images.shape}"
        )
    return caption_images


class _ByImage:
    """The columns of similarities (N, C), sorted by image;
    captions of one image keep their order in the file.

    captions: (C,) caption number of every column; images: (C,) its image; starts: (N,) first column
    of every image.
    """

    def __init__(self, similarities, caption_images=None):
        self.similarities = similarities
        images = resolve_caption_images(similarities, caption_images)
        self.is_sorted = bool((np.diff(images) >= 0).all())
        self.captions = (
            np.arange(len(images)) if self.is_sorted else np.argsort(images, kind="stable")
        )
        self.images = images[self.captions]
        self.starts = np.searchsorted(self.images, np.arange(similarities.shape[0]))

    def __getitem__(self, where):
        rows, columns = where
        return self.similarities[rows, columns if self.is_sorted else self.captions[columns]]

    def true_tiles(self):
        """Rows and columns of the tiles on the diagonal, which hold the true pairs;
        the others lie between them.

        A tile has at most TILE_IMAGES rows and five times as many columns, but always one image
        whole.
        """
        ends, tiles, start = np.append(self.starts[1:], len(self.images)), [], 0
        while start < len(self.starts):
            widest = self.starts[start] + CAPTIONS_PER_IMAGE * TILE_IMAGES
            stop = min(int(np.searchsorted(ends, widest, side="right")), start + TILE_IMAGES)
            stop = max(stop, start + 1)
            tiles.append((slice(start, stop), slice(int(self.starts[start]), int(ends[stop - 1]))))
            start = stop
        return tiles

    def true_scores(self, tile, rows, columns):
        """Similarities of every caption of a tile with its own image, (columns,)."""
        return tile[self.images[columns] - rows.start, np.arange(tile.shape[1])]

    def best_of_images(self, true_scores):
        """Of every image its best caption's similarity, (N,), and number, (N,);
        of equal ones the first in the file.

        true_scores: (C,) finite similarities of the captions with their own images, in the order of
        the columns.
        """
        best_scores = np.maximum.reduceat(true_scores, self.starts)
        is_best = true_scores == best_scores[self.images]
        first = np.unique(self.images[is_best], return_index=True)[1]
        return best_scores, self.captions[is_best][first]

    def in_file_order(self, columns):
        """Values (C,) of the columns, in the order of the captions in the file."""
        values = np.empty_like(columns)
        values[self.captions] = columns
        return values


def ranks(similarities, caption_images=None):
    """Ranks of the true pairs, counted tile by tile.

    similarities: (N, C), a numpy array or a `Similarity`; caption_images: as for
    `resolve_caption_images`. Raises ValueError where the shape or the map does not fit, and on NaN
    or Inf.
    """
    (num_images, num_captions), pairs = similarities.shape, _ByImage(similarities, caption_images)
    tiles = pairs.true_tiles()
    true_scores = np.concatenate([pairs.true_scores(pairs[tile], *tile) for tile in tiles])  # (C,)
    _check_finite(true_scores)
    best_scores, best_caption = pairs.best_of_images(true_scores)
    image = np.arange(num_images)
    widest = max(columns.stop - columns.start for _, columns in tiles)
    narrow = np.int16 if widest <= np.iinfo(np.int16).max else np.int64  # narrow sums are faster

    def ahead_of_true(rows):
        """How many candidates are ahead, of the images in `rows`,
        and of all captions among these images."""
        images_ahead, captions_ahead = (
            np.zeros(len(image[rows]), np.int64),
            np.zeros(num_captions, np.int16),
        )
        for own_rows, columns in tiles:
            tile = pairs[rows, columns]
            _check_finite(tile)
            num_self = len(images_ahead) if rows == own_rows else 0
            better = _ahead(
                tile,
                best_scores[rows, None],
                pairs.captions[columns],
                best_caption[rows, None],
                num_self,
            )
            images_ahead += better.sum(1, dtype=narrow)
            num_self = tile.shape[1] if rows == own_rows else 0
            better = _ahead(
                tile, true_scores[columns], image[rows, None], pairs.images[columns], num_self
            )
            captions_ahead[columns] = better.sum(0, dtype=np.int16)
        return images_ahead, captions_ahead

    found = Ranks(np.zeros(num_images, np.int64), np.zeros(num_captions, np.int64))
    strips = [rows for rows, _ in tiles]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # matrix products have threads of their own
        each = pool.map if isinstance(similarities, np.ndarray) else map
        for rows, (images_ahead, captions_ahead) in zip(strips, each(ahead_of_true, strips)):
            found.image_to_text[rows] = images_ahead
            found.text_to_image[:] += captions_ahead
    return found._replace(text_to_image=pairs.in_file_order(found.text_to_image))


def _check_finite(values):
    if not np.isfinite(values.sum()):
        raise ValueError(
            "similarities must be finite: no comparison with NaN is true, so it would rank first"
        )


class PairSimilarities(NamedTuple):
    """What a model makes of true pairs, and of the most similar wrong ones;
    -inf where there is no wrong one.

    true: (C,) of every caption with its image; hardest_captions: (N,) the best wrong caption of
    every image; hardest_images: (C,) the best wrong image of every caption.
    """

    true: np.ndarray
    hardest_captions: np.ndarray
    hardest_images: np.ndarray


def pair_similarities(similarities, caption_images=None):
    """True pairs and hardest negatives, tile by tile. Arguments: as for `ranks`.
    Returns `PairSimilarities`."""
    (num_images, num_captions), pairs = similarities.shape, _ByImage(similarities, caption_images)
    found = PairSimilarities(
        np.empty(num_captions, np.float32),
        np.full(num_images, -np.inf, np.float32),
        np.full(num_captions, -np.inf, np.float32),
    )
    tiles = pairs.true_tiles()
    for rows, own_columns in tiles:
        for _, columns in tiles:
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


def _ahead(tile, true_scores, candidate, true_candidate, num_self):
    """Which candidates of a tile rank before the true one: more similar,
    or as similar and earlier in the file.

    num_self: how many true candidates are in the tile themselves, each equal to itself.
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


def scores(found):
    """Retrieval table of `Ranks`."""
    return Scores(_recalls(found.image_to_text), _recalls(found.text_to_image))


def _recalls(ranks_from_0):
    return Recalls(
        *(100.0 * float(np.mean(ranks_from_0 < k)) for k in (1, 5, 10)),
        float(np.floor(np.median(ranks_from_0)) + 1),
        float(np.mean(ranks_from_0) + 1),
    )


def fold_scores(similarities, folds=5, caption_images=None):
    """Mean table over consecutive folds of N / folds images each:
    COCO 1K is five folds of 1000 (section 7).

    Raises ValueError if the images do not divide into the folds.
    """
    tables = [
        np.array(scores(ranks(block, images)))
        for block, images in fold_blocks(similarities, folds, caption_images)
    ]
    return Scores(*(Recalls(*map(float, direction)) for direction in np.mean(tables, axis=0)))


def fold_blocks(similarities, folds, caption_images=None):
    """Consecutive folds, each of N / folds images with their captions in the file's order:
    similarities and their map.

    Raises ValueError if the images do not divide into the folds.
    """
    num_images, caption_images = (
        similarities.shape[0],
        resolve_caption_images(similarities, caption_images),
    )
    size, rest = divmod(num_images, folds)
    if rest or not size:
        raise ValueError(f"{num_images} images do not divide into {folds} folds")
    for start in range(0, num_images, size):
        columns = np.flatnonzero((caption_images >= start) & (caption_images < start + size))
        images = caption_images[columns] - start
        if columns[-1] - columns[0] == len(columns) - 1:
            columns = slice(columns[0], columns[-1] + 1)  # a view, not a copy
        yield similarities[start : start + size, columns], images


def ensemble(models):
    """Mean of several models' similarities: the similarity of their embeddings side by side.

    models: `Similarity` of each, of any embedding sizes. Raises ValueError where they differ in
    images or captions, or in which belong together.
    """
    shapes = {model.shape for model in models}
    if len(shapes) != 1:
        raise ValueError(
            "an ensemble needs models of the same images and captions, found "
            f"{sorted(shapes) or 'none'}"
        )
    caption_images = resolve_caption_images(models[0])
    if any(not np.array_equal(resolve_caption_images(model), caption_images) for model in models):
        raise ValueError(
            "an ensemble needs models of the same pairs of "
            "images and captions, found different ones"
        )
    images = torch.cat([model.images for model in models], dim=1) / len(models)
    return Similarity(
        images, torch.cat([model.captions for model in models], dim=1), caption_images
    )


def top_indices(scores, count):
    """Numbers of the `count` largest of (n,) scores, largest first,
    equal ones in the file's order."""
    return np.argsort(-scores, kind="stable")[:count]
