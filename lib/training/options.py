"""Options of train.py, in the order of its --help.

Parsing imports this module, so it must not import torch.
"""

import argparse

from ..data.options import add_data_options
from ..model.options import PRECISIONS, ModelOptions
from ..objective.options import add_graph_options, add_loss_options
from ..system.options import (
    COUNT,
    COUNT_OR_NONE,
    RESULTS_FORMS,
    SEED,
    SIZE,
    SWITCH,
    Number,
    add_device_options,
    add_fields,
    results_form,
)
from .presets import METHODS
from .schedule import add_schedule_options

VIEWS = Number(int, 1, 2)
SAMPLING = ("random", "neighbour")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of train.py, in the order in which a user needs them."""
    _add_data(parser)
    _add_run_folder(parser)
    add_schedule_options(parser)
    _add_batches(parser)
    _add_model(parser)
    _add_fragments(parser)
    add_loss_options(parser)
    add_graph_options(parser)
    _add_cross_attention(parser)
    _add_hardware(parser)
    _add_resuming(parser)
    _add_logging(parser)
    _add_bigru(parser)
    _add_rarely_used(parser)


def _add_data(parser):
    group = parser.add_argument_group("data (docs/data.md)")
    add_data_options(group)
    group.add_argument(
        "--val_split",
        default="dev",
        help="split used to select the best epoch (published code: test or testall)",
    )
    group.add_argument(
        "--test_split",
        help="split of the final table, or none for no table (default: testall if "
        "the folder has it, else test)",
    )
    group.add_argument(
        "--size_augment",
        type=SWITCH,
        default=1,
        help="1: drop a fifth of the regions of each image during training",
    )
    group.add_argument(
        "--views",
        type=VIEWS,
        default=1,
        help="2: two random views of each image, which drop their own regions; the base loss takes "
        "the worse one",
    )
    group.add_argument(
        "--word_augment",
        type=SWITCH,
        default=1,
        help="1: mask, replace or drop some words of each caption during training",
    )


def _add_run_folder(parser):
    group = parser.add_argument_group("run folder and results (runs/README.md)")
    group.add_argument(
        "--logger_name",
        default="runs/test",
        help="run folder: logs, TensorBoard curves and results",
    )
    group.add_argument(
        "--model_name",
        default=argparse.SUPPRESS,
        help="folder for checkpoints (default: the run folder)",
    )
    group.add_argument(
        "--overwrite", type=SWITCH, default=0, help="1: overwrite an existing run in the run folder"
    )
    group.add_argument(
        "--seed", type=SEED, default=argparse.SUPPRESS, help="random seed (default: 0)"
    )
    group.add_argument(
        "--seeds",
        type=SEED,
        nargs="+",
        default=argparse.SUPPRESS,
        help=("train one run per seed, in LOGGER_NAME/seedN; replaces --seed"),
    )
    group.add_argument(
        "--save_results", type=results_form, default=1, help=f"of the test split: {RESULTS_FORMS}"
    )


def _add_batches(parser):
    group = parser.add_argument_group("neighbour batches (docs/training.md)")
    group.add_argument(
        "--batch_sampling",
        choices=SAMPLING,
        default="random",
        help="how batches are drawn: random, or neighbour: images of a few k-means "
        "clusters, as in the paper",
    )
    group.add_argument(
        "--batch_clusters",
        type=COUNT,
        default=8,
        help="neighbour sampling: number of clusters P in a batch, with B / P images of each",
    )


def _add_model(parser):
    group = parser.add_argument_group("model (docs/method.md, section 3; docs/baselines.md)")
    group.add_argument(
        "--method",
        choices=METHODS,
        default="hrem",
        help="preset of model, losses and schedule: hrem (the paper), hrem-standalone (its "
        "other interaction), hrem-plus (not published: docs/baselines.md), vsepp (VSE++), gpo "
        "(VSE-infinity), scan, naaf, chan; options that you give override it",
    )
    add_fields(group, ModelOptions, "text_encoder")
    group.add_argument(
        "--bert_path",
        default="bert-base-uncased",
        help="BERT: a local folder, a hub name, or minilm (docs/training.md)",
    )
    add_fields(group, ModelOptions, "embed_size", "region_mlp")


def _add_fragments(parser):
    group = parser.add_argument_group("fragment-level relations (docs/method.md, section 3)")
    add_fields(
        group, ModelOptions, "pooling", "mask_padding", "residual_weight", "nhead", "dropout"
    )


def _add_cross_attention(parser):
    group = parser.add_argument_group("cross-attention (docs/baselines.md)")
    add_fields(
        group, ModelOptions, "similarity", "cross_attention", "aggregation",
        "attention_temperature", "lse_temperature", "match_norm",
    )  # fmt: skip


def _add_hardware(parser):
    group = parser.add_argument_group("hardware and precision (docs/training.md)")
    add_device_options(group)
    group.add_argument(
        "--workers",
        type=COUNT_OR_NONE,
        default=8,
        help="number of data loader processes; the results do not depend on it",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the encoders in training; losses, relations and "
        "evaluation always use fp32",
    )
    group.add_argument(
        "--compile",
        type=SWITCH,
        default=0,
        help="1: compile the encoders with torch.compile; the first steps take minutes",
    )
    group.add_argument(
        "--deterministic",
        type=SWITCH,
        default=0,
        help="1: use deterministic kernels only (GPU; slower)",
    )


def _add_resuming(parser):
    group = parser.add_argument_group("resuming and fine-tuning (docs/training.md)")
    group.add_argument(
        "--resume",
        default="none",
        help="auto: resume from last.pth in the run folder, if it exists; or the "
        "path of such a file",
    )
    group.add_argument(
        "--save_step", type=COUNT_OR_NONE, default=0, help="N > 0: also save last.pth every N steps"
    )
    group.add_argument(
        "--allow_changed_data",
        type=SWITCH,
        default=0,
        help="1: --resume continues even if the data or BERT have changed since the start",
    )
    group.add_argument(
        "--init_from",
        metavar="CHECKPOINT",
        help="initialise the weights from a trained model: a run folder or a "
        "checkpoint file, ours or published",
    )


def _add_logging(parser):
    group = parser.add_argument_group("logging and validation (docs/training.md)")
    group.add_argument(
        "--log_step", type=COUNT, default=200, help="steps between two lines of the training log"
    )
    group.add_argument(
        "--val_step", type=COUNT_OR_NONE, default=0, help="N > 0: also validate every N steps"
    )


def _add_bigru(parser):
    group = parser.add_argument_group("with --text_encoder bigru (docs/training.md)")
    add_fields(group, ModelOptions, "word_dim")
    group.add_argument(
        "--glove",
        help="initialise the word embeddings from this text file (GloVe, word2vec or fastText)",
    )
    group.add_argument(
        "--min_word_count",
        type=COUNT,
        default=4,
        help="words with fewer occurrences in the training captions become <unk>",
    )
    add_fields(group, ModelOptions, "strip_accents")


def _add_rarely_used(parser):
    group = parser.add_argument_group("rarely used")
    add_fields(group, ModelOptions, "no_imgnorm", "no_txtnorm")
    group.add_argument(
        "--img_dim",
        type=SIZE,
        default=argparse.SUPPRESS,
        help="size D of a region feature; read from the data, so you need not give it",
    )
    group.add_argument(
        "--multi_gpu",
        type=SWITCH,
        default=0,
        help="option of the published code; 1: print the torchrun command to use instead",
    )
