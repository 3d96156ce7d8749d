"""The gallery of the report page: queries drawn at random, the worst queries, and their results."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..evaluation import metrics
from ..evaluation.similarity import Similarities, top_indices
from . import search
from .matches import MatchedPair
from .pictures import Picture, Pictures
from .search import SplitIndex


class Evaluation(NamedTuple):
    """What a report page shows: scores and facts of a table, the similarities behind them, captions
    and pictures of the split, matches of words with regions."""

    scores: dict[str, metrics.Scores]
    facts: dict[str, Any]
    similarity: Similarities
    index: SplitIndex  # type: ignore[assignment]  # hides tuple.index
    pictures: Pictures
    matches: Sequence[MatchedPair] = ()


class Result(NamedTuple):
    """A result of a query. kind: "hit", "miss", or "truth" for a true match that ranks below the
    results shown."""

    kind: str
    score: float
    text: str
    picture: Picture | None = None


class Query(NamedTuple):
    """A query and the rank of its best true match, from 1. picture: of an image query."""

    text: str
    rank: int
    results: list[Result]
    picture: Picture | None = None


def choose_queries(
    evaluation: Evaluation, ranks: metrics.Ranks, topk: int, queries: int, seed: int
) -> list[dict[str, Any]]:
    """The parts of the gallery: dicts of a title and a list of `Query`.

    ranks: of the similarities; topk: results per query; queries: number in each part.
    """
    draw = np.random.default_rng(seed)
    num_images, num_captions = evaluation.similarity.shape
    return [
        dict(
            title=title,
            queries=[query(evaluation, ranks, one, topk) for one in chosen[:queries].tolist()],
        )
        for title, query, chosen in (
            ("Random images", _image_query, draw.permutation(num_images)),
            ("Random captions", _caption_query, draw.permutation(num_captions)),
            ("Worst images", _image_query, top_indices(ranks.image_to_text, queries)),
            ("Worst captions", _caption_query, top_indices(ranks.text_to_image, queries)),
        )
    ]


def _image_query(evaluation, ranks, image, topk):
    index, picture = evaluation.index, evaluation.pictures.of(image)
    scores = evaluation.similarity[image : image + 1, :][0]
    results = [
        Result(one.kind, one.score, index.captions[one.number])
        for one in search.best_and_truth(scores, topk, index.captions_of(image))
    ]
    return Query(index.label(image), ranks.image_to_text[image] + 1, results, picture)


def _caption_query(evaluation, ranks, caption, topk):
    index, pictures = evaluation.index, evaluation.pictures
    scores = evaluation.similarity[:, caption : caption + 1][:, 0]
    results = [
        Result(one.kind, one.score, index.label(one.number), pictures.of(one.number))
        for one in search.best_and_truth(scores, topk, {int(index.caption_images[caption])})
    ]
    return Query(index.captions[caption], ranks.text_to_image[caption] + 1, results)
