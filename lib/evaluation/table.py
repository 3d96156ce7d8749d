"""Results tables in Markdown, with the scores behind them (docs/method.md, section 7)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from . import metrics
from .metrics import Scores
from .similarity import Similarities

FOLDS = 5
HEADER = (
    "| images | I2T R@1 | R@5 | R@10 | median | mean | T2I R@1 | R@5 | R@10 | median | mean | "
    "rsum |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


class Table(NamedTuple):
    """A results table: its text, scores by label, and facts, see
    `lib.evaluation.facts.find_facts`."""

    text: str
    scores: dict[str, Scores]
    facts: dict[str, Any]


def folds_by_label(num_images: int, split: str) -> dict[str, int]:
    """The rows of a table: {label: number of folds}. `testall` (COCO) has five folds (1K) and the
    whole (5K)."""
    found = {_thousands(num_images): 1}
    if split == "testall" and num_images % FOLDS == 0:
        found = {f"{_thousands(num_images // FOLDS)} (mean of {FOLDS} folds)": FOLDS} | found
    return found


def scores_by_label(similarities: Similarities, split: str) -> dict[str, Scores]:
    """Scores of a split by label, averaged over folds."""
    return {
        label: metrics.fold_scores(similarities, folds)
        if folds > 1
        else metrics.scores(metrics.ranks(similarities))
        for label, folds in folds_by_label(similarities.shape[0], split).items()
    }


def _thousands(number):
    return f"{number // 1000}K" if number % 1000 == 0 else str(number)


def markdown(table: Mapping[str, Scores]) -> str:
    """The results table: one row per label, recalls in percent, ranks from 1."""
    return "\n".join([HEADER, *(_row(label, _numbers(scores)) for label, scores in table.items())])


def label_seeds(
    by_seed: Mapping[int, Mapping[str, Scores]], ensemble: Mapping[str, Scores]
) -> dict[str, Scores]:
    """Scores by label of several seeds: those of each seed, then those of their ensemble.

    by_seed: {seed: scores of `scores_by_label`}; ensemble: those of the mean of similarities.
    """
    return {
        f"{label}, {which}": table[label]
        for label in ensemble
        for which, table in [
            *((f"seed {seed}", table) for seed, table in by_seed.items()),
            ("ensemble", ensemble),
        ]
    }


def markdown_of_seeds(
    by_seed: Mapping[int, Mapping[str, Scores]], ensemble: Mapping[str, Scores]
) -> str:
    """The table of `label_seeds`, with the mean and the sample standard deviation over seeds
    between the two."""
    rows = []
    for label, together in ensemble.items():
        numbers = np.array([_numbers(table[label]) for table in by_seed.values()])
        rows += [_row(f"{label}, seed {seed}", row) for seed, row in zip(by_seed, numbers)]
        rows.append(_row(f"{label}, mean", numbers.mean(axis=0)))
        if len(numbers) > 1:  # one seed has no deviation
            rows.append(_row(f"{label}, standard deviation", numbers.std(axis=0, ddof=1)))
        rows.append(_row(f"{label}, ensemble", _numbers(together)))
    return "\n".join([HEADER, *rows])


def _numbers(scores):
    return *scores.image_to_text, *scores.text_to_image, scores.rsum


def _row(label, numbers):
    return f"| {label} | {' | '.join(f'{number:.1f}' for number in numbers)} |"


def summarise(similarities: Similarities, facts: dict[str, Any]) -> Table:
    """The table of a split. facts: from `lib.evaluation.facts.find_facts`."""
    scores = scores_by_label(similarities, facts["split"])
    return Table(f"{facts['title']}\n\n{markdown(scores)}", scores, facts)
