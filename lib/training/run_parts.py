"""The parts of a run: data, vocabulary, BERT and objective, built from its options."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import graph_lib

from ..data.captions import PADDING_ID, SpecialIds
from ..data.conventions import NO_SPLIT, conventions
from ..data.dataset import RetrievalDataset
from ..data.layout import read_lines
from ..data.vocabulary import (
    Vocabulary,
    describe_merged,
    describe_vectors,
    frequent_words,
    merged_words,
    read_glove,
    word_embeddings,
)
from ..model import bert, pretrained
from ..model.checkpoint import Checkpoint
from ..model.network import PUBLISHED_BERT, build_model
from ..model.options import ModelOptions
from ..model.saved_bert import SavedBert
from ..model.splits import load_split, open_folder
from ..objective.options import ObjectiveOptions
from ..system.distributed import print_line
from ..system.errors import InputError, first_sentence
from ..system.options import from_saved
from .presets import demo_bert


class Data(NamedTuple):
    """The three splits of a run; test may be the same object as validation,
    or None: no test table is written."""

    train: RetrievalDataset
    validation: RetrievalDataset
    test: RetrievalDataset | None


def read_vocabulary(
    options: argparse.Namespace,
    resumed_file: Path | None = None,
    content: Mapping[str, Any] | None = None,
    trained: Checkpoint | None = None,
) -> Vocabulary | None:
    """The vocabulary of the training captions, or None with BERT. Raises InputError.

    A resumed run, from `content`, keeps its own: after one edited caption, most words would have
    another number. A run that starts from the checkpoint `trained` keeps its words and adds new
    ones.
    """
    if options.text_encoder == "bert":
        return None
    if content and content.get("vocabulary") is not None:
        try:
            return Vocabulary(content["vocabulary"], bool(options.strip_accents))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{resumed_file}: its vocabulary is damaged ({first_sentence(error)}), expected a "
                "list of different words: go on from another file, or start anew with --resume "
                "none"
            ) from error
    path = open_folder(options.data_path, options.dataset) / "train_caps.txt"
    texts, strip_accents = read_lines(path), bool(options.strip_accents)
    words = frequent_words(texts, options.min_word_count, strip_accents)
    if not words:
        raise InputError(
            f"{path}: the vocabulary is empty (found no word that occurs {options.min_word_count} "
            "times, expected some). Give a smaller --min_word_count"
        )
    note = describe_merged(merged_words(texts, words)) if strip_accents else ""
    found = Vocabulary(words, strip_accents, note)
    if trained and trained.vocabulary:
        return pretrained.extend(found, trained.vocabulary)
    return found


def choose_conventions(options: argparse.Namespace, begun: Mapping[str, Any]) -> None:
    """Fill in --test_split and --longest_distance if they are not given: as in the resumed run, or
    as is usual for the data.

    begun: the options of the resumed run, or empty. Raises InputError if there is no such data set.
    """
    found = conventions(open_folder(options.data_path, options.dataset), options.dataset)
    if begun:  # before there was this option, the name alone decided
        found = found._replace(longest_distance=graph_lib.longest_distance(options.dataset))
    unknown = [
        name for name in ("test_split", "longest_distance") if getattr(options, name) is None
    ]
    for name in unknown:
        setattr(options, name, begun.get(name, getattr(found, name)))
    if found.note and unknown and not begun:
        print_line(found.note)


def read_embeddings(options: argparse.Namespace, vocabulary: Vocabulary) -> nn.Embedding:
    """The initial word embeddings, random or from --glove. Raises InputError."""
    embeddings = word_embeddings(vocabulary, options.word_dim)
    if options.glove:
        found = read_glove(options.glove, vocabulary, embeddings)
        counted = f"{found.num_found} of {len(vocabulary.words)} words"
        print_line(f"{options.glove}: vectors of {counted}; the others start at random")
        if warning := describe_vectors(found, vocabulary):
            print_line(warning)
    return embeddings


def find_bert(
    options: argparse.Namespace, kept: SavedBert | None, recorded_path: str | None
) -> bert.Source:
    """The BERT of a run: --bert_path, or the one that a checkpoint keeps if --bert_path cannot be
    read. Raises InputError.

    kept: the BERT of the checkpoint that the run starts from, or None; recorded_path: the
    --bert_path of its run. Any other --bert_path is replaced only if it is a default.
    """
    replaceable = recorded_path, PUBLISHED_BERT, demo_bert(options.data_path)
    try:
        bert.configuration(options.bert_path)
    except InputError:
        if kept is None or options.bert_path not in replaceable:
            raise
        print_line(f"--bert_path {options.bert_path}: cannot be read; using {kept}")
        return kept
    return options.bert_path


def open_data(
    options: argparse.Namespace, bert_path: bert.Source, vocabulary: Vocabulary | None = None
) -> Data:
    """The splits of a run, all opened before training starts. Raises InputError. bert_path: see
    `find_bert`."""
    splits = {
        split: load_split(options.data_path, options.dataset, split, bert_path, vocabulary)
        for split in dict.fromkeys(("train", options.val_split, options.test_split))
        if split != NO_SPLIT
    }
    data = Data(splits["train"], splits[options.val_split], splits.get(options.test_split))
    wanted = getattr(options, "img_dim", data.train.region_dim)
    for split in splits.values():
        if split.region_dim != wanted:
            raise InputError(
                f"{split.regions_path}: another feature size (found {split.region_dim}, expected "
                f"{wanted} as in --img_dim or the train split). Leave out --img_dim, or extract "
                "all splits in the same way"
            )
    return data


def check_memory(
    options: argparse.Namespace,
    reader: nn.Module,
    regions_shape: Sequence[int],
    device: torch.device,
) -> None:
    """Refuse a model or a batch for which this machine has too little memory, before it is built.
    Raises InputError.

    On a CPU, every parameter also has a gradient and two moments. A GPU reports by itself what does
    not fit.
    """
    with torch.device("meta"):  # shapes without values; no random number is drawn
        modules = build_model(vars(options), reader, options.img_dim), build_objective(options)
    copies = 4 if device.type == "cpu" else 1
    parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())
    needed = 4 * (copies * parameters + options.batch_size * regions_shape[1] * regions_shape[2])
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > found:
        raise InputError(
            f"--embed_size {options.embed_size}, --num_layers_enc {options.num_layers_enc}, "
            f"--topk {options.topk}, --batch_size {options.batch_size}: too little memory (found "
            f"{found / 1e9:.0f} GB, expected more than {needed / 1e9:.0f} GB for training). Give "
            "smaller values"
        )


def frozen_words(
    options: argparse.Namespace, reader: nn.Module, bert_path: bert.Source, special: SpecialIds
) -> torch.Tensor | None:
    """The initial word embeddings, (V, H), zero for special pieces, if soft labels need them. A
    resumed run reads them again. Raises InputError.

    reader: see `HREM`, before any other weights are loaded into it.
    """
    if not options.soft_labels:
        return None
    if isinstance(bert_path, SavedBert):
        raise InputError(
            f"--soft_labels {options.soft_labels}: the pretrained weights of BERT are missing "
            f"(found --bert_path {options.bert_path}, which cannot be read; expected a BERT). Give "
            "--bert_path its folder"
        )
    is_words = isinstance(reader, nn.Embedding)
    weight = (reader if is_words else reader.get_input_embeddings()).weight
    words = weight.detach().clone()
    words[[PADDING_ID, special.start, special.end, special.mask]] = 0
    return words


def build_objective(
    options: argparse.Namespace, words: torch.Tensor | None = None
) -> graph_lib.Objective:
    """The training objective that the options describe. words: of `frozen_words`."""
    return graph_lib.Objective(
        from_saved(ModelOptions, vars(options)), from_saved(ObjectiveOptions, vars(options)), words
    )
