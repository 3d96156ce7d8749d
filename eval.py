"""Evaluate a trained model, or an ensemble, on a split:
python eval.py --data_path data/ --dataset f30k

Prints the retrieval table and writes it into the run folder, with metrics.json beside it
(docs/method.md, section 7).
"""

if __name__ == "__main__":
    import lib.system.start  # noqa: F401  before the imports that take seconds

import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import arguments

if __name__ == "__main__":
    arguments.refuse_early("eval")

from lib.data import fingerprint
from lib.data.conventions import NO_SPLIT, conventions
from lib.data.dataset import RetrievalDataset, data_folder
from lib.data.region_file import FileState, file_state
from lib.evaluation import bootstrap, encoding, extended, metrics, report
from lib.evaluation.report import find_facts, save_results, summarise
from lib.evaluation.result_names import SEEDS, ResultName, ensemble_id
from lib.model import checkpoint
from lib.model.network import HREM, find_bert_path, load_model, load_tokeniser, print_casing_note
from lib.model.splits import load_split, open_folder
from lib.results import export, html_report, search
from lib.results.pictures import Pictures, demo_scenes
from lib.results.trained import Trained
from lib.system import devices, distributed
from lib.system.console import one_line
from lib.system.distributed import print_line
from lib.system.errors import InputError, command_line
from lib.system.run_folder import check_name

DATA_PATH = "data/"  # where the data are, unless somebody says otherwise


class Run(NamedTuple):
    """A trained model on a split: its checkpoint file, what it holds, the `HREM`, its BERT,
    data set name and split.

    test_split: the split that results of this run are reported on; state: of the checkpoint file
    when it was read.
    """

    path: Path
    trained: checkpoint.Checkpoint
    model: HREM
    bert_path: str
    dataset: str
    data: RetrievalDataset
    test_split: str
    state: FileState

    def check_unchanged(self):
        """Refuse results of a checkpoint file that was replaced meanwhile, as by a training.
        Raises InputError."""
        if not os.path.exists(self.path) or file_state(self.path) != self.state:
            raise InputError(
                f"{self.path}: found another file than the one that was evaluated, expected no "
                "training to replace it meanwhile; evaluate again"
            )


def open_run(path, options, device):
    """The model of a checkpoint file and the split asked for. Raises InputError. Returns `Run`."""
    state, trained = file_state(path), checkpoint.load(path)
    ours = {} if trained.is_published else trained.options
    dataset = options.dataset or trained.options.get("dataset", "f30k")
    check_name(f"{path}: --dataset", dataset)  # it may be the checkpoint's
    bert_path = find_bert_path(trained, options.bert_path)
    data_path = options.data_path or ours.get("data_path", DATA_PATH)
    if not options.data_path and data_path != DATA_PATH:
        data_folder(data_path, dataset)  # nothing is built in a place that a checkpoint names
    test_split = choose_test_split(ours, data_path, dataset, options.split)
    split = options.split or test_split
    data = load_split(data_path, dataset, split, bert_path, trained.vocabulary)
    print_casing_note(load_tokeniser(trained, bert_path))
    model = load_model(path, trained, bert_path, data.region_dim, device)
    fingerprint.check_reader(path, trained.reader, bert_path, {"tokeniser": data.tokeniser_digest})
    return Run(path, trained, model, bert_path, dataset, data, test_split, state)


def choose_test_split(trained, data_path, dataset, split):
    """The split that a run is reported on: the one of its options `trained` or, for other data,
    as these say.

    split: the one to evaluate, or None for the test split. Raises InputError where there is none to
    evaluate.
    """
    folder, recorded = open_folder(data_path, dataset), trained.get("test_split", NO_SPLIT)
    if recorded != NO_SPLIT and dataset == trained.get("dataset"):
        return recorded
    found = conventions(folder, dataset)
    if split is None and found.test_split == NO_SPLIT:
        raise InputError(
            f"{folder}: found no test split, expected test or testall; name another: --split dev"
        )
    if split is None and found.note:
        print_line(found.note)
    return found.test_split


def open_runs(paths, options, device):
    """`open_run` of each of an ensemble. Raises InputError where they are of different data
    sets."""
    runs = [open_run(path, options, device) for path in paths]
    if len({(run.dataset, run.data.split, run.data.num_images) for run in runs}) > 1:
        found, splits = (
            ", ".join(names) for names in zip(*((run.dataset, run.data.split) for run in runs))
        )
        raise InputError(
            f"--model_path: an ensemble of {found}, splits {splits}; expected models of one data "
            "set and split: give --dataset and --split"
        )
    for run in runs[1:]:
        fingerprint.check_same(runs[0].data, run.data)
    return runs


def print_search(run, options, device):
    """Print what --query and --query_image ask for."""
    data, index = run.data, search.build_index(run.data)
    image = None if options.query_image is None else index.find(options.query_image)
    folder, model_options = (
        report.run_folder(run.path.parent),
        checkpoint.model_options(run.trained.options),
    )
    similarity = search.cached_similarity(
        folder, name_of([run]).embeddings(), run.model, model_options, data, device
    )
    where = one_line(f"{run.dataset}, split {data.split}")
    if options.query is not None:
        tokeniser = load_tokeniser(run.trained, run.bert_path)
        words = Trained(run.model, tokeniser, device).encode_captions([options.query])
        found = search.best_images(similarity.images.numpy() @ words[0], options.topk)
        print_line(f"best of {data.num_images} images ({where}) for: {one_line(options.query)}")
        if unknown := search.unknown_words(options.query, tokeniser):
            print_line(f"not in the vocabulary: {one_line(', '.join(unknown))}")
        print_line("\n" + search.images_as_text(found, data, index))
    if image is not None:
        found = search.best_captions(similarity, image, options.topk)
        print_line(
            f"best of {data.num_captions} captions ({where}) for {one_line(index.label(image))}\n"
        )
        print_line(search.captions_as_text(found, index))


def name_of(runs, models=""):
    """The `ResultName` that says what is evaluated; models: "", or as there, of several runs."""
    first = runs[0]
    own = first.trained.options.get("dataset", "f30k")
    return ResultName(
        first.dataset, own, first.data.split, first.test_split, first.path.name, models
    )


def find_files(options, result):
    """Names of the files that an evaluation writes into the run folder."""
    names = [f"{result.table()}.md", report.METRICS]
    names += [result.results()] * bool(options.save_results)
    return names + [result.report()] * bool(options.report)


def check_files(options, folder, result, facts):
    """Refuse what could not be saved at the end, before anything is computed. Raises InputError."""
    folder = report.run_folder(folder)
    folder.check(*find_files(options, report.find_name(folder, result, facts)))


def write_report(path, run, scores, facts, similarities, options):
    """Write the report of a split to `path`, with the pictures of --images,
    or the demo's scenes."""
    index = search.build_index(run.data)
    scenes = (
        demo_scenes(run.data, index.captions)
        if run.dataset == "demo" and not options.images
        else None
    )
    pictures = Pictures(index, options.images, scenes)
    shown = html_report.Evaluation(scores, facts, similarities, index, pictures)
    html_report.write(path, shown, options.topk, options.gallery)
    print_line(f"\nreport: {path}")
    if missing := pictures.missing_as_text():
        print_line(missing)


def evaluate(options):
    """Run eval.py's options: print and save the table, or the results of a search.

    Several processes share the encoding; the first one does the rest.
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
    if options.query is not None or options.query_image is not None:
        if distributed.is_main_process():
            with distributed.single_process():
                print_search(runs[0], options, device)
        return
    evaluate_runs(runs, options, device)


def evaluate_runs(runs, options, device):
    """Print and save the table of a run, or of an ensemble."""
    first, split = runs[0], runs[0].data.split
    folder, pairs = first.path.parent, [(run.path, run.trained) for run in runs]
    result = name_of(runs, ensemble_id([run.path for run in runs], folder) if len(runs) > 1 else "")
    extras = [name for name in ("bootstrap", "extended") if arguments.is_given(options, name)]
    result = result._replace(extras="-".join(extras))
    facts = find_facts(first.dataset, first.data, pairs, folder)
    distributed.broadcast_from_main(lambda: check_files(options, folder, result, facts))
    package = extended.annotations(search.build_index(first.data)) if options.extended else None
    if options.report:
        html_report.check(folder)  # before anything is computed
    models = [encoding.similarities(run.model, run.data, device) for run in runs]
    if not distributed.is_main_process():
        return
    similarities = metrics.ensemble(models)
    text, scores = summarise(similarities, facts)
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
    page = partial(
        write_report,
        run=first,
        scores=scores,
        facts=facts,
        similarities=similarities,
        options=options,
    )
    try:
        save_results(
            folder, result, (text, scores, facts), similarities, options.save_results,
            page if options.report else None, runs,
        )  # fmt: skip
    finally:  # the run folder may be somebody else's, the one to export to is not
        if options.export is not None:
            index = search.build_index(first.data)
            export.write(
                options.export, similarities, index, facts["title"], report.markdown(scores)
            )


def evaluate_seeds(folder, seeds, options, device):
    """Print the table of a folder's runs {seed: checkpoint file}, and save it there."""
    for option in ("query", "query_image", "export", "report", "bootstrap", "extended"):
        if arguments.is_given(options, option):
            raise InputError(
                f"--{option}: {folder} holds one run a seed, expected one run: name {folder}/seedN"
            )
    runs = distributed.main_process_first(lambda: open_runs(seeds.values(), options, device))
    first, pairs, result = runs[0], [(run.path, run.trained) for run in runs], name_of(runs, SEEDS)
    facts = find_facts(first.dataset, first.data, pairs, folder)
    distributed.broadcast_from_main(lambda: check_files(options, folder, result, facts))
    models = [encoding.similarities(run.model, run.data, device) for run in runs]
    if not distributed.is_main_process():
        return
    similarities = metrics.ensemble(models)
    ensemble = report.tables(similarities, first.data.split)
    by_seed = {seed: report.tables(found, first.data.split) for seed, found in zip(seeds, models)}
    text = f"{facts['title']}\n\n{report.markdown_of_seeds(by_seed, ensemble)}"
    print_line(text)
    table = text, report.label_seeds(by_seed, ensemble), facts
    save_results(folder, result, table, similarities, options.save_results, runs=runs)


def main(argv=None):
    """The program; argv: its arguments, or those of the process."""
    remedy = "evaluate on a machine with more memory, or end other programs"
    with (
        distributed.process_group(),
        distributed.raise_on_all_ranks(),
        devices.memory_errors("the evaluation", remedy),
    ):
        evaluate(arguments.parse_evaluation(argv))


if __name__ == "__main__":
    command_line(main)
