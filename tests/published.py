"""The golden models: weights drawn by the rules of tests/golden/README.md,
under published names, put into ours."""

import dataclasses
import functools
import json
import re
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

from graph_lib import Objective
from lib.model import bert
from lib.model.network import HREM
from lib.model.options import ModelOptions
from lib.model.published import OBJECTIVE_NAMES, from_published, rename
from lib.objective.options import ObjectiveOptions

GOLDEN = Path(__file__).parent / "golden"
SHAPES = json.loads((GOLDEN / "checkpoint_names.json").read_text())
NORMS = ("norm1", "norm2", "LayerNorm")
DEVICE = torch.device("cpu")  # of golden arrays and models; the tests on a GPU change it
ON_THE_HOST = re.compile("lengths|img_ids")


def golden(name):
    """The arrays of a golden file, floats as float32 tensors, on DEVICE what training has there."""
    found = {
        key: torch.from_numpy(array.copy()) if array.dtype.kind in "fib" else array.copy()
        for key, array in _arrays(name).items()
    }
    return {
        key: value.to(DEVICE)
        if isinstance(value, torch.Tensor) and not ON_THE_HOST.search(key)
        else value
        for key, value in found.items()
    }


@functools.cache
def _arrays(name):
    """The arrays of a golden file: a thousand in some, read once."""
    with np.load(GOLDEN / name) as file:
        return dict(file)


def weight_by_rule(name, shape, second_set=False):
    """One entry of a published state dict by the rule of the first golden set,
    or of the second (`more/`)."""
    parts = name.split(".")
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(
        np.float32
    ) * np.float32(0.05)
    if name.endswith("running_var"):
        draw = np.abs(draw) + 1
    elif parts[-1] == "weight" and (parts[-2] in NORMS or parts[-3:-2] == ["bns"]):
        draw = draw + 1
    return torch.from_numpy(np.asarray(draw, dtype=np.float32))


def state_by_rule(part):
    """A whole published state dict: part is image_encoder, text_encoder or criterion."""
    return {name: weight_by_rule(name, shape) for name, shape in SHAPES[part].items()}


def small_bert(**changes):
    """The golden models' BERT, without weights of its own."""
    settings = dict(
        vocab_size=30522, hidden_size=768, num_hidden_layers=1, num_attention_heads=12,
        intermediate_size=128, max_position_embeddings=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertModel(BertConfig(**(settings | changes)), add_pooling_layer=False)


def make_model(reader, region_dim, **options):
    """A model of these options, by the names of the command line."""
    return HREM(reader, region_dim, ModelOptions(**options))


def make_objective(**options):
    """An objective of these options, by the names of the command line; those of the model too.
    words: of soft labels."""
    words = options.pop("words", None)
    shared = options.keys() & {field.name for field in dataclasses.fields(ModelOptions)}
    model = ModelOptions(**{name: options.pop(name) for name in shared})
    return Objective(model, ObjectiveOptions(**options), words)


def small_model():
    """The golden model in our modules, in evaluation mode."""
    model = make_model(small_bert(), 48, embed_size=64, nhead=4, dropout=0.0)
    model.load_state_dict(
        from_published(state_by_rule("image_encoder"), state_by_rule("text_encoder"))
    )
    return model.to(DEVICE).eval()


def small_objective(topk=5, layers=1, **options):
    """The golden objective, relation weights by rule."""
    shared = dict(embed_size=64, nhead=4, dropout=0.0)
    objective = make_objective(topk=topk, num_layers_enc=layers, **shared, **options)
    shapes = {
        name: shape for name, shape in SHAPES["criterion"].items() if name.startswith("adj_model")
    }
    shapes = {
        name: [size if size == 1 else topk for size in shape] for name, shape in shapes.items()
    }
    for name, shape in SHAPES["criterion"].items():
        if name.startswith("gnn"):
            shapes |= {
                name.replace("layers.0", f"layers.{layer}"): shape for layer in range(layers)
            }
    published = {name: weight_by_rule(name, shape) for name, shape in shapes.items()}
    objective.load_state_dict(rename(published, OBJECTIVE_NAMES))
    return objective.to(DEVICE)


def published_name(name):
    """The published name of one of our parameters, as golden files list it."""
    tables = dict(
        image_encoder=(state_names("image_encoder"), "image_encoder."),
        text_encoder=(state_names("text_encoder"), "text_encoder."),
    )
    part, _, rest = name.partition(".")
    names, prefix = tables.get(part, (None, None))
    if names is None:
        return _criterion_names()[name]
    return prefix + names[rest]


def state_names(part):
    """Our name -> published name for one encoder."""
    from lib.model.published import IMAGE_NAMES, TEXT_NAMES

    table = IMAGE_NAMES if part == "image_encoder" else TEXT_NAMES
    return {ours: name for name in SHAPES[part] for ours in rename({name: None}, table)}


def _criterion_names():
    names = {}
    for name in SHAPES["criterion"]:
        for layer in range(2):
            name_of_layer = name.replace("layers.0", f"layers.{layer}")
            names |= {
                ours: name_of_layer for ours in rename({name_of_layer: None}, OBJECTIVE_NAMES)
            }
    return names


def small_tokeniser():
    """The fast tokeniser of the golden cut vocabulary, through the code that --bert_path uses."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(GOLDEN / "vocab_small.txt", Path(folder) / "vocab.txt")
        (Path(folder) / "config.json").write_text('{"model_type": "bert"}')
        return bert.tokeniser(folder)
