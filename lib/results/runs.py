"""Open trained models together with the split that they are evaluated on."""

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data import fingerprint
from ..data.conventions import NO_SPLIT, conventions
from ..data.dataset import RetrievalDataset, data_folder
from ..data.region_file import FileState, file_state
from ..evaluation.result_folder import run_folder
from ..evaluation.result_names import ResultName
from ..evaluation.similarity import Similarity
from ..model import bert, checkpoint
from ..model.network import HREM, find_bert, load_model, load_tokeniser, print_casing_note
from ..model.splits import load_split, open_folder
from ..system.distributed import print_line
from ..system.errors import InputError
from ..system.run_folder import check_name
from .search import cached_similarity
from .trained import Trained

DATA_PATH = "data/"  # the default


class Run(NamedTuple):
    """A trained model and the split to evaluate it on.

    path: the checkpoint file; trained: its contents; test_split: the split on which results of this
    run are usually reported; state: of the checkpoint file when it was read.
    """

    path: Path
    trained: checkpoint.Checkpoint
    model: HREM
    bert_path: bert.Source
    dataset: str
    data: RetrievalDataset
    test_split: str
    state: FileState

    def check_unchanged(self) -> None:
        """Raise InputError if the checkpoint file was replaced after it was read."""
        if not os.path.exists(self.path) or file_state(self.path) != self.state:
            raise InputError(
                f"{self.path}: replaced during the evaluation (found another file than the one "
                "that was evaluated, expected the same file). Evaluate again"
            )


def open_run(path: Path, options: argparse.Namespace, device: torch.device) -> Run:
    """Open the model of a checkpoint file and the split to evaluate. Raises InputError."""
    state, trained = file_state(path), checkpoint.load(path)
    ours = {} if trained.is_published else trained.options
    dataset = options.dataset or trained.options.get("dataset", "f30k")
    check_name(f"{path}: --dataset", dataset)  # the name may come from the checkpoint
    bert_path = find_bert(trained, options.bert_path)
    data_path = options.data_path or ours.get("data_path", DATA_PATH)
    _find_data(data_path, dataset, is_recorded=not options.data_path, path=path)
    test_split = choose_test_split(ours, data_path, dataset, options.split)
    split = options.split or test_split
    data = load_split(data_path, dataset, split, bert_path, trained.vocabulary)
    print_casing_note(load_tokeniser(trained, bert_path))
    model = load_model(path, trained, bert_path, data.region_dim, device)
    fingerprint.check_reader(path, trained.reader, bert_path, {"tokeniser": data.tokeniser_digest})
    return Run(path, trained, model, bert_path, dataset, data, test_split, state)


def _find_data(data_path, dataset, is_recorded, path):
    """Raise InputError if the data folder is missing. An evaluation does not build the demo data.

    is_recorded: `data_path` comes from the checkpoint at `path`.
    """
    try:
        data_folder(data_path, dataset)
    except InputError as error:
        if not is_recorded:
            raise
        raise InputError(
            f"{error}. The checkpoint {path} names no other folder: use --data_path to name the "
            f"folder that contains {dataset}_precomp"
        ) from error


def choose_test_split(
    trained: Mapping[str, Any], data_path: str, dataset: str, split: str | None
) -> str:
    """The split on which results of a run are reported: the one in its options `trained` or, for
    another data set, the usual one of that data set.

    split: the split to evaluate, or None for the test split. Raises InputError if there is none.
    """
    folder, recorded = open_folder(data_path, dataset), trained.get("test_split", NO_SPLIT)
    if recorded != NO_SPLIT and dataset == trained.get("dataset"):
        return recorded
    found = conventions(folder, dataset)
    if split is None and found.test_split == NO_SPLIT:
        raise InputError(
            f"{folder}: no test split (found neither test nor testall, expected one of them). Name "
            "another split, such as --split dev"
        )
    if split is None and found.note:
        print_line(found.note)
    return found.test_split


def open_runs(
    paths: Iterable[Path], options: argparse.Namespace, device: torch.device
) -> list[Run]:
    """Open the runs of an ensemble. Raises InputError if their data differ."""
    runs = [open_run(path, options, device) for path in paths]
    if len({(run.dataset, run.data.split, run.data.num_images) for run in runs}) > 1:
        found, splits = (
            ", ".join(names) for names in zip(*((run.dataset, run.data.split) for run in runs))
        )
        raise InputError(
            f"--model_path: the data of an ensemble differ (found the data sets {found} and the "
            f"splits {splits}, expected one data set and split). Give --dataset and --split"
        )
    for run in runs[1:]:
        fingerprint.check_same(runs[0].data, run.data)
    return runs


def name_of(runs: list[Run], models: str = "") -> ResultName:
    """The name of the results of these runs. models: as in `ResultName`."""
    first = runs[0]
    own = first.trained.options.get("dataset", "f30k")
    return ResultName(
        first.dataset, own, first.data.split, first.test_split, first.path.name, models
    )


def open_similarity(run: Run, device: torch.device) -> Similarity | None:
    """The similarities of a run's split, from embeddings cached in the run folder, or None if the
    model has no embeddings. Raises InputError."""
    if run.model.similarity is not None:
        return None
    folder, name = run_folder(run.path.parent), name_of([run]).embeddings()
    model_options = checkpoint.model_options(run.trained.options)
    return cached_similarity(folder, name, run.model, model_options, run.data, device)


def use_model(run: Run, device: torch.device) -> Trained:
    """The model of a run, put to use."""
    tokeniser = load_tokeniser(run.trained, run.bert_path)
    return Trained(run.model, tokeniser, device, run.trained.extraction)
