"""The gallery of the report page: queries drawn at random, the worst queries, and their results."""

from typing import Any, NamedTuple

import numpy as np

from ..evaluation import metrics
from . import search
from .pictures import Picture


class Result(NamedTuple):
    """A result of a query in the gallery; kind: "hit", "miss" or "truth", which is a true match
    below the results shown."""

    kind: str
    score: float
    text: str
    picture: Picture | None = None


class Query(NamedTuple):
    """A query of the gallery and the rank of its best true match; picture: of an image."""

    text: str
    rank: int
    results: list[Result]
    picture: Picture | None = None


def choose_queries(
    evaluation: Any, ranks: metrics.Ranks, topk: int, queries: int, seed: int
) -> list[dict[str, Any]]:
    """The parts of the gallery, each with its title and a list of `Query`.

    evaluation: `lib.results.html_report.Evaluation`; ranks: of its similarities; topk: results per
    query; queries: number in each part.
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
            ("Worst images", _image_query, metrics.top_indices(ranks.image_to_text, queries)),
            ("Worst captions", _caption_query, metrics.top_indices(ranks.text_to_image, queries)),
        )
    ]


def _image_query(evaluation, ranks, image, topk):
    index, picture = evaluation.index, evaluation.pictures.of(image)
    found = search.best_captions(evaluation.similarity, image, len(index.captions))
    results = [
        Result(kind, one.score, index.captions[one.number]) for kind, one in _shown(found, topk)
    ]
    return Query(index.label(image), ranks.image_to_text[image] + 1, results, picture)


def _caption_query(evaluation, ranks, caption, topk):
    index, pictures = evaluation.index, evaluation.pictures
    scores = evaluation.similarity[:, caption : caption + 1][:, 0]
    found = search.best_images(scores, len(index.ids), index.caption_images[caption])
    results = [
        Result(kind, one.score, index.label(one.number), pictures.of(one.number))
        for kind, one in _shown(found, topk)
    ]
    return Query(index.captions[caption], ranks.text_to_image[caption] + 1, results)


def _shown(found, topk):
    """The first `topk` of all results and, if there is no hit among them, the best one: pairs of
    a kind, as `Result` has it, and a `SearchResult`."""
    shown = [("hit" if one.is_hit else "miss", one) for one in found[:topk]]
    if not any(one.is_hit for one in found[:topk]):
        shown.append(("truth", next(one for one in found if one.is_hit)))
    return shown
