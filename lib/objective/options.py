"""Options of the losses and of the graph over a batch.

Parsing imports this module, so it must not import torch.
"""

import argparse
import dataclasses

from ..system.options import (
    COUNT_OR_NONE,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    SWITCH,
    Number,
    add_fields,
    option,
)

LOSSES = ("trip", "vse", "infonce", "infonce+vse")
NEGATIVES = ("all", "hardest", "selective")
MOST_LAYERS, MOST_MATCHES = 100, 1000


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
    """What the training objective is built from, under the names and with the values of the
    command line. The defaults are the published method."""

    base_loss: str = option("trip", LOSSES, "loss on the embeddings of images and captions")
    gnn_loss: str = option("trip", LOSSES, "loss on the embeddings enhanced by the graph")
    margin: float = option(0.2, NOT_NEGATIVE, "margin alpha of the losses vse and trip")
    negatives: str = option(
        "hardest",
        NEGATIVES,
        "vse, after its first epochs: negatives of each anchor; selective: the hardest, but the "
        "mean of all where the hardest is about as similar as the positive",
    )
    temperature: float | None = option(
        None, POSITIVE, "infonce: fixed temperature (default: learnt, from 0.07)"
    )
    vse_weight: float = option(4.0, NOT_NEGATIVE, "infonce+vse: weight of the mean vse loss")
    decorrelation: float = option(
        0.0, NOT_NEGATIVE, "weight of the decorrelation of features over the batch; 0: none"
    )
    soft_labels: float = option(
        0.0,
        NOT_NEGATIVE,
        "weight of soft labels from frozen region features and word embeddings; 0: none",
    )
    longest_distance: float | None = option(
        None,
        Number(float, 0, 2, low_allowed=False),
        "trip: negatives at this distance or farther are not sampled "
        "(default: 1.9 for COCO and for folders with testall, else 1.7)",
    )
    mask_repeat: int = option(
        1, SWITCH, "1: captions of the same image are not negatives of each other"
    )
    interaction: str = option(
        "fusion",
        ("fusion", "standalone", "none"),
        "fusion: one transformer over all instances of the batch; standalone: "
        "one per block of the graph; none: no graph, base loss only",
    )
    relation: str = option(
        "both",
        ("both", "intra", "inter"),
        "blocks of the graph in use: both; intra: within a modality only; "
        "inter: between the modalities only",
    )
    connection: int = option(
        1, SWITCH, "0: connect all instances of a block, --threshold has no effect"
    )
    relevance: int = option(
        1,
        SWITCH,
        "0: do not use relevance: connected instances are treated alike and "
        "there is no regulariser",
    )
    distance: str = option(
        "l2",
        ("l2", "l2sq"),
        "distance in the relevance exp(-distance / sigma): l2 as in the "
        "released code, l2sq (squared) as in the paper",
    )
    num_layers_enc: int = option(
        1,
        Number(int, 1, MOST_LAYERS),
        "number of transformer layers of the graph (standalone: of each block)",
    )
    mask_weight: float = option(
        1.0, NOT_NEGATIVE, "weight of the relevance in the attention of the graph"
    )
    threshold: float = option(
        0.5, FRACTION, "fraction of the batch that each instance is connected to"
    )
    topk: int = option(
        10,
        Number(int, 1, MOST_MATCHES),
        "number K of fragment matches that the relevance MLP reads",
    )
    reg_loss_weight: float = option(10, NOT_NEGATIVE, "weight of the regulariser of the relevance")
    norm_input: int = option(1, SWITCH, "1: the graph reads normalised embeddings")
    cross_loss: int = option(
        1, SWITCH, "1: add the losses between the original and the enhanced embeddings"
    )


def add_loss_options(parser: argparse.ArgumentParser) -> None:
    """Add the losses to an argparse parser."""
    losses = parser.add_argument_group("losses (docs/method.md, section 5)")
    add_fields(
        losses, ObjectiveOptions,
        "base_loss", "gnn_loss", "longest_distance", "margin", "negatives",
    )  # fmt: skip
    losses.add_argument(
        "--max_violation",
        action="store_true",
        help="vse: use --negatives from the first epoch",
    )
    losses.add_argument(
        "--vse_mean_warmup_epochs",
        type=COUNT_OR_NONE,
        default=1,
        help="vse: number of first epochs that use all negatives",
    )
    add_fields(
        losses, ObjectiveOptions,
        "temperature", "vse_weight", "mask_repeat", "decorrelation", "soft_labels",
    )  # fmt: skip


def add_graph_options(parser: argparse.ArgumentParser) -> None:
    """Add the graph over a batch to an argparse parser."""
    graph = parser.add_argument_group("instance-level relations (docs/method.md, section 4)")
    add_fields(
        graph, ObjectiveOptions, "interaction", "relation", "connection", "relevance", "distance"
    )
    graph.add_argument(
        "--warmup",
        type=COUNT_OR_NONE,
        default=8000,
        help="number of training steps without the graph at the start",
    )
    add_fields(graph, ObjectiveOptions, "num_layers_enc")
    graph.add_argument(
        "--graph_lr_factor",
        type=NOT_NEGATIVE,
        default=1.0,
        help="factor on the learning rate of the graph's parameters",
    )
    add_fields(
        graph, ObjectiveOptions,
        "mask_weight", "threshold", "topk", "reg_loss_weight", "norm_input", "cross_loss",
    )  # fmt: skip
