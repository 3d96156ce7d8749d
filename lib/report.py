"""Retrieval tables as people read them: Markdown, and metrics.json beside it (SPEC section 7)."""

import json
import platform
from pathlib import Path

import numpy as np
import torch
import transformers

from lib import metrics
from lib.errors import InputError
from lib.files import written_whole

FOLDS = 5
METRICS = "metrics.json"
HEADER = (
    "| images | I2T R@1 | R@5 | R@10 | median | mean | T2I R@1 | R@5 | R@10 | median | mean | rsum |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def folds_by_label(num_images, split):
    """The rows of a table: {label: folds}; `testall` (COCO) has five folds (1K) and the whole (5K)."""
    found = {_thousands(num_images): 1}
    if split == "testall" and num_images % FOLDS == 0:
        found = {f"{_thousands(num_images // FOLDS)} (mean of {FOLDS} folds)": FOLDS} | found
    return found


def tables(similarities, split):
    """Scores of a split by label; several folds: their mean."""
    return {
        label: metrics.fold_scores(similarities, folds) if folds > 1 else metrics.scores(metrics.ranks(similarities))
        for label, folds in folds_by_label(similarities.shape[0], split).items()
    }


def _thousands(number):
    return f"{number // 1000}K" if number % 1000 == 0 else str(number)


def markdown(scores_by_label):
    """The table that people paste: a row a label, recalls in percent, ranks from 1."""
    rows = [
        f"| {label} | {_cells(scores.image_to_text)} | {_cells(scores.text_to_image)} | {scores.rsum:.1f} |"
        for label, scores in scores_by_label.items()
    ]
    return "\n".join([HEADER, *rows])


def _cells(recalls):
    return " | ".join(f"{value:.1f}" for value in recalls)


def versions():
    """What the numbers depend on besides code, data and seed."""
    return dict(
        python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
        numpy=np.__version__, machine=platform.machine(),
    )  # fmt: skip


def save(folder, name, text, scores_by_label, facts):
    """Write the table as `{name}.md` and its numbers, with the facts of how it was got, under `name` in metrics.json.

    Other entries of metrics.json stay. facts: a dict. Raises InputError where an existing metrics.json is damaged.
    """
    folder = Path(folder)
    path = folder / METRICS
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise InputError(
            f"{path}: not JSON ({error}), expected the metrics of earlier evaluations; move it away"
        ) from error
    entries[name] = facts | dict(
        versions=versions(),
        scores={
            label: dict(i2t=scores.image_to_text._asdict(), t2i=scores.text_to_image._asdict(), rsum=scores.rsum)
            for label, scores in scores_by_label.items()
        },
    )
    with written_whole(folder / f"{name}.md") as file:
        file.write((text + "\n").encode())
    with written_whole(path) as file:
        file.write((json.dumps(entries, indent=1, sort_keys=True) + "\n").encode())


def save_similarities(path, similarities):
    """Write `npts` (images) and `sims` (N, C) as one plain .npy record, read back by np.load(path)["sims"]."""
    record = np.zeros((), dtype=[("npts", np.int64), ("sims", np.float32, similarities.shape)])
    record["npts"], record["sims"] = similarities.shape[0], similarities[:, :]
    with written_whole(path) as file:
        np.save(file, record, allow_pickle=False)
