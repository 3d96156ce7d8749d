"""Checks of train.py that need several options, or the number of processes.

Parsing imports this module, so it must not import torch.
"""

import argparse
from pathlib import Path

from ..system.errors import InputError
from ..system.options import check_writable
from ..system.run_folder import check_name


def check(options: argparse.Namespace, processes: int) -> None:
    """Refuse options that do not go together, or not with this number of processes.
    Raises InputError."""
    _check_model(options)
    _check_batches(options, processes)
    _check_seeds(options)
    if processes > 1 and ":" in options.device:
        raise InputError(
            f"--device {options.device}: torchrun assigns the GPUs (found the number of a GPU, "
            "expected auto, cuda or cpu). Use --device cuda"
        )
    for option in ("dataset", "val_split", "test_split"):
        if getattr(options, option) is not None:  # test_split: the data say
            check_name(f"--{option}", getattr(options, option))
    for option in ("logger_name", "model_name"):
        check_writable(option, Path(getattr(options, option)).absolute())


def check_decay(options: argparse.Namespace, given: argparse.Namespace) -> None:
    """Refuse options of the step schedule beside a cosine. given: what the command line itself
    says of them, None where it is silent: presets may set them. Raises InputError."""
    for name in ("lr_schedules", "decay_rate"):
        if options.schedule == "cosine" and getattr(given, name) is not None:
            raise InputError(
                f"--{name}: has no effect with --schedule cosine (found both, expected one of "
                f"them). Leave out --{name}, or give --schedule step"
            )


def _check_model(options):
    if options.embed_size % options.nhead:
        raise InputError(
            f"--nhead {options.nhead}: the number of heads does not divide --embed_size "
            f"{options.embed_size} (found {options.nhead}, expected a divisor). Try --nhead "
            f"{max(n for n in range(1, 17) if options.embed_size % n == 0)}"
        )
    if options.embed_size % 2:
        raise InputError(
            f"--embed_size {options.embed_size}: the MLP is half as wide (found an odd number, "
            f"expected an even number). Try --embed_size {options.embed_size + 1}"
        )
    if options.similarity != "embedding":
        _check_cross_attention(options)
    if options.views == 2:
        _check_views(options)
    if options.glove and options.text_encoder != "bigru":
        raise InputError(
            f"--glove {options.glove}: BERT does not read word vectors (found --text_encoder "
            f"{options.text_encoder}, expected bigru). Add --text_encoder bigru, or leave out "
            "--glove"
        )


def _check_cross_attention(options):
    given = f"--similarity {options.similarity}"
    preset = f"or use --method {options.similarity}"
    if options.interaction != "none":
        raise InputError(
            f"{given}: the instance graph needs one embedding per image and caption (found "
            f"--interaction {options.interaction}, expected none). Add --interaction none, {preset}"
        )
    if options.base_loss == "trip":
        raise InputError(
            f"{given}: the loss trip needs distances between embeddings (found --base_loss trip, "
            f"expected vse, infonce or infonce+vse). Add --base_loss vse, {preset}"
        )
    if options.decorrelation:
        raise InputError(
            f"--decorrelation {options.decorrelation}: it needs one embedding per image and "
            f"caption (found {given}, expected embedding). Leave one of the two out"
        )


def _check_views(options):
    if options.similarity != "embedding":
        raise InputError(
            "--views 2: cross-attention has no embedding of a view (found --similarity "
            f"{options.similarity}, expected embedding). Leave out --views"
        )
    if options.base_loss == "trip":
        raise InputError(
            "--views 2: the loss trip does not compare views (found --base_loss trip, expected "
            "vse, infonce or infonce+vse). Add --base_loss vse"
        )
    if not options.size_augment:
        raise InputError(
            "--views 2: without region dropping the views are equal (found --size_augment 0, "
            "expected 1). Add --size_augment 1, or leave out --views"
        )


def _check_batches(options, processes):
    if options.batch_sampling == "neighbour" and options.batch_size % options.batch_clusters:
        most = min(options.batch_clusters, options.batch_size)
        raise InputError(
            f"--batch_clusters {options.batch_clusters}: the number of clusters does not divide "
            f"--batch_size {options.batch_size} (found {options.batch_clusters}, expected a "
            "divisor). Try --batch_clusters "
            f"{max(n for n in range(1, most + 1) if options.batch_size % n == 0)}"
        )
    if options.batch_size % processes:
        raise InputError(
            f"--batch_size {options.batch_size}: the processes cannot share the batch equally "
            f"(found {options.batch_size} pairs for {processes} processes, expected a multiple of "
            f"{processes}). Try --batch_size "
            f"{-(-options.batch_size // processes) * processes}"
        )


def _check_seeds(options):
    if "seeds" in options:
        seeds = f"--seeds {' '.join(map(str, options.seeds))}"
        if "seed" in options:
            raise InputError(
                f"{seeds}: cannot be combined with --seed (found --seed {options.seed}, expected "
                "one of the two). Add the seed to --seeds"
            )
        if len(set(options.seeds)) < len(options.seeds):
            raise InputError(
                f"{seeds}: seeds must differ (found a seed twice, expected each once). Leave out "
                "the repeated seed"
            )
