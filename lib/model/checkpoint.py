"""Checkpoints: ours, and the published format read as it is (docs/method.md, section 8).

Every file is read by `lib.system.unpickle`: nothing in it can run. What it holds is checked before
anything is changed.
"""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import torch

from ..data.vocabulary import Vocabulary
from ..system import unpickle
from ..system.errors import InputError, first_sentence
from ..system.files import atomic_write, why_unreadable
from ..system.run_folder import BEST, LAST, RunFolder, seed_folder
from . import saved_bert, state
from .options import ALWAYS_SAVED, ModelOptions
from .saved_bert import SavedBert
from .state import expect

FORMAT = "hrem-1"
ADDED_OPTIONS = {field.name for field in dataclasses.fields(ModelOptions)} - {*ALWAYS_SAVED}
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
BERT_EMBEDDINGS = "text_encoder.bert.embeddings."
BERT_LAYER = re.compile(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.")
BERT_SIZES = dict(  # of a configuration, with a weight and its axis of that size
    vocab_size=(BERT_EMBEDDINGS + "word_embeddings.weight", 0),
    hidden_size=(BERT_EMBEDDINGS + "word_embeddings.weight", 1),
    max_position_embeddings=(BERT_EMBEDDINGS + "position_embeddings.weight", 0),
    type_vocab_size=(BERT_EMBEDDINGS + "token_type_embeddings.weight", 0),
    intermediate_size=("text_encoder.bert.encoder.layer.0.intermediate.dense.weight", 0),
)
OBJECTIVE_NAMES = {
    r"gnn\.layers\.": "fusion.layers.",
    r"adj_model\.adj_learning\.mlp_(t2i|i2t)\.0\.": r"relations.cross_modal.mlp_\1.0.",
    r"adj_model\.adj_learning\.mlp_(t2i|i2t)\.3\.": r"relations.cross_modal.mlp_\1.2.",
}


class Checkpoint(NamedTuple):
    """What evaluation needs of either format: the model's state dict, its options as a dict,
    epoch and best rsum.

    vocabulary: the `Vocabulary` of a model that reads words, or None where BERT brings its pieces;
    reader: what that BERT is known by, see `lib.data.fingerprint.check_reader`; is_last: a LAST
    file, whose epoch no validation has selected; bert: the BERT's configuration and tokeniser, None
    in published files and in those from before they were kept.
    """

    model: dict
    options: dict
    epoch: int
    best_rsum: float
    is_published: bool
    vocabulary: Vocabulary | None = None
    reader: dict | None = None
    is_last: bool = False
    bert: SavedBert | None = None


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
    """The state dict of `lib.model.network.HREM` from the two of a published checkpoint."""
    image = {
        "image_encoder." + name: value for name, value in rename(image_state, IMAGE_NAMES).items()
    }
    text = {"text_encoder." + name: value for name, value in rename(text_state, TEXT_NAMES).items()}
    return image | text


def model_options(options):
    """Those of a checkpoint's options that its embeddings depend on, a dict."""
    return {field.name: options[field.name] for field in dataclasses.fields(ModelOptions)}


def save(path, model, objective, optimizer, **counted):
    """Write our format; a killed run leaves the old file or the new one, never half of one.

    counted: epoch (epochs done), step (optimisation steps done), best_rsum, options (a dict),
    vocabulary (a list of words, or None), reader (see `Checkpoint`), bert (of `saved_bert.keep`, or
    None), and in LAST what else a run
    needs to go on: tensors and plain values. Raises InputError where the disk is full.
    """
    content = dict(
        format=FORMAT,
        model=model.state_dict(),
        objective=objective.state_dict(),
        optimizer=optimizer.state_dict(),
        **counted,
    )
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides what the disk said
                raise error.__context__ from error
            raise


def find(path, name=BEST, option="--model_path"):
    """The checkpoint file that `path` means: a file itself, or the file `name` of a run folder.

    option: that named it. Raises InputError.
    """
    folder = Path(path)
    path = folder / name if folder.is_dir() else folder
    is_discarded = path.name in RunFolder(path.parent).read()["discarded"]
    why = "no such file" if is_discarded else why_unreadable(path)
    inside = (
        sorted(str(file.parent) for file in folder.glob(f"*/{name}"))
        if why == "no such file"
        else []
    )
    if inside:
        more = f" and {len(inside) - 10} more" if len(inside) > 10 else ""
        raise InputError(
            f"{folder}: found no {name}, but run folders: {', '.join(inside[:10])}{more}; "
            "expected one run: name one of these"
        )
    if why:
        found = "no such checkpoint" if why == "no such file" else why
        raise InputError(
            f"{path}: {found}; expected a run folder that holds {name}, or a checkpoint file: "
            f"train first, or name one with {option}"
        )
    return path


def find_seeds(folder):
    """Checkpoints of the runs `seed*/` in a folder by seed, {seed: path};
    none where it is itself a run folder.

    Raises InputError where one of them has no checkpoint.
    """
    if (Path(folder) / BEST).exists():
        return {}
    seeds = sorted(
        int(path.name[4:]) for path in Path(folder).glob("seed*/") if path.name[4:].isdecimal()
    )
    return {seed: find(seed_folder(folder, seed)) for seed in seeds}


def load(path):
    """Read a checkpoint of either format on the CPU. Returns `Checkpoint`.
    Raises InputError naming the file."""
    content = unpickle.read(path)
    try:
        is_published = content.get("format") != FORMAT
        if is_published:
            model, given = from_published(*content["model"]), vars(content["opt"])
            # options of the same names in published code mean something else
            given = {name: given[name] for name in given if name not in ADDED_OPTIONS}
        else:
            model, given = dict(content["model"]), dict(content["options"])
        options = state.check_options(state.plain_options(given))
        if not is_published:
            expect(options, "val_split", str)
        vocabulary = (
            None if options["text_encoder"] == "bert" else state.read_vocabulary(content, options)
        )
        counted = dict(epoch=int(content["epoch"]), best_rsum=float(content["best_rsum"]))
        epoch = expect(counted, "epoch", int, 0, state.MOST_STEPS)
        best_rsum = expect(counted, "best_rsum", float, -1, state.BEST_POSSIBLE)
        reader, is_last = dict(content.get("reader") or {}), "position" in content
        kept = (
            None if is_published or vocabulary else saved_bert.read(str(path), content.get("bert"))
        )
        found = Checkpoint(
            model, options, epoch, best_rsum, is_published, vocabulary, reader, is_last, kept
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise InputError(
            f"{path}: not a checkpoint of this model (found {_kind(content)}; "
            f"{type(error).__name__}: {first_sentence(error)}); expected a file written by "
            "train.py or one in the published format"
        ) from error
    _check_sizes(path, found)
    return found


def _check_sizes(path, found):
    """The sizes that the options name are those of the weights:
    known before a model of any size is made."""
    named = dict(
        embed_size=("image_encoder.projection.weight", 0),
        img_dim=("image_encoder.projection.weight", 1),
    )
    if found.vocabulary:
        named["word_dim"] = ("text_encoder.words.weight", 1)
    sizes = found.options
    if found.bert:
        sizes, named = sizes | found.bert.config, named | BERT_SIZES
    for option, (name, axis) in named.items():
        if option not in sizes:
            continue
        shape, wanted = tuple(getattr(found.model.get(name), "shape", ())), sizes[option]
        if not shape:
            raise InputError(
                f"{path}: not a whole checkpoint: {name} is missing, expected with {option} "
                f"{wanted!r:.60}; copy it again, or train again (--bert_path names the BERT it "
                "needs)"
            )
        if len(shape) != 2 or shape[axis] != wanted:
            raise InputError(
                f"{path}: a checkpoint of another size: {name} has "
                f"{shape[axis] if len(shape) == 2 else shape} {('rows', 'columns')[axis]}, "
                f"expected {option} {wanted!r:.60} as its settings say; copy it again, or train "
                "again"
            )
    layers = {match[1] for name in found.model if (match := BERT_LAYER.match(str(name)))}
    if found.bert and len(layers) != sizes.get("num_hidden_layers"):
        raise InputError(
            f"{path}: a damaged checkpoint: found a BERT of {len(layers)} layers, expected "
            f"num_hidden_layers {sizes.get('num_hidden_layers')!r:.60} as its configuration says; "
            "copy it again, or train again"
        )


def load_run(path):
    """Read a file that `save` wrote, to go on from it: a dict of what was given to `save`,
    all of it checked.

    What depends on the run's parts is checked by `restore`. Raises InputError.
    """
    content = unpickle.read(path)
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or "position" not in content
    ):
        raise InputError(
            f"{path}: found {_kind(content)}, expected a {LAST} written by train.py: only that "
            "holds all that a run needs to go on; give --resume its path, or start anew with "
            "--resume none"
        )
    try:
        options = state.read_run_options(content)
        kept = saved_bert.read(str(path), content.get("bert"))
        return content | {"options": options, "bert": kept}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _refusal(path, error) from error


def check_progress(path, content, steps_per_epoch, num_epochs):
    """What `load_run` read lies within the epochs of the run that goes on from it.
    Raises InputError."""
    if content["epoch"] > num_epochs:
        raise InputError(
            f"{path}: the run has trained {content['epoch']} epochs, found --num_epochs "
            f"{num_epochs}; expected at least as many: give --num_epochs {content['epoch']} for "
            "the table of its best epoch"
        )
    if content["position"]["step_in_epoch"] > steps_per_epoch:
        error = ValueError(
            f"step_in_epoch {content['position']['step_in_epoch']}, expected 0 to "
            f"{steps_per_epoch}, the steps of an epoch"
        )
        raise _refusal(path, error)


def restore(path, content, model, objective, optimizer):
    """Put what `load_run` read into the parts of a run, once all of it is known to fit.
    Raises InputError."""
    try:
        state.check_module(content["model"], model, "model")
        state.check_module(content["objective"], objective, "objective")
        state.check_optimizer(content["optimizer"], optimizer, content["step"])
    except (ValueError, RuntimeError) as error:
        raise _refusal(path, error) from error
    for name, part in dict(model=model, objective=objective, optimizer=optimizer).items():
        part.load_state_dict(content[name])


def _refusal(path, error):
    return InputError(
        f"{path}: does not fit this run (found {first_sentence(error)}), expected a {LAST} of the "
        "same options, data and BERT, as train.py wrote it: name that one, or start anew with "
        "--resume none"
    )


def check_fits(model, checkpoint, path):
    """The entries of a checkpoint are those of `model`.
    Raises InputError naming the first one that does not fit."""
    wanted = model.state_dict()
    for name, value in wanted.items():
        found = checkpoint.model.get(name)
        if wrong := state.why_unfit(found, value):
            raise InputError(
                f"{path}: a checkpoint of another size: {name} {wrong}; give the --bert_path and "
                "the data set that it was trained with"
            )
    surplus = sorted(checkpoint.model.keys() - wanted.keys())
    if surplus:
        raise InputError(
            f"{path}: a checkpoint of another size: it holds {surplus[0]}, which this model has "
            "not; give the --bert_path that it was trained with"
        )


def load_into(model, checkpoint, path):
    """Put a checkpoint's weights into `model`. Raises InputError naming the first entry that does
    not fit."""
    check_fits(model, checkpoint, path)
    model.load_state_dict(checkpoint.model)
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise InputError(
                f"{path}: {name} holds NaN or Inf, expected finite weights; take another "
                "checkpoint of this run, or fetch it again"
            )


def _kind(content):
    if isinstance(content, dict):
        return "a dict with " + (", ".join(map(str, list(content)[:6])) or "nothing")
    return f"a {type(content).__name__}"
