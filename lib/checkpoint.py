"""Checkpoints: ours, and the published format read as it is (SPEC section 8).

Every file is loaded with weights_only: nothing in it can run. The one class let in is argparse.Namespace, in which the
published training script kept its options.
"""

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from lib.errors import InputError, first_sentence
from lib.files import atomic_write, why_unreadable
from lib.run_folder import RunFolder
from lib.vocabulary import Vocabulary

FORMAT = "hrem-1"
BEST, LAST = "model_best.pth", "last.pth"
ADDED_OPTIONS = dict(  # what the published models, and ours before these options, were built with
    pooling="maxk+relation", mask_padding=0, text_encoder="bert", word_dim=300, strip_accents=1,
)  # fmt: skip
MODEL_OPTIONS = ("embed_size", "nhead", "dropout", "residual_weight", "no_imgnorm", "no_txtnorm")
OPTION_KINDS = dict(  # read where they are there
    dataset=str, data_path=str, bert_path=str, val_split=str, test_split=str, seed=int,
)  # fmt: skip
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

    vocabulary: the `Vocabulary` of a model that reads words, or None where BERT brings its pieces; reader: what that
    BERT is known by, see `lib.fingerprint.check_reader`; is_last: a LAST file, whose epoch no validation has selected.
    """

    model: dict
    options: dict
    epoch: int
    best_rsum: float
    is_published: bool
    vocabulary: Vocabulary | None = None
    reader: dict | None = None
    is_last: bool = False


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


def model_options(options):
    """Those of a checkpoint's options that its embeddings depend on, a dict."""
    return {name: options[name] for name in (*MODEL_OPTIONS, *ADDED_OPTIONS)}


def save(path, model, objective, optimizer, **counted):
    """Write our format; a killed run leaves the old file or the new one, never half of one.

    counted: epoch (epochs done), step (optimisation steps done), best_rsum, options (a dict), vocabulary (a list of
    words, or None), reader (see `Checkpoint`), and in LAST what else a run needs to go on: tensors and plain values.
    Raises InputError where the disk is full.
    """
    content = dict(
        format=FORMAT, model=model.state_dict(), objective=objective.state_dict(), optimizer=optimizer.state_dict(),
        **counted,
    )  # fmt: skip
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
    inside = sorted(str(file.parent) for file in folder.glob(f"*/{name}")) if why == "no such file" else []
    if inside:
        more = f" and {len(inside) - 10} more" if len(inside) > 10 else ""
        raise InputError(
            f"{folder}: found no {name}, but run folders: {', '.join(inside[:10])}{more}; expected one run: name "
            "one of these"
        )
    if why:
        found = "no such checkpoint" if why == "no such file" else why
        raise InputError(
            f"{path}: {found}; expected a run folder that holds {name}, or a checkpoint file: train first, or name one "
            f"with {option}"
        )
    return path


def seed_folder(folder, seed):
    """Where the run of one seed of several lies, a string."""
    return str(Path(folder) / f"seed{seed}")


def find_seeds(folder):
    """Checkpoints of the runs `seed*/` in a folder by seed, {seed: path}; none where it is itself a run folder.

    Raises InputError where one of them has no checkpoint.
    """
    if (Path(folder) / BEST).exists():
        return {}
    seeds = sorted(int(path.name[4:]) for path in Path(folder).glob("seed*/") if path.name[4:].isdecimal())
    return {seed: find(seed_folder(folder, seed)) for seed in seeds}


def load(path):
    """Read a checkpoint of either format on the CPU. Returns `Checkpoint`. Raises InputError naming the file."""
    content = _read(path)
    try:
        is_published = content.get("format") != FORMAT
        options = vars(content["opt"]) | ADDED_OPTIONS if is_published else ADDED_OPTIONS | dict(content["options"])
        state = from_published(*content["model"]) if is_published else dict(content["model"])
        for name in MODEL_OPTIONS if is_published else (*MODEL_OPTIONS, "val_split"):
            options[name]  # a KeyError names what is missing
        _check_options(options)
        vocabulary = None
        if options["text_encoder"] != "bert":
            vocabulary = Vocabulary(content["vocabulary"], strip_accents=bool(options["strip_accents"]))
        counted = int(content["epoch"]), float(content["best_rsum"])
        reader = dict(content.get("reader") or {})
        found = Checkpoint(state, options, *counted, is_published, vocabulary, reader, "position" in content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise InputError(
            f"{path}: not a checkpoint of this model (found {_kind(content)}; {type(error).__name__}: "
            f"{first_sentence(error)}); expected a file written by train.py or one in the published format"
        ) from error
    rows = getattr(state.get("image_encoder.projection.weight"), "shape", ())[:1]
    if rows and rows[0] != options["embed_size"]:  # before a model of any size is made
        raise InputError(
            f"{path}: a checkpoint of another size: its image projection has {rows[0]} rows, expected embed_size "
            f"{options['embed_size']} as its options say; fetch it again, or train again"
        )
    return found


def _check_options(options):
    """Raises ValueError or TypeError that names an option which describes no model."""
    for name, kind in OPTION_KINDS.items():
        if not isinstance(options.get(name), (kind, type(None))):
            raise TypeError(f"{name} {options[name]!r}")
    dim, heads = options["embed_size"], options["nhead"]
    if not (isinstance(dim, int) and isinstance(heads, int) and 0 < heads <= dim and dim % heads == 0):
        raise ValueError(f"embed_size {dim!r} and nhead {heads!r}")
    for name in ("dropout", "residual_weight"):
        if not (isinstance(options[name], (int, float)) and 0 <= options[name] <= 1):
            raise ValueError(f"{name} {options[name]!r}")


def load_run(path):
    """Read a file that `save` wrote, to go on from it: a dict of what was given to `save`. Raises InputError."""
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or "position" not in content:
        raise InputError(
            f"{path}: found {_kind(content)}, expected a {LAST} written by train.py: only that holds all that a run "
            "needs to go on; give --resume its path, or start anew with --resume none"
        )
    return content


def restore(path, content, model, objective, optimizer):
    """Put what `load_run` read into the parts of a run. Raises InputError where it does not fit."""
    try:
        for name, part in dict(model=model, objective=objective, optimizer=optimizer).items():
            part.load_state_dict(content[name])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{path}: does not fit this run ({first_sentence(error)}), expected a {LAST} of the same options, data and "
            "BERT: name that one, or start anew with --resume none"
        ) from error


def load_into(model, checkpoint, path):
    """Put a checkpoint's weights into `model`. Raises InputError naming the first entry that does not fit."""
    wanted = model.state_dict()
    for name, value in wanted.items():
        found = checkpoint.model.get(name)
        if not _is_plain(found) or found.shape != value.shape:
            shape = tuple(found.shape) if _is_plain(found) else "nothing" if found is None else "no plain tensor"
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
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise InputError(
                f"{path}: {name} holds NaN or Inf, expected finite weights; take another checkpoint of this run, or "
                "fetch it again"
            )


def _is_plain(value):
    """A tensor of real numbers, all of them there: none that is sparse, quantised or without memory."""
    is_whole = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return is_whole and not value.is_quantized and not value.is_complex()


def _read(path):
    why = why_unreadable(path)
    if why:
        raise InputError(f"{path}: {why}; expected a checkpoint file: name another")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a program of TorchScript is warned about, and refused
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
