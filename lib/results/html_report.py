"""A report of one evaluation as a single HTML file that opens from disk: table, curves,
ranks, similarities, gallery.

The page holds no script and loads nothing; its security policy forbids both.
"""

# N images, C captions

import re
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..evaluation import bootstrap, metrics, report
from ..evaluation.metrics import Similarity, resolve_caption_images
from ..system import charts
from ..training.logs import EVAL, TRAIN
from ..training.validations import log_lines, read_validations
from ..training.validations import number as finite_number
from . import search
from .pictures import MOST_BYTES, MOST_PHOTOGRAPHS, Pictures
from .search import SplitIndex

# docs/method.md, section 10, by the beginning of a data set's name: I2T R@1, R@5, T2I R@1, R@5
PUBLISHED = {
    "f30k": {"Flickr30K": (84.4, 96.7, 62.4, 86.6)},
    "coco": {"COCO 1K": (81.9, 96.9, 65.9, 91.4), "COCO 5K": (62.5, 87.4, 44.0, 73.9)},
}
# the published epochs
SELECTED_ON = {"Flickr30K": "test", "COCO 1K": "testall", "COCO 5K": "testall"}
SAMPLE = 60  # images of the similarity matrix, each with its first caption
BINS = (1, 2, 3, 6, 11, 21, 51, 101, 501)  # ranks at which a bar of the histogram begins
TRAIN_LINE = re.compile(r"epoch \d+ step (\d{1,15}): loss (\S+) .*, rate ([^\s;]+)")

STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #1f2328; --soft: #656d76;
  --rule: #d8dce1; --panel: #f2f3f5; --accent: #0b63b8; --hit: #1a7f37; --hit-panel: #e3f4e7; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e4e7eb; --soft: #9aa4af;
  --rule: #343b44; --panel: #1f242a; --accent: #6cb6ff; --hit: #57c773; --hit-panel: #17301f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 3rem 0 .5rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }
h3 { margin: 2rem 0 .25rem; }
p, li { max-width: 50rem; }
a { color: var(--accent); }
header p { margin: .25rem 0; }
nav { margin-top: 1rem; }
nav a { display: inline-block; margin-right: 1rem; }
.soft, figcaption { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { position: sticky; left: 0; max-width: calc(100vw - 2.5rem); text-align: left;
  color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; }
tbody th, thead tr:last-child th:first-child { text-align: left; }
th[colspan] { text-align: center; }
tr.ours { background: var(--panel); font-weight: 600; }
figure { margin: 0; }
figcaption { font-size: .9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr));
  gap: 1.5rem; margin-top: 1rem; }
.chart { width: 100%; height: auto; }
.chart text { font-size: 12px; fill: var(--soft); }
.grid { stroke: var(--rule); }
.line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.dot, .bar { fill: var(--accent); }
.matrix { width: min(30rem, 100%); image-rendering: pixelated; border-radius: 4px; }
.scale { display: inline-block; width: 8rem; height: .7rem; border-radius: 2px; margin: 0 .4rem;
  background: linear-gradient(to right, {scale}); }
.query { display: grid; grid-template-columns: 11rem 1fr; gap: 1.25rem; padding: 1rem 0;
  border-bottom: 1px solid var(--rule); }
.query p { margin: 0 0 .3rem; }
.query.text { grid-template-columns: 1fr; }
.picture { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 8px;
  background: var(--panel); }
.none { display: grid; place-items: center; padding: .5rem; color: var(--soft); font-size: .8rem;
  line-height: 1.35; text-align: center; overflow-wrap: anywhere; }
ol.captions, ol.images { margin: 0; padding: 0; list-style: none; }
ol.captions li { display: flex; gap: .75rem; padding: .2rem .6rem;
  border-left: 3px solid transparent; }
ol.captions .score { min-width: 3.2rem; }
ol.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
  gap: .75rem; align-items: start; }
ol.images li { padding: .35rem; border-radius: 11px; border: 2px solid transparent;
  max-width: 13rem; }
li.hit { background: var(--hit-panel); }
ol.captions li.hit { border-left-color: var(--hit); }
ol.images li.hit { border-color: var(--hit); }
ol.captions li.truth { border-left: 3px dashed var(--hit); margin-top: .3rem; }
ol.images li.truth { border: 2px dashed var(--hit); }
ol.images li.truth .mark { display: block; font-size: .85rem; white-space: normal; }
.name { display: block; font-size: .85rem; overflow-wrap: anywhere; }
.mark { color: var(--hit); font-weight: 700; white-space: nowrap; }
.score { color: var(--soft); font-variant-numeric: tabular-nums; }
.words { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { .query { grid-template-columns: 1fr; }
  .query .picture { max-width: 11rem; } }
""".replace("{scale}", ", ".join(f"rgb{colour}" for colour in charts.COLOURS))


class Evaluation(NamedTuple):
    """What a report is about: the table and its facts, the similarities behind it,
    names and pictures of the split."""

    scores: dict
    facts: dict
    similarity: Similarity
    index: SplitIndex
    pictures: Pictures


def write(path, evaluation, topk=5, queries=6, seed=0):
    """Write the report to `path`; curves come from the logs in its folder.

    topk: results of a query; queries: how many of each kind the gallery shows.
    """
    ranks = metrics.ranks(evaluation.similarity)
    title = f"{evaluation.facts['dataset']}, split {evaluation.facts['split']}"
    sections = {
        "Results": _results(evaluation),
        "Training": _training(Path(path).parent),
        "Ranks": _ranks(ranks),
        "Similarities": _similarities(evaluation.similarity, seed),
        "Gallery": _gallery(evaluation, ranks, topk, queries, seed),
        "How it was got": _describe_setup(evaluation.facts),
    }
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    body = "".join(
        f'<section aria-labelledby="{_anchor(name)}"><h2 '
        f'id="{_anchor(name)}">{name}</h2>{content}</section>'
        for name, content in sections.items()
    )
    about = "".join(
        f'<p class="soft">{escape(line)}</p>'
        for line in (
            evaluation.facts["title"],
            _describe_run(Path(path).parent, evaluation.facts["options"][0]),
        )
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>HREM: "
        f"{escape(title)}</title><style>{STYLE}</style></head>\n<body><header><h1>HREM: "
        f"{escape(title)}"
        f"</h1>{about}<nav "
        f'aria-label="Sections">{links}</nav></header>\n<main>{body}</main></body></html>\n'
    )
    with report.run_folder(Path(path).parent).atomic_write(Path(path).name) as file:
        file.write(page.encode("utf-8", "backslashreplace"))


def _describe_run(folder, options):
    """Which run it is, in a line: its folder and what tells it from others,
    as far as its options say."""
    forms = {"text_encoder": "{}", "embed_size": "E {}", "seed": "seed {}"}
    return ", ".join(
        [
            str(folder),
            *(form.format(options[name]) for name, form in forms.items() if name in options),
        ]
    )


def _anchor(name):
    return name.lower().replace(" ", "-")


def _results(evaluation):
    dataset, facts = evaluation.facts["dataset"], evaluation.facts
    published = next((rows for start, rows in PUBLISHED.items() if dataset.startswith(start)), {})
    rows = "".join(
        _row(label, scores, " and ".join(facts["selected_on"]) or "–")
        for label, scores in evaluation.scores.items()
    )
    for label, (i1, i5, t1, t5) in published.items():
        cells = [i1, i5, None, None, None, t1, t5, None, None, None, None]
        rows += _cells(f"{label}, published", SELECTED_ON[label], cells, "published")
    note = "" if published else "<p class='soft'>There is no published row for this data set.</p>"
    table = (
        (
            '<div class="wide"><table id="table"><caption>R@K in percent; ranks count from 1; '
            "rsum is the sum of the six recalls.</caption><thead><tr><td></td><td></td><th "
            'colspan="5" scope="colgroup">image to text</th><th colspan="5" scope="colgroup">text '
            "to image</th><td></td></tr><tr>"
        )
        + "".join(
            f'<th scope="col">{name}</th>'
            for name in (
                "images",
                "selected on",
                *("R@1", "R@5", "R@10", "median", "mean") * 2,
                "rsum",
            )
        )
        + f"</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )
    return table + (_intervals(facts["bootstrap"]) if "bootstrap" in facts else "")


def _row(label, scores, selected):
    return _cells(
        label, selected, [*scores.image_to_text, *scores.text_to_image, scores.rsum], "ours"
    )


def _cells(label, selected, values, kind):
    cells = "".join(f"<td>{'–' if value is None else f'{value:.1f}'}</td>" for value in values)
    return (
        f'<tr class="{kind}"><th '
        f'scope="row">{escape(label)}</th><td>{escape(selected)}</td>{cells}</tr>'
    )


def _intervals(found):
    """Bootstrap intervals: found as `lib.evaluation.bootstrap.compare` gives them."""
    head = "".join(f'<th scope="col">{name}</th>' for name in bootstrap.COLUMNS.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{one.low:.1f} to {one.high:.1f}</td>" for one in intervals.values())
        + "</tr>"
        for label, intervals in found.items()
    )
    return (
        '<h3>95% intervals</h3><div class="wide"><table id="intervals"><caption>Bootstrap over '
        "the images, as queries "
        "against the whole split.</caption><thead><tr><th "
        f'scope="col">images</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


class Curves(NamedTuple):
    """What the text logs of a run say: (step, value) points, finite ones alone."""

    loss: list
    rate: list
    rsum: list
    split: str


def read_curves(folder):
    """The curves in train.txt and eval.txt of a run folder; empty where there are no logs.
    Returns `Curves`.

    Lines without finite numbers are left out. Raises InputError where a log is no file.
    """
    loss, rate = [], []
    for line in log_lines(folder, TRAIN):
        if found := TRAIN_LINE.match(line):
            loss.append((int(found[1]), finite_number(found[2])))
            rate.append((int(found[1]), finite_number(found[3])))
    validations = read_validations(folder)
    rsum, split = (
        [(one.step, one.rsum) for one in validations],
        validations[-1].split if validations else "",
    )

    def shown(points):
        return sorted(
            (point for point in points if point[1] is not None), key=lambda point: point[0]
        )

    return Curves(shown(loss), shown(rate), shown(rsum), split)


def _training(folder):
    curves = read_curves(folder)
    figures = [
        charts.lines(title, points, "optimisation step", label)
        for title, label, points in (
            ("Loss, with the graph's terms from the warm-up's end on", "loss", curves.loss),
            (f"rsum on {curves.split}, which selects the epoch", "rsum", curves.rsum),
            ("Learning rate", "rate", curves.rate),
        )
        if points
    ]
    if not figures:
        return f"<p class='soft'>The folder holds no logs of a training ({TRAIN}, {EVAL}).</p>"
    return f'<div class="charts">{"".join(figures)}</div>'


def histogram(ranks_from_0):
    """How many ranks, counted from 1, fall between the BINS: {"1": n, "2": n, "3–5": n, ...},
    no empty ones behind."""
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


def _ranks(ranks):
    return (
        '<div class="charts">'
        + "".join(
            charts.bars(title, histogram(found), "rank", "queries")
            for title, found in (
                ("Image to text: the best rank of an image's captions", ranks.image_to_text),
                ("Text to image: the rank of the caption's image", ranks.text_to_image),
            )
        )
        + "</div>"
    )


def _similarities(similarity, seed):
    num_images = similarity.shape[0]
    first_captions = np.unique(resolve_caption_images(similarity), return_index=True)[1]
    chosen = np.sort(np.random.default_rng(seed).permutation(num_images)[:SAMPLE])
    values = np.concatenate(
        [similarity[image : image + 1, :][:, first_captions[chosen]] for image in chosen]
    )
    content = charts.data_uri("image/png", charts.png(charts.heat(values)))
    on, off = values[np.eye(len(chosen), dtype=bool)], values[~np.eye(len(chosen), dtype=bool)]
    means = f"mean of the true pairs {on.mean():.2f}" + (
        f", of the others {off.mean():.2f}" if len(off) else ""
    )
    return (
        f'<figure><img class="matrix" src="{content}" alt="Similarities of {len(chosen)} images '
        "with a caption of "
        f'each: {means}"><figcaption>{len(chosen)} images (rows), the first caption of each '
        "(columns), true pairs on "
        f'the diagonal; {means}.<br>{values.min():.2f}<span class="scale" '
        'role="presentation"></span>'
        f"{values.max():.2f}</figcaption></figure>"
    )


def _gallery(evaluation, ranks, topk, queries, seed):
    draw = np.random.default_rng(seed)
    num_images, num_captions = evaluation.similarity.shape
    parts = [
        (title, show(evaluation, ranks, which[:queries].tolist(), topk))
        for title, show, which in (
            ("Images, drawn at random", _image_queries, draw.permutation(num_images)),
            ("Captions, drawn at random", _caption_queries, draw.permutation(num_captions)),
            ("The worst images", _image_queries, metrics.top_indices(ranks.image_to_text, queries)),
            (
                "The worst captions",
                _caption_queries,
                metrics.top_indices(ranks.text_to_image, queries),
            ),
        )
    ]
    pictures, note = (
        evaluation.pictures,
        "Hits, the true pairs, are marked; where none is shown, the best one follows.",
    )
    if not pictures:
        note += (
            " Images stand as their first captions: give --images a folder of pictures named by id."
        )
    elif pictures.num_missing:
        note += (
            f" {pictures.num_missing} frames hold a first caption: their pictures are not shown "
            f"(not found, above {MOST_BYTES / 1e6:g} MB, or beyond the first {MOST_PHOTOGRAPHS})."
        )
    return f'<p class="soft">{note}</p>' + "".join(
        f"<h3>{title}</h3>{content}" for title, content in parts
    )


def _image_queries(evaluation, ranks, images, topk):
    index, parts = evaluation.index, []
    for image in images:
        rank = ranks.image_to_text[image] + 1
        found = search.best_captions(evaluation.similarity, image, len(index.captions))
        parts.append(
            f'<div class="query">{evaluation.pictures.of(image)}<div><p '
            f'class="soft">{escape(index.label(image))}; its best caption has rank {rank}</p><ol '
            'class="captions">'
            + "".join(
                f'<li class="{kind}"><span class="score">{one.score:.3f}</span>'
                f'<span class="words">{escape(index.captions[one.number])}</span>{mark}</li>'
                for one, kind, mark in _shown(found, topk, rank)
            )
            + "</ol></div></div>"
        )
    return "".join(parts)


def _caption_queries(evaluation, ranks, captions, topk):
    index, parts = evaluation.index, []
    for caption in captions:
        rank = ranks.text_to_image[caption] + 1
        scores = evaluation.similarity[:, caption : caption + 1][:, 0]
        found = search.best_images(scores, len(index.ids), index.caption_images[caption])
        parts.append(
            f'<div class="query text"><p class="words"><q>{escape(index.captions[caption])}</q> '
            f'<span class="soft">its image has rank {rank}</span></p><ol class="images">'
            + "".join(
                f'<li class="{kind}">{evaluation.pictures.of(one.number)}<span '
                f'class="score">{one.score:.3f}</span> {mark}<span '
                f'class="name">{escape(index.label(one.number))}</span></li>'
                for one, kind, mark in _shown(found, topk, rank)
            )
            + "</ol></div>"
        )
    return "".join(parts)


def _shown(found, topk, rank):
    """The first `topk` of all results and, where no hit is among them, the best one,
    which has this rank from 1.

    Returns a list of (`SearchResult`, class of its item, its mark).
    """
    shown = [
        (one, "hit", '<span class="mark">✓ hit</span>') if one.is_hit else (one, "miss", "")
        for one in found[:topk]
    ]
    if not any(one.is_hit for one in found[:topk]):
        best_hit = next(one for one in found if one.is_hit)
        shown.append((best_hit, "truth", f'<span class="mark">truth, rank {rank}</span>'))
    return shown


def _describe_setup(facts):
    """Versions and options, for who wants to repeat it."""
    lists = {"Versions": report.versions()} | {
        f"Options of model {number}" if len(facts["options"]) > 1 else "Options": options
        for number, options in enumerate(facts["options"], 1)
    }
    return "".join(
        f"<details><summary>{name}</summary><dl>"
        + "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>"
            for key, value in sorted(values.items())
        )
        + "</dl></details>"
        for name, values in lists.items()
    )
