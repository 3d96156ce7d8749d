"""Searches in one split for the search page: by text, by caption, by image, by a new picture.

One thread runs the model, one query at a time; it is joined when the program ends. Models with
embeddings compare a query with cached embeddings; models with cross-attention score the query with
the whole split.
"""

# N images, C captions

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from ..data.dataset import RetrievalDataset
from ..evaluation.similarity import Similarity, top_indices
from . import search
from .matches import WordRegions, word_regions
from .search import SplitIndex
from .trained import Trained

Returned = TypeVar("Returned")


class RankedResult(NamedTuple):
    """A result: the number of the image or caption from 0, its rank from 1, its similarity.

    kind: "hit", "miss", or "truth" for the best true match if it ranks below the results shown.
    """

    number: int
    rank: int
    score: float
    kind: str


class Searcher:
    """A trained model and a split to search in.

    similarity: of the split, or None for a model with cross-attention.
    """

    def __init__(
        self,
        trained: Trained,
        data: RetrievalDataset,
        index: SplitIndex,
        similarity: Similarity | None,
    ) -> None:
        self.trained, self.data, self.index, self.similarity = trained, data, index, similarity
        self._worker = ThreadPoolExecutor(max_workers=1)

    def _alone(self, function: Callable[..., Returned], *arguments: Any) -> Returned:
        """Call a function in the thread of the model, after the calls before it."""
        return self._worker.submit(function, *arguments).result()

    def images_of_text(self, text: str, count: int) -> list[RankedResult]:
        """The best images for a text. If it is a caption of the split, its images are hits."""
        true_images = {
            int(image)
            for image, caption in zip(self.index.caption_images, self.index.captions)
            if caption == text
        }
        if self.similarity is None:
            scores = self._alone(self.trained.scores_of_text, text, self.data)
        else:
            query = self._alone(self.trained.encode_captions, [text])[0]
            scores = self.similarity.images.numpy() @ query
        return rank(scores, count, true_images)

    def images_of_caption(self, caption: int, count: int) -> list[RankedResult]:
        """The best images for a caption of the split, whose image is the only hit."""
        if self.similarity is None:
            text = self.index.captions[caption]
            scores = self._alone(self.trained.scores_of_text, text, self.data)
        else:
            scores = self.similarity.images.numpy() @ self.similarity.captions[caption].numpy()
        return rank(scores, count, {int(self.index.caption_images[caption])})

    def captions_of_image(self, image: int, count: int) -> list[RankedResult]:
        """The best captions for an image of the split."""
        if self.similarity is None:
            scores = self._alone(self.trained.scores_of_image, image, self.data)
        else:
            scores = self.similarity.captions.numpy() @ self.similarity.images[image].numpy()
        return rank(scores, count, np.flatnonzero(self.index.caption_images == image).tolist())

    def captions_of_picture(self, picture: Image.Image, count: int) -> list[RankedResult]:
        """The best captions for a new picture. Raises InputError if the model cannot compute its
        features."""
        if self.similarity is None:
            regions = self._alone(self.trained.picture_regions, [picture])
            scores = self._alone(self.trained.scores_of_regions, regions, self.data)
        else:
            query = self._alone(self.trained.encode_pictures, [picture])[0]
            scores = self.similarity.captions.numpy() @ query
        return rank(scores, count, ())

    def matches(self, image: int, text: str) -> WordRegions:
        """Which words of a text match which regions of an image of the split."""
        return self._alone(word_regions, self.trained, self.data, image, text)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the model does not know."""
        return self._alone(search.unknown_words, text, self.trained.tokeniser)


def rank(scores: np.ndarray, count: int, true: Collection[int]) -> list[RankedResult]:
    """The `count` best of (n,) scores and, if none of them is true, the best true one."""
    order = top_indices(scores, len(scores)).tolist()
    shown = [
        RankedResult(number, place, float(scores[number]), "hit" if number in true else "miss")
        for place, number in enumerate(order[:count], 1)
    ]
    if true and not any(one.kind == "hit" for one in shown):
        place = next(place for place, number in enumerate(order, 1) if number in true)
        number = order[place - 1]
        shown.append(RankedResult(number, place, float(scores[number]), "truth"))
    return shown
