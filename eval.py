"""Evaluate a trained model, or an ensemble, on a split:  python eval.py --data_path data/ --dataset f30k

Prints the retrieval table and writes it into the run folder, with metrics.json beside it (SPEC section 7).
"""

if __name__ == "__main__":
    import lib.start  # noqa: F401  before the imports that take seconds

from pathlib import Path
from typing import NamedTuple

import numpy as np

import arguments
from lib import (
    bert,
    bootstrap,
    checkpoint,
    demo,
    distributed,
    engine,
    export,
    extended,
    html_report,
    metrics,
    report,
    search,
)
from lib.console import one_line
from lib.dataset import RetrievalDataset, folder_of, test_split
from lib.errors import InputError, command_line
from lib.files import report_write_errors
from lib.logs import print_line
from lib.model import HREM, Trained, bert_of, load_model, tokeniser_of
from lib.pictures import Pictures, demo_scenes

UNKNOWN_WORTH_TELLING = 0.1  # of the pieces of a split


def open_folder(data_path, dataset):
    """The folder of a data set; the demo data are built on their first use. Raises InputError."""
    demo_folder = Path(data_path) / "demo_precomp"
    if dataset == "demo" and not demo_folder.exists():
        print_line(f"building the demo data in {demo_folder}")
        with report_write_errors(demo_folder):
            demo_folder.parent.mkdir(parents=True, exist_ok=True)
            demo.build(demo_folder)
    return folder_of(data_path, dataset)


def load_split(data_path, dataset, split, bert_path, vocabulary=None):
    """A split, its captions cut for the BERT at `bert_path`, or into the words of a `Vocabulary`."""
    folder = open_folder(data_path, dataset)
    longest = None if vocabulary else bert.configuration(bert_path).max_position_embeddings
    tokeniser = vocabulary or bert.tokeniser(bert_path)
    found = RetrievalDataset(folder, split, tokeniser, longest)
    if found.blank_lines:
        numbers = ", ".join(map(str, found.blank_lines[:10]))
        more = len(found.blank_lines) - 10
        print_line(
            f"warning: {folder / split}_caps.txt: {len(found.blank_lines)} blank captions are kept, they hold their "
            f"place (lines {numbers}{f' and {more} more' if more > 0 else ''})"
        )
    unknown = tokeniser.backend_tokenizer.token_to_id(tokeniser.backend_tokenizer.model.unk_token)
    share = np.mean(found.captions.pieces == unknown) if len(found.captions.pieces) else 0
    if share > UNKNOWN_WORTH_TELLING:
        print_line(
            f"warning: {split}: {share:.0%} of what the captions are made of is not in the vocabulary; give the "
            "--bert_path of another language or domain, or with --text_encoder bigru a smaller --min_word_count"
        )
    if found.captions.num_shortened:
        print_line(f"warning: {split}: {found.captions.num_shortened} captions cut to the {longest} positions of BERT")
    return found


def summarise(similarities, dataset, split, found):
    """Table of a split, and the facts of how it was got. found: the `Checkpoint`s behind the similarities."""
    selected = sorted({"test" if one.is_published else one.options["val_split"] for one in found})
    epochs = ", ".join(str(one.epoch) for one in found)
    scores = report.tables(similarities, split)
    num_images, num_captions = similarities.shape
    models = "1 model" if len(found) == 1 else f"ensemble of {len(found)} models (mean of similarities)"
    title = (
        f"{one_line(dataset)}, split {one_line(split)}: {num_images} images, {num_captions} captions; {models}; "
        f"best epoch by rsum on {one_line(' and '.join(selected))} (after {epochs} epochs)"
    )
    facts = dict(
        dataset=dataset, split=split, selected_on=selected, num_models=len(found), title=title,
        seeds=[one.options.get("seed") for one in found], options=[_plain(one.options) for one in found],
    )  # fmt: skip
    return f"{title}\n\n{report.markdown(scores)}", scores, facts


def _plain(options):
    """Options as JSON can hold them."""
    return {
        name: value if isinstance(value, (int, float, str, list)) else str(value) for name, value in options.items()
    }


class Run(NamedTuple):
    """A trained model on a split: its checkpoint file, what it holds, the `HREM`, its BERT, data set name and split."""

    path: Path
    trained: checkpoint.Checkpoint
    model: HREM
    bert_path: str
    dataset: str
    data: RetrievalDataset


def open_run(path, options, device):
    """The model of a checkpoint file and the split asked for. Raises InputError. Returns `Run`."""
    trained = checkpoint.load(path)
    ours = {} if trained.is_published else trained.options
    dataset = options.dataset or trained.options.get("dataset", "f30k")
    split = options.split or test_split(dataset)
    bert_path = bert_of(trained, options.bert_path)
    data_path = options.data_path or ours.get("data_path", "data/")
    data = load_split(data_path, dataset, split, bert_path, trained.vocabulary)
    return Run(path, trained, load_model(path, trained, bert_path, data.region_dim, device), bert_path, dataset, data)


def open_runs(paths, options, device):
    """`open_run` of each of an ensemble. Raises InputError where they are of different data sets."""
    runs = [open_run(path, options, device) for path in paths]
    if len({(run.dataset, run.data.num_images) for run in runs}) > 1:
        found = ", ".join(run.dataset for run in runs)
        raise InputError(f"--model_path: an ensemble of {found}; expected models of one data set")
    return runs


def print_search(run, options, device):
    """Print what --query and --query_image ask for."""
    data, known = run.data, search.names(run.data)
    kept = run.path.parent / f"embeddings_{run.path.stem}_{run.dataset}_{data.split}.npz"
    image = None if options.query_image is None else known.find(options.query_image)
    similarity = search.kept_similarity(kept, run.model, run.path, data, device)
    where = f"{run.dataset}, split {data.split}"
    if options.query is not None:
        tokeniser = tokeniser_of(run.trained, run.bert_path)
        words = Trained(run.model, tokeniser, device).encode_captions([options.query])
        found = search.best_images(similarity.images.numpy() @ words[0], options.topk)
        print_line(f"best of {data.num_images} images ({where}) for: {options.query}")
        if unknown := search.unknown_words(options.query, tokeniser):
            print_line(f"not in the vocabulary: {', '.join(unknown)}")
        print_line("\n" + search.images_as_text(found, data, known))
    if image is not None:
        found = search.best_captions(similarity, image, options.topk)
        print_line(f"best of {data.num_captions} captions ({where}) for {known.label(image)}\n")
        print_line(search.captions_as_text(found, known))


def write_report(run, scores, facts, similarities, options):
    """Write the report of a split into the run folder, with the pictures of --images, or the demo's scenes."""
    known, split = search.names(run.data), run.data.split
    path = run.path.parent / ("report.html" if split == test_split(run.dataset) else f"report_{split}.html")
    scenes = demo_scenes(run.data, known.captions) if run.dataset == "demo" and not options.images else None
    pictures = Pictures(known, options.images, scenes)
    shown = html_report.Evaluation(scores, facts, similarities, known, pictures)
    html_report.write(path, shown, options.topk, options.gallery)
    print_line(f"\nreport: {path}")
    if missing := pictures.missing_as_text():
        print_line(missing)


def evaluate(options):
    """Run eval.py's options: print and save the table, or the results of a search.

    Several processes share the encoding; the first one does the rest.
    """
    device = engine.choose_device(options.device, distributed.gpu(options.gpu_id))
    named = options.model_path
    seeds = checkpoint.find_seeds(named[0]) if len(named) == 1 else {}
    if seeds:
        evaluate_seeds(Path(named[0]), seeds, options, device)
        return
    runs = distributed.in_turn(lambda: open_runs([checkpoint.find(path) for path in named], options, device))
    if options.query is not None or options.query_image is not None:
        if distributed.is_first():
            with distributed.alone():
                print_search(runs[0], options, device)
        return
    first = runs[0]
    dataset, split, folder = first.dataset, first.data.split, first.path.parent
    package = extended.annotations(search.names(first.data)) if options.extended else None
    if options.report:
        html_report.read_curves(folder)  # refuses what is no log, before there is anything to lose
    models = [engine.similarities(run.model, run.data, device) for run in runs]
    if not distributed.is_first():
        return
    similarities = metrics.ensemble(models)
    text, scores, facts = summarise(similarities, dataset, split, [run.trained for run in runs])
    if options.bootstrap:
        labels = report.folds_by_label(first.data.num_images, split)
        facts["bootstrap_samples"] = options.bootstrap
        facts["bootstrap"] = bootstrap.compare(models, similarities, labels, options.bootstrap)
        text += "\n\n" + bootstrap.markdown(facts["bootstrap"], options.bootstrap)
    if options.extended:
        facts["extended"] = extended.measure(package, similarities)
        extended.check_against(facts["extended"], list(scores.values())[-1])
        text += "\n\n" + extended.markdown(facts["extended"])
    print_line(text)
    report.save(folder, split if len(runs) == 1 else f"ensemble_{split}", text, scores, facts)
    if options.save_results:
        report.save_similarities(folder / f"results_{dataset}.npy", similarities)
    if options.report:
        write_report(first, scores, facts, similarities, options)
    if options.export is not None:
        export.write(options.export, similarities, search.names(first.data), facts["title"], report.markdown(scores))


def evaluate_seeds(folder, seeds, options, device):
    """Print the table of a folder's runs {seed: checkpoint file}, and save it there."""
    for option in ("query", "query_image", "export", "report", "bootstrap", "extended"):
        if arguments.is_given(options, option):
            raise InputError(f"--{option}: {folder} holds one run a seed, expected one run: name {folder}/seedN")
    runs = distributed.in_turn(lambda: open_runs(seeds.values(), options, device))
    dataset, split = runs[0].dataset, runs[0].data.split
    models = [engine.similarities(run.model, run.data, device) for run in runs]
    if not distributed.is_first():
        return
    similarities = metrics.ensemble(models)
    _, ensemble, facts = summarise(similarities, dataset, split, [run.trained for run in runs])
    by_seed = {seed: report.tables(found, split) for seed, found in zip(seeds, models)}
    text = f"{facts['title']}\n\n{report.markdown_of_seeds(by_seed, ensemble)}"
    print_line(text)
    name = "seeds" if split == test_split(dataset) else f"seeds_{split}"
    report.save(folder, name, text, report.label_seeds(by_seed, ensemble), facts)
    if options.save_results:
        report.save_similarities(folder / f"results_{dataset}.npy", similarities)


def main(argv=None):
    """The program; argv: its arguments, or those of the process."""
    remedy = "evaluate on a machine with more memory, or end other programs"
    with distributed.processes(), distributed.together(), engine.memory_errors("the evaluation", remedy):
        evaluate(arguments.parse_evaluation(argv))


if __name__ == "__main__":
    command_line(main)
