"""Evaluate trained models on a split: print and save a table, print search results, or serve the
search page."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation import bootstrap, encoding, extended
from ..evaluation.facts import find_facts
from ..evaluation.report import save_results
from ..evaluation.result_folder import METRICS, find_name, run_folder
from ..evaluation.result_names import SEEDS, ResultName, ensemble_id
from ..evaluation.similarity import Similarities, ensemble
from ..evaluation.table import (
    Table,
    folds_by_label,
    label_seeds,
    markdown,
    markdown_of_seeds,
    scores_by_label,
    summarise,
)
from ..model import checkpoint
from ..system import devices, distributed
from ..system.console import one_line
from ..system.distributed import print_line
from ..system.errors import InputError
from ..system.options import is_given
from . import export, html_report, matches, search, search_server
from .options import is_picture
from .pictures import open_pictures
from .runs import Run, name_of, open_runs, open_similarity, use_model


def evaluate(options: argparse.Namespace) -> None:
    """Do what the options of eval.py request: print and save a table, print search results, or
    serve the search page.

    Several processes share the encoding; the main process does the rest.
    """
    device = devices.choose_device(options.device, distributed.local_gpu(options.gpu_id))
    named = options.model_path
    seeds = checkpoint.find_seeds(named[0]) if len(named) == 1 else {}
    if seeds:
        evaluate_seeds(Path(named[0]), seeds, options, device)
        return
    runs = distributed.main_process_first(
        lambda: open_runs([checkpoint.find(path) for path in named], options, device)
    )
    searches = options.query is not None or options.query_image is not None
    if searches or options.serve is not None:
        if distributed.is_main_process():
            with distributed.single_process():
                if searches:
                    print_search(runs[0], options, device)
                else:
                    search_server.serve(runs[0], options, device)
        return
    evaluate_runs(runs, options, device)


def evaluate_runs(runs: list[Run], options: argparse.Namespace, device: torch.device) -> None:
    """Print and save the table of one run or of an ensemble. Raises InputError."""
    first, folder = runs[0], runs[0].path.parent
    pairs = [(run.path, run.trained) for run in runs]
    result = name_of(runs, ensemble_id([run.path for run in runs], folder) if len(runs) > 1 else "")
    extras = [name for name in ("bootstrap", "extended") if is_given(options, name)]
    result = result._replace(extras="-".join(extras))
    _check_export(first, options)
    facts = find_facts(first.dataset, first.data, pairs, folder)
    distributed.broadcast_from_main(lambda: check_files(options, folder, result, facts))
    package = extended.annotations(search.build_index(first.data)) if options.extended else None
    if options.report:
        html_report.check(folder)  # before anything is computed
        matches.boxes_of_split(first.data)
    models = [encoding.similarities(run.model, run.data, device) for run in runs]
    if not distributed.is_main_process():
        return
    similarities = ensemble(models)
    table = summarise(similarities, facts)
    if options.bootstrap:
        labels = folds_by_label(first.data.num_images, first.data.split)
        facts["bootstrap_samples"] = options.bootstrap
        facts["bootstrap"] = bootstrap.compare(models, similarities, labels, options.bootstrap)
        text = bootstrap.markdown(facts["bootstrap"], options.bootstrap)
        table = table._replace(text=f"{table.text}\n\n{text}")
    if options.extended:
        facts["extended"] = extended.measure(package, similarities)
        extended.check_against(facts["extended"], list(table.scores.values())[-1])
        table = table._replace(text=f"{table.text}\n\n{extended.markdown(facts['extended'])}")
    print_line(table.text)
    _save(runs, table, similarities, result, options)


def _check_export(run: Run, options: argparse.Namespace) -> None:
    """Raise InputError if --export is given for a model without embeddings."""
    if options.export is not None and run.model.similarity is not None:
        raise InputError(
            f"--export: {run.path} has no embeddings (found --similarity "
            f"{run.trained.options['similarity']}, expected embedding). Use --save_results 1 to "
            "save the similarities"
        )


def _save(runs, table, similarities, result, options):
    """Save the table of `evaluate_runs`, its similarities and its report page, and export the
    embeddings."""
    first = runs[0]
    page = partial(
        write_report,
        run=first,
        table=table,
        similarities=similarities,
        options=options,
    )
    try:
        save_results(
            first.path.parent, result, table, similarities, options.save_results,
            page if options.report else None, runs,
        )  # fmt: skip
    finally:  # even if the run folder cannot be written
        if options.export is not None:
            index = search.build_index(first.data)
            export.write(
                options.export,
                similarities,
                index,
                table.facts["title"],
                markdown(table.scores),
            )


def evaluate_seeds(
    folder: Path, seeds: dict[int, Path], options: argparse.Namespace, device: torch.device
) -> None:
    """Print the table of the runs {seed: checkpoint file} of a folder, and save it there. Raises
    InputError."""
    for option in ("query", "query_image", "serve", "export", "report", "bootstrap", "extended"):
        if is_given(options, option):
            raise InputError(
                f"--{option}: this needs a single run (found {folder}, which contains one run per "
                f"seed). Name one of them, such as {folder}/seed{min(seeds)}"
            )
    runs = distributed.main_process_first(lambda: open_runs(seeds.values(), options, device))
    first, pairs, result = runs[0], [(run.path, run.trained) for run in runs], name_of(runs, SEEDS)
    facts = find_facts(first.dataset, first.data, pairs, folder)
    distributed.broadcast_from_main(lambda: check_files(options, folder, result, facts))
    models = [encoding.similarities(run.model, run.data, device) for run in runs]
    if not distributed.is_main_process():
        return
    similarities = ensemble(models)
    mean_table = scores_by_label(similarities, first.data.split)
    by_seed = {seed: scores_by_label(found, first.data.split) for seed, found in zip(seeds, models)}
    text = f"{facts['title']}\n\n{markdown_of_seeds(by_seed, mean_table)}"
    print_line(text)
    table = Table(text, label_seeds(by_seed, mean_table), facts)
    save_results(folder, result, table, similarities, options.save_results, runs=runs)


def print_search(run: Run, options: argparse.Namespace, device: torch.device) -> None:
    """Print the results of --query and --query_image."""
    data, index, which = run.data, search.build_index(run.data), options.query_image
    asked = use_model(run, device)
    image = regions = None  # what is wrong with them is said before the split is encoded
    if which is not None and is_picture(which):
        regions = asked.picture_regions([which])
    elif which is not None:
        image = index.find(which)
    where = one_line(f"{run.dataset}, split {data.split}")
    embedded = open_similarity(run, device)
    if options.query is not None:
        scores = search.text_scores(asked, data, embedded, options.query)
        found = search.best(scores, options.topk)
        print_line(f"best of {data.num_images} images ({where}) for: {one_line(options.query)}")
        if unknown := search.unknown_words(options.query, asked.tokeniser):
            print_line(f"not in the vocabulary: {one_line(', '.join(unknown))}")
        print_line("\n" + search.images_as_text(found, data, index))
    if image is not None:
        if embedded is None:
            scores = asked.scores_of_image(image, data)
        else:
            scores = embedded[image : image + 1, :][0]
        found = search.best(scores, options.topk, index.captions_of(image))
        _print_captions(found, index, where, index.label(image))
    if regions is not None:
        scores = search.region_scores(asked, data, embedded, regions)
        _print_captions(search.best(scores, options.topk), index, where, which)


def _print_captions(
    found: list[search.SearchResult], index: search.SplitIndex, where: str, name: str
) -> None:
    """Print the best captions of the image or picture that is called `name`."""
    print_line(f"best of {len(index.captions)} captions ({where}) for {one_line(name)}\n")
    print_line(search.captions_as_text(found, index))


def find_files(options: argparse.Namespace, result: ResultName) -> list[str]:
    """Names of the files that an evaluation writes into the run folder."""
    names = [f"{result.table()}.md", METRICS]
    names += [result.results()] * bool(options.save_results)
    return names + [result.report()] * bool(options.report)


def check_files(
    options: argparse.Namespace, folder: Path, result: ResultName, facts: dict[str, Any]
) -> None:
    """Raise InputError if the results could not be saved at the end. Call it before computing."""
    saved = run_folder(folder)
    saved.check(*find_files(options, find_name(saved, result, facts)))


def _match_random_captions(run, index, pictures, options):
    """The matches of as many captions with their images as --gallery says, drawn at random."""
    trained = use_model(run, next(run.model.parameters()).device)
    drawn = np.random.default_rng(0).permutation(len(index.captions))[: options.gallery]
    found = []
    for caption in drawn.tolist():
        image = int(index.caption_images[caption])
        matched = matches.word_regions(trained, run.data, image, index.captions[caption])
        found.append(matches.matched_pair(matched, index.label(image), pictures.of(image)))
    return found


def write_report(
    path: Path,
    run: Run,
    table: Table,
    similarities: Similarities,
    options: argparse.Namespace,
) -> None:
    """Write the report page of a split to `path`, with the pictures in --images or drawings of the
    demo's scenes."""
    index = search.build_index(run.data)
    pictures = open_pictures(index, run.data, run.dataset, options.images)
    matched = _match_random_captions(run, index, pictures, options)
    shown = html_report.Evaluation(
        table.scores, table.facts, similarities, index, pictures, matched
    )
    html_report.write(path, shown, options.topk, options.gallery)
    print_line(f"\nreport: {path}")
    if missing := pictures.missing_as_text():
        print_line(missing)
