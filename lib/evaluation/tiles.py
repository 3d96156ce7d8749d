"""Similarities cut into tiles, so that ranks are counted with the memory of one tile.

Columns are sorted by image: the tiles on the diagonal then contain all true pairs.
"""

# N images, C captions

from typing import NamedTuple

import numpy as np

from .caption_order import CAPTIONS_PER_IMAGE
from .similarity import Similarities, resolve_caption_images

# a tile of the similarity matrix has 250 images x 1250 captions (1.2 MB) and fits in the CPU cache
TILE_IMAGES = 250


class TruePairs(NamedTuple):
    """Similarities of the true pairs.

    scores: (C,) each caption with its own image, in the order of the columns; best_scores,
    best_captions: (N,) similarity and number of each image's most similar true caption.
    """

    scores: np.ndarray
    best_scores: np.ndarray
    best_captions: np.ndarray


class SortedSimilarities:
    """Similarities (N, C) with columns sorted by image; captions of an image keep their order.

    captions: (C,) caption number of each column; images: (C,) its image; starts: (N,) first column
    of each image; true_tiles: rows and columns of the tiles on the diagonal, which contain all true
    pairs. Raises ValueError if the map does not fit the shape.
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
        self.true_tiles = self._find_true_tiles()

    def __getitem__(self, index: tuple) -> np.ndarray:
        rows, columns = index
        return self.similarities[rows, columns if self.is_sorted else self.captions[columns]]

    def _find_true_tiles(self) -> list[tuple[slice, slice]]:
        """Cut the diagonal into tiles.

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

    def find_true_pairs(self) -> TruePairs:
        """The true pairs of the whole matrix. If captions of an image are equally similar, the
        first in the file is the best."""
        scores = np.concatenate(
            [self.true_scores(self[tile], *tile) for tile in self.true_tiles]
        )  # (C,)
        best_scores = np.maximum.reduceat(scores, self.starts)
        is_best = scores == best_scores[self.images]
        first = np.unique(self.images[is_best], return_index=True)[1]
        return TruePairs(scores, best_scores, self.captions[is_best][first])

    def in_file_order(self, columns: np.ndarray) -> np.ndarray:
        """Reorder values of the columns, (C,), to the order of the captions in the file."""
        values = np.empty_like(columns)
        values[self.captions] = columns
        return values
