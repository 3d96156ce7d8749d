"""Start a run from the weights of a trained model, ours or published,
of any data set (--init_from).

Both encoders are loaded. The instance graph, which published files do not contain, and the
optimiser start from scratch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.vocabulary import Vocabulary
from ..system.console import one_line
from ..system.errors import InputError
from . import checkpoint
from .checkpoint import Checkpoint

# with other values of these, the weights do not fit
MUST_AGREE = ("text_encoder", "embed_size", "nhead", "pooling", "region_mlp", "similarity")
MAY_DIFFER = (
    "residual_weight", "no_imgnorm", "no_txtnorm", "mask_padding", "cross_attention",
    "aggregation", "attention_temperature", "lse_temperature", "match_norm",
)  # fmt: skip


def read(path: Path | str, options: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint at `path`, a run folder or a file, for a run with these options.

    Raises InputError if it does not fit them.
    """
    file = checkpoint.find(path, option="--init_from")
    if file.resolve().parent == Path(options["model_name"]).resolve():
        raise InputError(
            f"--init_from {file}: the run would overwrite it (found it in the folder of this run, "
            "expected another folder). Give another --logger_name"
        )
    trained = checkpoint.load(file)
    for name in MUST_AGREE + ("word_dim",) * (trained.vocabulary is not None):
        if options[name] != trained.options[name]:
            raise InputError(
                f"--init_from {file}: a model with other options (found --{name} "
                f"{trained.options[name]}, expected --{name} {options[name]} as in this run). Give "
                f"--{name} {trained.options[name]}"
            )
    return trained


def extend(words: Vocabulary, vocabulary: Vocabulary) -> Vocabulary:
    """The `vocabulary` of a checkpoint, followed by the words of `words` that it lacks."""
    added = [word for word in words.words if word not in vocabulary.ids]
    return Vocabulary(vocabulary.words + added, words.strip_accents, words.note)


def load(path: Path | str, trained: Checkpoint, model: nn.Module, region_dim: int) -> None:
    """Load the weights of a checkpoint, read from `path`, into the model of a run.

    region_dim: D of the run's data. New words keep the embeddings that `model` has. Raises
    InputError.
    """
    state = dict(trained.model)
    width = tuple(getattr(state.get("image_encoder.projection.weight"), "shape", ()))[1:]
    if width and width != (region_dim,):
        raise InputError(
            f"--init_from {path}: the model reads other features (found a feature size of "
            f"{width[0]}, expected {region_dim} as in the data). Extract the features as those "
            "that it was trained on, or start without --init_from"
        )
    if trained.vocabulary:
        name = "text_encoder.words.weight"
        state[name] = _extended(
            state.get(name), model.text_encoder.words.weight, trained.vocabulary
        )
    checkpoint.load_into(model, trained._replace(model=state), path)


def _extended(known, weight, vocabulary):
    """The embeddings `known` of a checkpoint's words, followed by those of `weight` for new words:
    (words, dim)."""
    if not isinstance(known, torch.Tensor) or known.shape != (len(vocabulary), weight.size(1)):
        return known  # damaged; it is refused later, with its shape
    return torch.cat([known, weight.detach()[len(known) :].to(known)])


def describe(
    path: Path | str,
    trained: Checkpoint,
    options: Mapping[str, Any],
    vocabulary: Vocabulary | None,
) -> str:
    """A line for the log: which model a run with these options starts from."""
    text = f"starting from {path} ("
    if trained.is_published:
        text += "published format"
    else:
        text += f"trained on {trained.options.get('dataset', 'another data set')}"
    text += (
        f", {trained.epoch} epochs): the weights of both encoders are loaded; the instance graph "
        "and the optimiser start from scratch"
    )
    if vocabulary and trained.vocabulary:
        known, new = len(trained.vocabulary.words), len(vocabulary) - len(trained.vocabulary)
        text += f"; {known} words keep their embedding, {new} new words start "
        text += "at random" if not options["glove"] else "from --glove or at random"
    names = MAY_DIFFER + ("strip_accents",) * (trained.vocabulary is not None)
    other = [name for name in names if options[name] != trained.options[name]]
    if other:
        text += "; warning: options that differ from that training: "
        text += ", ".join(
            f"--{name} {options[name]} (it had {trained.options[name]})" for name in other
        )
    return one_line(text)
