"""The small untrained BERT of the demo data, and its tokeniser."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from .demo_scenes import generator_of
from .demo_settings import BACKGROUNDS, LOOKS, RELATED, RELATIONS, THIRD, UNRELATED
from .layout import write_lines

PIECES = {  # words that are not in the vocabulary, and their word pieces
    "wooden": "wood ##en", "metallic": "metal ##lic", "golden": "gold ##en", "teapot": "tea ##pot",
    "automobile": "auto ##mobile", "underneath": "under ##neath", "woods": "wood ##s",
}  # fmt: skip
BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 256, "max_position_embeddings": 64, "type_vocab_size": 2,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip


def vocabulary() -> list[str]:
    """The pieces of the tokeniser, in the order of their ids."""
    texts = [*RELATED, *UNRELATED, *THIRD, "a an"]
    tables: list[dict[str, tuple[str, ...]]] = [*LOOKS.values(), BACKGROUNDS, RELATIONS]
    for table in tables:
        texts += [words for row in table.values() for words in row]
    text = " ".join(texts).format(**dict.fromkeys(("first", "second", "third", "relation"), ""))
    words = (
        set("".join(letter if letter.isalpha() else " " for letter in text).split()) - PIECES.keys()
    )
    words |= set(" ".join(PIECES.values()).split())
    # so that any ASCII text can be tokenised
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    inner = [f"##{letter}" for letter in letters if letter.isalnum()]
    return list(
        dict.fromkeys(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words), *letters, *inner]
        )
    )


def write_bert(folder: Path, seed: int) -> None:
    """Write the configuration, initial weights and tokeniser of BERT to an existing folder."""
    pieces = vocabulary()
    write_lines(folder / "vocab.txt", pieces)
    tokeniser = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    for name, content in (
        ("config", {**BERT, "vocab_size": len(pieces)}),
        ("tokenizer_config", tokeniser),
    ):
        write_lines(folder / f"{name}.json", [json.dumps(content, indent=2)])
    (folder / "model.safetensors").write_bytes(
        save(_bert_weights(len(pieces), seed), metadata={"format": "pt"})
    )


def _bert_weights(rows: int, seed: int) -> dict[str, np.ndarray]:
    """The initial weights of BERT, by their names in transformers.

    Weights are from normal(0, 0.02); biases are 0; scales of norms are 1. rows: vocabulary size.
    """
    generator = generator_of(seed, "bert")
    dim, inner = BERT["hidden_size"], BERT["intermediate_size"]
    tables = {
        "word": rows,
        "position": BERT["max_position_embeddings"],
        "token_type": BERT["type_vocab_size"],
    }
    shapes = {f"embeddings.{name}_embeddings": (length, dim) for name, length in tables.items()}
    norms = ["embeddings"]
    for layer in (f"encoder.layer.{index}" for index in range(BERT["num_hidden_layers"])):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}.attention.{part}"] = (dim, dim)
        shapes |= {
            f"{layer}.intermediate.dense": (inner, dim),
            f"{layer}.output.dense": (dim, inner),
        }
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    weights = {
        f"{name}.weight": generator.normal(0, BERT["initializer_range"], shapes[name])
        for name in shapes
    }
    weights["embeddings.word_embeddings.weight"][BERT["pad_token_id"]] = 0
    weights |= {
        f"{name}.bias": np.zeros(shapes[name][0]) for name in shapes if name.startswith("encoder")
    }
    weights |= {f"{norm}.LayerNorm.weight": np.ones(dim) for norm in norms}
    weights |= {f"{norm}.LayerNorm.bias": np.zeros(dim) for norm in norms}
    return {name: values.astype(np.float32) for name, values in weights.items()}
