"""Searches in one split for the search page: by text, by caption, by image, by a new picture.

One thread runs the model, one query at a time; it is joined when the program ends. Models with
embeddings compare a query with cached embeddings; models with cross-attention score the query with
the whole split.
"""

# N images, C captions

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from PIL import Image

from ..data.dataset import RetrievalDataset
from ..evaluation.similarity import Similarity
from . import search
from .matches import WordRegions, word_regions
from .search import SearchResult, SplitIndex, best_and_truth
from .trained import Trained

Returned = TypeVar("Returned")


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

    def images_of_text(self, text: str, count: int) -> list[SearchResult]:
        """The best images for a text. If it is a caption of the split, its images are hits."""
        true_images = {
            int(image)
            for image, caption in zip(self.index.caption_images, self.index.captions)
            if caption == text
        }
        return best_and_truth(self._text_scores(text), count, true_images)

    def _text_scores(self, text):
        return self._alone(search.text_scores, self.trained, self.data, self.similarity, text)

    def images_of_caption(self, caption: int, count: int) -> list[SearchResult]:
        """The best images for a caption of the split, whose image is the only hit."""
        if self.similarity is None:
            scores = self._text_scores(self.index.captions[caption])
        else:
            scores = self.similarity.images.numpy() @ self.similarity.captions[caption].numpy()
        return best_and_truth(scores, count, {int(self.index.caption_images[caption])})

    def captions_of_image(self, image: int, count: int) -> list[SearchResult]:
        """The best captions for an image of the split."""
        if self.similarity is None:
            scores = self._alone(self.trained.scores_of_image, image, self.data)
        else:
            scores = self.similarity.captions.numpy() @ self.similarity.images[image].numpy()
        return best_and_truth(scores, count, self.index.captions_of(image))

    def captions_of_picture(self, picture: Image.Image, count: int) -> list[SearchResult]:
        """The best captions for a new picture. Raises InputError if the model cannot compute its
        features."""
        regions = self._alone(self.trained.picture_regions, [picture])
        scores = self._alone(
            search.region_scores, self.trained, self.data, self.similarity, regions
        )
        return search.best(scores, count)

    def matches(self, image: int, text: str) -> WordRegions:
        """Which words of a text match which regions of an image of the split."""
        return self._alone(word_regions, self.trained, self.data, image, text)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the model does not know."""
        return self._alone(search.unknown_words, text, self.trained.tokeniser)
