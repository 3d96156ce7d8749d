"""The sizes that the options of a checkpoint give, compared with its weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..system.errors import InputError
from .saved_bert import SavedBert

BERT_EMBEDDINGS = "text_encoder.bert.embeddings."
BERT_LAYER = re.compile(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.")
BERT_SIZES = dict(  # settings of BERT -> a weight and its axis of that size
    vocab_size=(BERT_EMBEDDINGS + "word_embeddings.weight", 0),
    hidden_size=(BERT_EMBEDDINGS + "word_embeddings.weight", 1),
    max_position_embeddings=(BERT_EMBEDDINGS + "position_embeddings.weight", 0),
    type_vocab_size=(BERT_EMBEDDINGS + "token_type_embeddings.weight", 0),
    intermediate_size=("text_encoder.bert.encoder.layer.0.intermediate.dense.weight", 0),
)


def check(
    path: Path | str,
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    bert: SavedBert | None,
) -> None:
    """Check that the options, and the configuration of BERT, have the sizes of the state dict
    `model`, before a model of any size is built. Raises InputError."""
    named = dict(
        embed_size=("image_encoder.projection.weight", 0),
        img_dim=("image_encoder.projection.weight", 1),
    )
    if options["text_encoder"] != "bert":
        named["word_dim"] = ("text_encoder.words.weight", 1)
    sizes = dict(options)
    if bert:
        sizes, named = sizes | bert.config, named | BERT_SIZES
    for option, (name, axis) in named.items():
        if option not in sizes:
            continue
        shape, wanted = tuple(getattr(model.get(name), "shape", ())), sizes[option]
        if not shape:
            raise InputError(
                f"{path}: not a complete checkpoint: {name} is missing, expected with {option} "
                f"{wanted!r:.60}. Copy it again, or train again (--bert_path names the BERT it "
                "needs)"
            )
        if len(shape) != 2 or shape[axis] != wanted:
            raise InputError(
                f"{path}: the weights have another size than the options (found {name} with "
                f"{shape[axis] if len(shape) == 2 else shape} {('rows', 'columns')[axis]}, "
                f"expected {option} {wanted!r:.60}). Copy it again, or train again"
            )
    layers = {match[1] for name in model if (match := BERT_LAYER.match(str(name)))}
    if bert and len(layers) != sizes.get("num_hidden_layers"):
        raise InputError(
            f"{path}: a damaged checkpoint (found a BERT of {len(layers)} layers, expected "
            f"num_hidden_layers {sizes.get('num_hidden_layers')!r:.60} as in its configuration). "
            "Copy it again, or train again"
        )
