"""Options of the model. Parsing imports this module, so it must not import torch."""

import dataclasses

from ..system.options import (
    FRACTION,
    PROBABILITY_BELOW_ONE,
    SIZE,
    SWITCH,
    Number,
    option,
)

POOLINGS = tuple(
    name + relation for relation in ("+relation", "") for name in ("maxk", "mean", "max", "gpo")
)
TEXT_ENCODERS = ("bert", "bigru")
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


ALWAYS_SAVED = ("embed_size", "nhead", "dropout", "residual_weight", "no_imgnorm", "no_txtnorm")
