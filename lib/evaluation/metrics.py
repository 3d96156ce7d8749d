"""Retrieval metrics: ranks, R@K, rsum, folds and ensembles (docs/method.md, section 7).

`caption_images`, (C,) integers, maps each caption to its image. Without this map, all images have
the same number of captions, stored in the order of the images. Ranks count from 0; tables count
from 1. Candidates of equal similarity keep their order in the file, so a model that gives every
pair the same score is not ranked first.
"""

# N images, C captions

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from .caption_order import CAPTIONS_PER_IMAGE, captions_in_order

# a tile of the similarity matrix has 250 images x 1250 captions (1.2 MB) and fits in the CPU cache
TILE_IMAGES = 250


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


class Similarity:
    """Similarity matrix (N, C), computed on demand: `similarity[rows, columns]` is an array.

    image_embeddings: tensor (N, E); caption_embeddings: tensor (C, E); caption_images: the image of
    each caption, or None if all images have the same number of captions, in order. Indexing returns
    float32 numpy arrays, so a table needs only the memory of one tile of the matrix.
    """

    def __init__(
        self,
        image_embeddings: torch.Tensor,
        caption_embeddings: torch.Tensor,
        caption_images: np.ndarray | None = None,
    ) -> None:
        self.images, self.captions = image_embeddings, caption_embeddings
        self.shape = len(image_embeddings), len(caption_embeddings)
        self.caption_images = caption_images

    def __getitem__(self, index: tuple) -> np.ndarray:
        rows, columns = index
        return (self.images[rows] @ self.captions[columns].T).numpy()


class ScoreMatrix:
    """Similarities (N, C) without embeddings, used like `Similarity`.

    matrix: float32; caption_images: the image of each caption.
    """

    def __init__(self, matrix: np.ndarray, caption_images: np.ndarray | None = None) -> None:
        self.matrix, self.shape, self.caption_images = matrix, matrix.shape, caption_images

    def __getitem__(self, index: tuple) -> np.ndarray:
        return self.matrix[index]


Scored = Similarity | ScoreMatrix  # of a model and a split
Similarities = Scored | np.ndarray  # (N, C)


def resolve_caption_images(
    similarities: Similarities, caption_images: np.ndarray | None = None
) -> np.ndarray:
    """The image of each caption, (C,): the map given, that of a `Similarity`, or the default order.

    Raises ValueError if the map does not fit similarities (N, C).
    """
    num_images, num_captions = similarities.shape
    if caption_images is None and not isinstance(similarities, np.ndarray):
        caption_images = similarities.caption_images
    if caption_images is None:
        return captions_in_order(num_images, num_captions)
    caption_images = np.asarray(caption_images)
    if caption_images.shape != (num_captions,) or not np.array_equal(
        np.unique(caption_images), np.arange(num_images)
    ):
        raise ValueError(
            f"expected an image for each of the {num_captions} captions, and at least one caption "
            f"for each of the {num_images} images, found a map of shape {caption_images.shape}"
        )
    return caption_images


class _ByImage:
    """Similarities (N, C) with columns sorted by image; captions of an image keep their order.

    captions: (C,) caption number of each column; images: (C,) its image; starts: (N,) first column
    of each image.
    """

    def __init__(self, similarities: Similarities, caption_images: np.ndarray | None) -> None:
        self.similarities = similarities
        images = resolve_caption_images(similarities, caption_images)
        self.is_sorted = bool((np.diff(images) >= 0).all())
        self.captions = (
            np.arange(len(images)) if self.is_sorted else np.argsort(images, kind="stable")
        )
        self.images = images[self.captions]
        starts = np.searchsorted(self.images, np.arange(similarities.shape[0]))
        self.starts = np.asarray(starts)

    def __getitem__(self, index: tuple) -> np.ndarray:
        rows, columns = index
        return self.similarities[rows, columns if self.is_sorted else self.captions[columns]]

    def true_tiles(self) -> list[tuple[slice, slice]]:
        """Rows and columns of the tiles on the diagonal, which contain all true pairs.

        A tile has at most TILE_IMAGES rows and five times as many columns. It always contains all
        captions of at least one image, even if they exceed this limit.
        """
        ends, start = np.append(self.starts[1:], len(self.images)), 0
        tiles = []
        while start < len(self.starts):
            widest = int(self.starts[start]) + CAPTIONS_PER_IMAGE * TILE_IMAGES
            stop = min(int(np.searchsorted(ends, widest, side="right")), start + TILE_IMAGES)
            stop = max(stop, start + 1)
            tiles.append((slice(start, stop), slice(int(self.starts[start]), int(ends[stop - 1]))))
            start = stop
        return tiles

    def true_scores(self, tile: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Similarity of each caption of a tile with its own image, (columns,)."""
        return tile[self.images[columns] - rows.start, np.arange(tile.shape[1])]

    def best_of_images(self, true_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Similarity and number of each image's best caption: (N,) and (N,).

        If captions are equally similar, the first in the file counts. true_scores: (C,) finite
        similarities of the captions with their own images, in the order of the columns.
        """
        best_scores = np.maximum.reduceat(true_scores, self.starts)
        is_best = true_scores == best_scores[self.images]
        first = np.unique(self.images[is_best], return_index=True)[1]
        return best_scores, self.captions[is_best][first]

    def in_file_order(self, columns: np.ndarray) -> np.ndarray:
        """Reorder values of the columns, (C,), to the order of the captions in the file."""
        values = np.empty_like(columns)
        values[self.captions] = columns
        return values


def ranks(similarities: Similarities, caption_images: np.ndarray | None = None) -> Ranks:
    """Ranks of the true pairs, counted tile by tile.

    similarities: (N, C), a numpy array or a `Similarity`; caption_images: as for
    `resolve_caption_images`. Raises ValueError if the shape or the map does not fit, and for NaN
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

    def ahead_of_true(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Count candidates ahead of the true one: (rows,) captions, and (C,) images in `rows`."""
        images_ahead: np.ndarray = np.zeros(len(image[rows]), np.int64)
        captions_ahead: np.ndarray = np.zeros(num_captions, np.int16)
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
        # the matrix products of a `Similarity` are multithreaded already
        each = pool.map if isinstance(similarities, np.ndarray) else map
        for rows, (images_ahead, captions_ahead) in zip(strips, each(ahead_of_true, strips)):
            found.image_to_text[rows] = images_ahead
            found.text_to_image[:] += captions_ahead
    return found._replace(text_to_image=pairs.in_file_order(found.text_to_image))


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values.sum()):
        raise ValueError(
            "similarities must be finite: comparisons with NaN are false, so it would rank first"
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


def fold_blocks(
    similarities: Similarities, folds: int, caption_images: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the similarities and the `caption_images` of each fold.

    A fold has N / folds consecutive images, with their captions in the order of the file. Raises
    ValueError if the images do not divide into the folds.
    """
    num_images = similarities.shape[0]
    caption_images = resolve_caption_images(similarities, caption_images)
    size, rest = divmod(num_images, folds)
    if rest or not size:
        raise ValueError(f"{num_images} images do not divide into {folds} folds")
    for start in range(0, num_images, size):
        columns = np.flatnonzero((caption_images >= start) & (caption_images < start + size))
        images = caption_images[columns] - start
        if columns[-1] - columns[0] == len(columns) - 1:
            columns = slice(columns[0], columns[-1] + 1)  # a view, not a copy
        yield similarities[start : start + size, columns], images


def ensemble(models: Sequence[Scored]) -> Scored:
    """Mean of several models' similarities. Of embeddings, it is the similarity of concatenated
    embeddings.

    Embedding sizes may differ. Raises ValueError if the models differ in their images or captions,
    or in which belong together.
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
            "an ensemble needs models of the same pairs of images and captions, found different "
            "pairs"
        )
    embedded = [model for model in models if isinstance(model, Similarity)]
    if len(embedded) < len(models):
        total = np.sum([model[:, :] for model in models], axis=0, dtype=np.float32)
        return ScoreMatrix(total / np.float32(len(models)), caption_images)
    images = torch.cat([model.images for model in embedded], dim=1) / len(models)
    captions = torch.cat([model.captions for model in embedded], dim=1)
    return Similarity(images, captions, caption_images)


def top_indices(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of (n,) scores, largest first; ties keep their order."""
    return np.argsort(-scores, kind="stable")[:count]
