"""Checkpoints: ours, and the published format read as it is (SPEC section 8).

Every file is loaded with weights_only: nothing in it can run. The one class let in is argparse.Namespace, in which the
published training script kept its options.
"""

import argparse
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from lib.errors import InputError, first_sentence
from lib.files import written_whole
from lib.vocabulary import Vocabulary

FORMAT = "hrem-1"
BEST = "model_best.pth"
ADDED_OPTIONS = dict(  # what the published models, and ours before these options, were built with
    pooling="maxk+relation", mask_padding=0, text_encoder="bert", word_dim=300,
)  # fmt: skip
MODEL_OPTIONS = ("embed_size", "nhead", "dropout", "residual_weight", "no_imgnorm", "no_txtnorm")
DAMAGED = (  # what torch.load was seen to raise for files of random or altered bytes
    RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip

# published names -> names of our modules, as regular expressions; what maps to None was never used
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


class Checkpoint(NamedTuple):
    """What evaluation needs of either format: the model's state dict, its options as a dict, epoch and best rsum.

    vocabulary: the `Vocabulary` of a model that reads words, or None where BERT brings its pieces.
    """

    model: dict
    options: dict
    epoch: int
    best_rsum: float
    is_published: bool
    vocabulary: Vocabulary | None = None


def rename(state, names):
    """A published state dict under our names, without the entries that were never used.

    Raises KeyError on an entry that `names` does not know.
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


def from_published(image_state, text_state):
    """The state dict of `lib.model.HREM` from the two of a published checkpoint."""
    image = {"image_encoder." + name: value for name, value in rename(image_state, IMAGE_NAMES).items()}
    text = {"text_encoder." + name: value for name, value in rename(text_state, TEXT_NAMES).items()}
    return image | text


def save(path, model, objective, optimizer, *, epoch, step, best_rsum, options, vocabulary=None):
    """Write our format; a killed run leaves the old file or the new one, never half of one.

    epoch: epochs done; step: optimisation steps done; options: a plain dict; vocabulary: a `Vocabulary`, or None.
    """
    content = dict(
        format=FORMAT,
        model=model.state_dict(),
        objective=objective.state_dict(),
        optimizer=optimizer.state_dict(),
        epoch=epoch,
        step=step,
        best_rsum=best_rsum,
        options=dict(options),
        vocabulary=vocabulary and vocabulary.words,
    )
    with written_whole(path) as file:
        torch.save(content, file)


def find(path):
    """The checkpoint file that `path` means: a file itself, or the best model of a run folder. Raises InputError."""
    path = Path(path)
    if path.is_dir():
        path = path / BEST
    if not path.is_file():
        raise InputError(
            f"{path}: no such checkpoint; expected a run folder that holds {BEST}, or a checkpoint file: "
            "train first, or name one with --model_path"
        )
    return path


def load(path):
    """Read a checkpoint of either format on the CPU. Returns `Checkpoint`. Raises InputError naming the file."""
    content = _read(path)
    try:
        is_published = content.get("format") != FORMAT
        options = vars(content["opt"]) | ADDED_OPTIONS if is_published else ADDED_OPTIONS | dict(content["options"])
        state = from_published(*content["model"]) if is_published else dict(content["model"])
        for name in MODEL_OPTIONS:
            options[name]  # a KeyError names what is missing
        vocabulary = None if options["text_encoder"] == "bert" else Vocabulary(content["vocabulary"])
        return Checkpoint(state, options, int(content["epoch"]), float(content["best_rsum"]), is_published, vocabulary)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not a checkpoint of this model (found {_kind(content)}; {type(error).__name__}: {error}); "
            "expected a file written by train.py or one in the published format"
        ) from error


def load_into(model, checkpoint, path):
    """Put a checkpoint's weights into `model`. Raises InputError naming the first entry that does not fit."""
    wanted = model.state_dict()
    for name, value in wanted.items():
        found = checkpoint.model.get(name)
        if not isinstance(found, torch.Tensor) or found.shape != value.shape:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else "nothing"
            raise InputError(
                f"{path}: a checkpoint of another size: {name} is {shape}, expected {tuple(value.shape)}; give the "
                "--bert_path and the data set that it was trained with"
            )
    surplus = sorted(checkpoint.model.keys() - wanted.keys())
    if surplus:
        raise InputError(
            f"{path}: a checkpoint of another size: it holds {surplus[0]}, which this model has not; give the "
            "--bert_path that it was trained with"
        )
    model.load_state_dict(checkpoint.model)


def _read(path):
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused: the file is damaged or would run code when read ({first_sentence(error)}); expected "
            "tensors and plain values only: fetch it again from a source that you trust"
        ) from error
    except DAMAGED as error:
        raise InputError(
            f"{path}: cannot be read as a checkpoint ({first_sentence(error)}); expected a complete file written by "
            "torch.save: copy or download it again"
        ) from error


def _kind(content):
    if isinstance(content, dict):
        return "a dict with " + (", ".join(map(str, list(content)[:6])) or "nothing")
    return f"a {type(content).__name__}"
