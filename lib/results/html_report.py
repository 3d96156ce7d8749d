"""The report page of an evaluation: one HTML file with the table, training curves, ranks,
similarities and a gallery.

The page is made from report.html and report.css. It opens from disk, contains no script and loads
nothing; its security policy forbids both.
"""

# N images, C captions

import re
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np

from ..evaluation import bootstrap, metrics
from ..evaluation.facts import versions
from ..evaluation.result_folder import run_folder
from ..evaluation.similarity import resolve_caption_images
from ..system import images
from ..system.console import printable
from ..training.logs import TRAIN
from ..training.validations import log_lines, read_validations
from ..training.validations import number as finite_number
from . import charts, gallery
from .gallery import Evaluation
from .pictures import MOST_BYTES, MOST_PHOTOGRAPHS

# I2T R@1, R@5, T2I R@1, R@5 by the prefix of a data set's name (docs/method.md, section 10)
PUBLISHED = {
    "f30k": {"Flickr30K": (84.4, 96.7, 62.4, 86.6)},
    "coco": {"COCO 1K": (81.9, 96.9, 65.9, 91.4), "COCO 5K": (62.5, 87.4, 44.0, 73.9)},
}
# the splits that selected the published epochs
SELECTED_ON = {"Flickr30K": "test", "COCO 1K": "testall", "COCO 5K": "testall"}
SAMPLE = 60  # number of images in the similarity matrix, each with its first caption
BINS = (1, 2, 3, 6, 11, 21, 51, 101, 501)  # the first rank of each bar of the histogram
TRAIN_LINE = re.compile(r"epoch \d+ step (\d{1,15}): loss (\S+) .*, rate ([^\s;]+)")
FOLDER = Path(__file__).parent  # of the templates
COLUMNS = ("images", "selected on", *("R@1", "R@5", "R@10", "median", "mean") * 2, "rsum")


class Row(NamedTuple):
    """A row of the results table. kind: "ours" or "published"."""

    label: str
    selected_on: str
    values: list[float | None]
    kind: str


def check(folder: Path) -> None:
    """Raise InputError if matplotlib is missing, or a log in the run folder cannot be read."""
    charts.check_installed()
    read_curves(folder)


def write(
    path: Path, evaluation: Evaluation, topk: int = 5, queries: int = 6, seed: int = 0
) -> None:
    """Write the report to `path`, with curves from the logs in its folder.

    topk: results per query; queries: number of each kind in the gallery.
    """
    ranks, facts, path = metrics.ranks(evaluation.similarity), evaluation.facts, Path(path)
    page = (
        templates()
        .get_template("report.html")
        .render(
            title=f"{facts['dataset']}, split {facts['split']}",
            style=(FOLDER / "report.css").read_text(encoding="utf-8"),
            facts=facts,
            run=_describe_run(path.parent, facts["options"][0]),
            columns=COLUMNS,
            rows=table_rows(evaluation),
            interval_columns=list(bootstrap.COLUMNS.values()),
            curves=_draw_curves(read_curves(path.parent)),
            histograms=_draw_histograms(ranks),
            matrix=_matrix(evaluation.similarity, seed),
            gallery=gallery.choose_queries(evaluation, ranks, topk, queries, seed),
            pictures=evaluation.pictures,
            matches=evaluation.matches,
            most_megabytes=f"{MOST_BYTES / 1e6:g}",
            most_photographs=MOST_PHOTOGRAPHS,
            setup=_setup(facts),
        )
    )
    with run_folder(path.parent).atomic_write(path.name) as file:
        file.write(page.encode("utf-8", "backslashreplace"))


def templates() -> jinja2.Environment:
    """The templates of the page. They escape markup and control characters."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=_printable, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def _printable(value):
    """Escape the control characters of a plain string. `Markup` and numbers stay as they are."""
    return printable(value) if type(value) is str else value


def _describe_run(folder, options):
    """One line with the run folder and the options that distinguish runs."""
    forms = {"text_encoder": "{}", "embed_size": "E {}", "seed": "seed {}"}
    shown = [form.format(options[name]) for name, form in forms.items() if name in options]
    return ", ".join([str(folder), *shown])


def table_rows(evaluation: Evaluation) -> list[Row]:
    """The rows of the results table, with the published results for the data set."""
    dataset = evaluation.facts["dataset"]
    selected_on = " and ".join(evaluation.facts["selected_on"]) or "–"
    rows = [
        Row(label, selected_on, [*one.image_to_text, *one.text_to_image, one.rsum], "ours")
        for label, one in evaluation.scores.items()
    ]
    published = next((rows for start, rows in PUBLISHED.items() if dataset.startswith(start)), {})
    for label, (i1, i5, t1, t5) in published.items():
        values = [i1, i5, None, None, None, t1, t5, None, None, None, None]
        rows.append(Row(f"{label}, published", SELECTED_ON[label], values, "published"))
    return rows


class Curves(NamedTuple):
    """The curves in the text logs of a run: (step, value) points with finite values. rsum: of the
    weights themselves; has_average: whether an average of them was validated too."""

    loss: list[tuple[int, float]]
    rate: list[tuple[int, float]]
    rsum: list[tuple[int, float]]
    split: str
    has_average: bool


def read_curves(folder: Path) -> Curves:
    """Read the curves from train.txt and eval.txt of a run folder. They are empty without logs.

    Lines without finite numbers are ignored. Raises InputError if a log is not a file.
    """
    loss, rate = [], []
    for line in log_lines(folder, TRAIN):
        if found := TRAIN_LINE.match(line):
            loss.append((int(found[1]), finite_number(found[2])))
            rate.append((int(found[1]), finite_number(found[3])))
    validations = read_validations(folder)
    rsum, split = (
        [(one.step, one.rsum) for one in validations if not one.is_average],
        validations[-1].split if validations else "",
    )

    def shown(points):
        return sorted(
            (point for point in points if point[1] is not None), key=lambda point: point[0]
        )

    has_average = any(one.is_average for one in validations)
    return Curves(shown(loss), shown(rate), shown(rsum), split, has_average)


def _draw_curves(curves):
    loss = "Training loss. After the warm-up it includes the terms of the instance graph."
    rsum = f"rsum on {printable(curves.split)}. The epoch with the highest rsum is kept."
    if curves.has_average:
        rsum += " Averaged weights, which may be kept too, are not drawn."
    return [
        charts.line_chart(name, title, points, "optimisation step", label)
        for name, title, label, points in (
            ("loss", loss, "loss", curves.loss),
            ("rsum", rsum, "rsum", curves.rsum),
            ("rate", "Learning rate.", "learning rate", curves.rate),
        )
        if points
    ]


def histogram(ranks_from_0: np.ndarray) -> dict[str, int]:
    """The number of ranks, counted from 1, in each of the BINS: {"1": n, "2": n, "3–5": n, ...},
    without empty bins at the end."""
    ranks, counts = np.asarray(ranks_from_0) + 1, {}
    for start, after in zip(BINS, (*BINS[1:], np.inf)):
        if start > ranks.max():
            break
        label = (
            f"> {start - 1}"
            if after == np.inf
            else str(start)
            if after == start + 1
            else f"{start}–{after - 1}"
        )
        counts[label] = int(((ranks >= start) & (ranks < after)).sum())
    return counts


def _draw_histograms(ranks):
    image_to_text = "Image to text: rank of the best true caption of each image."
    text_to_image = "Text to image: rank of the true image of each caption."
    return [
        charts.bar_chart(name, title, histogram(found), "rank", "queries")
        for name, title, found in (
            ("image-to-text", image_to_text, ranks.image_to_text),
            ("text-to-image", text_to_image, ranks.text_to_image),
        )
    ]


def _matrix(similarity, seed):
    """Similarities of a sample of images and the first caption of each, drawn as an image."""
    num_images = similarity.shape[0]
    first_captions = np.unique(resolve_caption_images(similarity), return_index=True)[1]
    chosen = np.sort(np.random.default_rng(seed).permutation(num_images)[:SAMPLE])
    values = np.concatenate(
        [similarity[image : image + 1, :][:, first_captions[chosen]] for image in chosen]
    )
    is_pair = np.eye(len(chosen), dtype=bool)
    return dict(
        image=images.data_uri("image/png", images.encode_png(charts.heat_map(values))),
        size=len(chosen),
        true_mean=values[is_pair].mean(),
        other_mean=values[~is_pair].mean() if len(chosen) > 1 else None,
        lowest=values.min(),
        highest=values.max(),
    )


def _setup(facts):
    """The versions and options that are needed to repeat the evaluation."""
    options = facts["options"]
    if len(options) == 1:
        return {"Versions": versions(), "Options": options[0]}
    named = {f"Options of model {number}": one for number, one in enumerate(options, 1)}
    return {"Versions": versions()} | named
