"""Start a run from the weights of a trained model, ours or published,
of any data set (--init_from).

Both encoders are taken. The instance graph, which published files do not hold, and the optimiser
start anew.
"""

from pathlib import Path

import torch

from ..data.vocabulary import Vocabulary
from ..system.console import one_line
from ..system.errors import InputError
from . import checkpoint

# under other values the weights mean nothing
MUST_AGREE = ("text_encoder", "embed_size", "nhead", "pooling")
MAY_DIFFER = ("residual_weight", "no_imgnorm", "no_txtnorm", "mask_padding")


def read(path, options):
    """The `Checkpoint` at `path`, a run folder or a file, for a run of these options, a dict.

    Raises InputError where it does not fit them.
    """
    file = checkpoint.find(path, option="--init_from")
    if file.resolve().parent == Path(options["model_name"]).resolve():
        raise InputError(
            f"--init_from {file}: found it in the folder of this run, which would replace it, "
            "expected another folder: give another --logger_name"
        )
    trained = checkpoint.load(file)
    for name in MUST_AGREE + ("word_dim",) * (trained.vocabulary is not None):
        if options[name] != trained.options[name]:
            raise InputError(
                f"--init_from {file}: found a model of --{name} {trained.options[name]}, expected "
                f"--{name} {options[name]} as this run has it; give --{name} "
                f"{trained.options[name]}"
            )
    return trained


def extend(words, vocabulary):
    """The `Vocabulary` of a `Checkpoint`, each word in its place,
    and after it those of `words` that are new."""
    added = [word for word in words.words if word not in vocabulary.ids]
    return Vocabulary(vocabulary.words + added, words.strip_accents, words.note)


def load(path, trained, model, region_dim):
    """Put the weights of a `Checkpoint`, read from `path`, into the model of a run.
    Raises InputError.

    region_dim: D of the run's data. New words keep the embeddings that `model` has.
    """
    state = dict(trained.model)
    width = tuple(getattr(state.get("image_encoder.projection.weight"), "shape", ()))[1:]
    if width and width != (region_dim,):
        raise InputError(
            f"--init_from {path}: found a model of regions of {width[0]} features, expected "
            f"{region_dim} as the data have; extract the features as those that it was trained "
            "on, or start without --init_from"
        )
    if trained.vocabulary:
        name = "text_encoder.words.weight"
        state[name] = _extended(
            state.get(name), model.text_encoder.words.weight, trained.vocabulary
        )
    checkpoint.load_into(model, trained._replace(model=state), path)


def _extended(known, weight, vocabulary):
    """The embeddings of the words that a checkpoint knows, and after them those of `weight`:
    (words of both, dim)."""
    if not isinstance(known, torch.Tensor) or known.shape != (len(vocabulary), weight.size(1)):
        return known  # damaged, and refused with its shape
    return torch.cat([known, weight.detach()[len(known) :].to(known)])


def describe(path, trained, options, vocabulary):
    """A line for the log: what a run of these options, a dict, starts from."""
    text = f"starting from {path} ("
    if trained.is_published:
        text += "published format"
    else:
        text += f"trained on {trained.options.get('dataset', 'another data set')}"
    text += (
        f", {trained.epoch} epochs): the weights of both encoders; the instance graph and the "
        "optimiser start anew"
    )
    if vocabulary:
        known, new = len(trained.vocabulary.words), len(vocabulary) - len(trained.vocabulary)
        text += f"; {known} words keep their embedding, {new} new words start "
        text += "at random" if not options["glove"] else "from --glove or at random"
    names = MAY_DIFFER + ("strip_accents",) * (trained.vocabulary is not None)
    other = [name for name in names if options[name] != trained.options[name]]
    if other:
        text += "; warning: other than there: "
        text += ", ".join(
            f"--{name} {options[name]} (there {trained.options[name]})" for name in other
        )
    return one_line(text)
