"""Options of the model. Parsing imports this module, so it must not import torch."""

import dataclasses

from ..system.options import (
    FRACTION,
    POSITIVE,
    PROBABILITY_BELOW_ONE,
    SIZE,
    SWITCH,
    Number,
    option,
)

POOLINGS = tuple(
    name + relation
    for relation in ("+relation", "")
    for name in ("maxk", "mean", "max", "gpo", "attention")
)
TEXT_ENCODERS = ("bert", "bigru")
SIMILARITIES = ("embedding", "scan", "naaf", "chan")
MATCH_NORMS = (
    "clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "clipped", "softmax", "no_norm",
)  # fmt: skip
PRECISIONS = ("fp32", "tf32", "bf16")  # of the encoders in training; evaluation always uses fp32
LARGEST_WORD = 2**13


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """What a model is built from, under the names and with the values of the command line.

    The defaults are the published method, which a new option must not change. Every checkpoint has
    the options of `ALWAYS_SAVED`; a checkpoint without one of the others has its default.
    """

    embed_size: int = option(1024, SIZE, "size E of the embedding space")
    nhead: int = option(16, SIZE, "number of attention heads of each transformer")
    dropout: float = option(0.1, PROBABILITY_BELOW_ONE, "dropout of every transformer except BERT")
    residual_weight: float = option(
        0.8,
        FRACTION,
        "weight lambda of the pooled fragments; the output of the "
        "fragment-level transformer has weight 1 - lambda",
    )
    no_imgnorm: bool = option(False, None, "do not normalise image embeddings")
    no_txtnorm: bool = option(False, None, "do not normalise caption embeddings")
    pooling: str = option(
        "maxk+relation",
        POOLINGS,
        "pooling of fragments in both encoders; without +relation there is no "
        "fragment-level transformer",
    )
    mask_padding: int = option(
        0,
        SWITCH,
        "1: dropped regions are left out of batch norm and of the relations (published code: 0)",
    )
    text_encoder: str = option("bert", TEXT_ENCODERS, "text encoder")
    word_dim: int = option(300, Number(int, 1, LARGEST_WORD), "size of a word embedding")
    strip_accents: int = option(1, SWITCH, "1: remove accents from words; 0: keep them")
    region_mlp: int = option(
        1, SWITCH, "0: project regions by a linear layer only, without the MLP beside it"
    )
    similarity: str = option(
        "embedding",
        SIMILARITIES,
        "embedding: dot product of two vectors; scan, naaf, chan: cross-attention between all "
        "regions and words, without pooling and without the graph",
    )
    cross_attention: str = option(
        "t2i", ("t2i", "i2t"), "scan: words attend to regions (t2i), or regions to words (i2t)"
    )
    aggregation: str = option(
        "mean",
        ("mean", "lse", "max", "sum"),
        "scan, chan: how the scores of the words (i2t: of the regions) become one; lse: LogSumExp",
    )
    attention_temperature: float | None = option(
        None, POSITIVE, "scan: factor in the softmax of the attention (default: 9; i2t: 4)"
    )
    lse_temperature: float | None = option(
        None, POSITIVE, "factor in --aggregation lse (default: 6; scan i2t: 5; chan: 10)"
    )
    match_norm: str = option(
        "clipped_l2norm",
        MATCH_NORMS,
        "scan: normalisation of the matches along the queries, before the softmax",
    )


ALWAYS_SAVED = ("embed_size", "nhead", "dropout", "residual_weight", "no_imgnorm", "no_txtnorm")
