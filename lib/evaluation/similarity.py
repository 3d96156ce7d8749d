"""Similarities of images and captions: computed on demand, in folds, averaged over models
(docs/method.md, section 7).

`caption_images`, (C,) integers, maps each caption to its image. Without this map, all images have
the same number of captions, stored in the order of the images.
"""

# N images, C captions, E embedding

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .caption_order import captions_in_order


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
    """The image of each caption, (C,): the given map, that of the similarities, or the default.

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
    """Mean of several models' similarities. If all models have embeddings, it is the similarity of
    the concatenated embeddings.

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
    """Indices of the `count` largest of (n,) scores, largest first; ties keep their order, NaN is
    last."""
    keys = -scores
    if not 0 < count < len(keys):
        return np.argsort(keys, kind="stable")[:count]
    last = np.partition(keys, count - 1)[count - 1]
    candidates = np.flatnonzero(~(keys > last))  # with all its ties, and NaN
    return candidates[np.argsort(keys[candidates], kind="stable")[:count]]
