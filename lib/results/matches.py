"""Which words of a caption match which regions of an image: the cosines of their fragments, which
HREM's cross-modal relations and the cross-attention scores are computed from.
"""

# W words, P word pieces, R regions, E embedding

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..data.captions import split_words
from ..data.dataset import RetrievalDataset
from ..data.layout import BOXES, read_boxes
from .pictures import Picture
from .trained import Trained

REGIONS_SHOWN = 3  # for each word
LEVELS = 5  # of the colours of words


class WordRegions(NamedTuple):
    """Cosines of words with regions, (W, R); a word of several pieces counts by its best piece.
    boxes: (R, 4), left, top, right, bottom as fractions of the picture, or None."""

    words: list[str]
    cosines: np.ndarray
    boxes: np.ndarray | None


class Box(NamedTuple):
    """A region drawn over a picture, in percent of its width and height."""

    x: float
    y: float
    width: float
    height: float


class MatchedWord(NamedTuple):
    """A word, its largest cosine, its colour (0 to LEVELS - 1, the strongest word of the caption
    last), and its best regions, the best first: numbers from 0, and boxes if they are known."""

    word: str
    score: float
    level: int
    regions: list[int]
    boxes: list[Box]


class MatchedPair(NamedTuple):
    """A caption and an image, as the pages show them. chosen: number of the word that is shown
    first, the one with the largest cosine."""

    title: str
    words: list[MatchedWord]
    picture: Picture
    chosen: int


@torch.no_grad()
def word_regions(trained: Trained, data: RetrievalDataset, image: int, text: str) -> WordRegions:
    """The cosines of the words of a text with the regions of an image of the split. Raises
    InputError."""
    model, captions = trained.model.eval(), trained.tokenised([text])
    pieces, num_pieces = captions.caption_block(np.array([0]))
    regions, num_regions = data.image_block(image, image + 1)
    encoded = model.text_encoder(pieces.to(trained.device), num_pieces, least_pieces=0)
    of_pieces = encoded.fragments[0, 1 : int(num_pieces[0]) - 1]  # (P, E), without [CLS], [SEP]
    of_regions = model.image_encoder(regions.to(trained.device), num_regions).fragments[0]
    products = F.normalize(of_pieces.float(), dim=1) @ F.normalize(of_regions.float(), dim=1).T
    cosines = products.cpu().numpy()
    starts = captions.captions.word_starts[:-1]
    words = split_words(text, trained.tokeniser)[: len(starts)]
    by_word = np.maximum.reduceat(cosines, starts) if words else cosines
    boxes = boxes_of_split(data)
    if boxes is not None:
        boxes = np.nan_to_num(boxes[data.row_of(image)]).clip(0, 1)
    return WordRegions(words, by_word, boxes)


def boxes_of_split(data: RetrievalDataset) -> np.ndarray | None:
    """The boxes of all rows of a split, (rows, R, 4), or None if the folder has none. Raises
    InputError if they do not fit the features."""
    return read_boxes(data.folder / f"{data.split}_{BOXES}", *data.regions.shape[:2])


def matched_pair(found: WordRegions, title: str, picture: Picture) -> MatchedPair:
    """What a page shows of the matches of a pair."""
    best = found.cosines.max(axis=1, initial=-1)
    low, high = best.min(initial=1), best.max(initial=-1)
    levels = ((best - low) / max(high - low, 1e-6) * LEVELS).astype(int).clip(0, LEVELS - 1)
    order = np.argsort(-found.cosines, axis=1, kind="stable")[:, :REGIONS_SHOWN]
    words = [
        MatchedWord(word, float(score), int(level), regions.tolist(), _draw(found.boxes, regions))
        for word, score, level, regions in zip(found.words, best, levels, order)
    ]
    return MatchedPair(title, words, picture, int(best.argmax()) if words else 0)


def _draw(boxes, regions):
    if boxes is None:
        return []
    return [
        Box(*(100 * np.array([left, top, right - left, bottom - top])).round(2).tolist())
        for left, top, right, bottom in boxes[regions].astype(np.float64)
    ]
