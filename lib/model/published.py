"""Names in published checkpoints, and ours (docs/method.md, section 8)."""

import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

# published names -> names of our modules, as regular expressions; what maps to None is unused
IMAGE_NAMES = {
    r"fc\.fc\.": "projection.",
    r"fc\.mlp\.layers\.0\.": "mlp.0.",
    r"fc\.mlp\.bns\.0\.": "mlp.1.",
    r"fc\.mlp\.bns\.1\.": None,
    r"fc\.mlp\.layers\.1\.": "mlp.3.",
    r"aggr\.layers\.0\.": "fragment_relation.layer.",
}
TEXT_NAMES = {
    r"bert\.pooler\.": None,
    r"bert\.embeddings\.position_ids$": None,
    r"bert\.": "bert.",
    r"linear\.": "projection.",
    r"aggr\.layers\.0\.": "fragment_relation.layer.",
}
OBJECTIVE_NAMES = {
    r"gnn\.layers\.": "fusion.layers.",
    r"adj_model\.adj_learning\.mlp_(t2i|i2t)\.0\.": r"relations.cross_modal.mlp_\1.0.",
    r"adj_model\.adj_learning\.mlp_(t2i|i2t)\.3\.": r"relations.cross_modal.mlp_\1.2.",
}


def rename(state: Mapping[str, Value], names: Mapping[str, str | None]) -> dict[str, Value]:
    """A published state dict under our names, without unused entries.

    Raises KeyError if an entry is not in `names`.
    """
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        for pattern, ours in names.items():
            if re.match(pattern, name):
                if ours is not None:
                    renamed[re.sub("^" + pattern, ours, name)] = value
                break
        else:
            raise KeyError(name)
    return renamed


def from_published(
    image_state: Mapping[str, Value], text_state: Mapping[str, Value]
) -> dict[str, Value]:
    """The state dict of `lib.model.network.HREM` from the two of a published checkpoint."""
    image = {
        "image_encoder." + name: value for name, value in rename(image_state, IMAGE_NAMES).items()
    }
    text = {"text_encoder." + name: value for name, value in rename(text_state, TEXT_NAMES).items()}
    return image | text
