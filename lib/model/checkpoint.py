"""Checkpoints: ours, and the published format read as it is (docs/method.md, section 8).

`lib.system.unpickle` reads every file and executes no code from it. The contents are checked
before anything is changed.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..data import extraction_record
from ..data.vocabulary import Vocabulary
from ..system import unpickle
from ..system.errors import InputError, first_sentence
from ..system.files import atomic_write, why_unreadable
from ..system.run_folder import BEST, LAST, RunFolder, seed_folder
from . import saved_bert, sizes, state, state_dicts
from .options import ALWAYS_SAVED, ModelOptions
from .published import from_published
from .saved_bert import SavedBert
from .state import expect

FORMAT = "hrem-1"
ADDED_OPTIONS = {field.name for field in dataclasses.fields(ModelOptions)} - {*ALWAYS_SAVED}


class Checkpoint(NamedTuple):
    """The contents of a checkpoint of either format that evaluation needs.

    model: state dict; options: by name; epoch: number of epochs trained; vocabulary: of a model
    that reads words, None with BERT; reader: fingerprint of BERT, see
    `lib.data.fingerprint.check_reader`; is_last: a LAST file, whose epoch was not selected by
    validation; bert: configuration and tokeniser of BERT, None in published and in older files;
    extraction: how `extract` made the features (lib/data/extraction_record.py), or None;
    is_average: its weights are an average over steps.
    """

    model: dict[str, torch.Tensor]
    options: dict[str, Any]
    epoch: int
    best_rsum: float
    is_published: bool
    vocabulary: Vocabulary | None = None
    reader: dict[str, str] | None = None
    is_last: bool = False
    bert: SavedBert | None = None
    extraction: dict[str, Any] | None = None
    is_average: bool = False


def model_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a checkpoint that its embeddings depend on."""
    return {field.name: options[field.name] for field in dataclasses.fields(ModelOptions)}


def save(
    path: Path,
    model: nn.Module,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    **counted: Any,
) -> None:
    """Write our format atomically: a killed process leaves the old file or the new one.

    counted: epoch (epochs done), step (optimisation steps done), best_rsum, options (a dict),
    vocabulary (a list of words, or None), reader (see `Checkpoint`), bert (of `saved_bert.keep`, or
    None), extraction (of the data folder, or None), is_average, and in LAST the tensors and plain
    values that resuming needs. Raises InputError if the disk is full.
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
            if isinstance(error.__context__, OSError):  # torch hides the error of the disk
                raise error.__context__ from error
            raise


def find(path: Path | str, name: str = BEST, option: str = "--model_path") -> Path:
    """The checkpoint file at `path`: `path` itself, or the file `name` in it if it is a folder.

    option: the option that gave `path`, for messages. Raises InputError.
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
            f"{folder}: contains several runs (found no {name}, but run folders: "
            f"{', '.join(inside[:10])}{more}; expected one run). Name one of these"
        )
    if why:
        found = "no such checkpoint" if why == "no such file" else why
        raise InputError(
            f"{path}: {found} (expected a run folder that contains {name}, or a checkpoint file). "
            f"Train first, or name one with {option}"
        )
    return path


def find_seeds(folder: Path | str) -> dict[int, Path]:
    """The checkpoints of the runs `seed*/` in a folder, {seed: path}; empty if the folder is itself
    a run folder.

    Raises InputError if one of the runs has no checkpoint.
    """
    if (Path(folder) / BEST).exists():
        return {}
    seeds = sorted(
        int(path.name[4:]) for path in Path(folder).glob("seed*/") if path.name[4:].isdecimal()
    )
    return {seed: find(seed_folder(folder, seed)) for seed in seeds}


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint of either format on the CPU. Raises InputError that names the file."""
    content = unpickle.read(path)
    try:
        is_published = content.get("format") != FORMAT
        if is_published:
            model, given = from_published(*content["model"]), vars(content["opt"])
            # published options of these names have another meaning
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
        record = None if is_published else content.get("extraction")
        found = Checkpoint(
            model, options, epoch, best_rsum, is_published, vocabulary, reader, is_last, kept,
            extraction_record.check_optional(record), content.get("is_average") is True,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise InputError(
            f"{path}: not a checkpoint of this model (found {_kind(content)}; "
            f"{type(error).__name__}: {first_sentence(error)}; expected a file written by train.py "
            "or one in the published format). Name another file, or copy it again"
        ) from error
    sizes.check(path, found.model, found.options, found.bert)
    return found


def load_run(path: Path) -> dict[str, Any]:
    """Read a LAST file to resume from it: the arguments of `save` by name, checked.

    `restore` checks what depends on the parts of the run. Raises InputError.
    """
    content = unpickle.read(path)
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or "position" not in content
    ):
        raise InputError(
            f"{path}: a run cannot be resumed from it (found {_kind(content)}, expected a {LAST} "
            f"written by train.py). Give --resume the path of a {LAST}, or start a new run with "
            "--resume none"
        )
    try:
        options = state.read_run_options(content)
        kept = saved_bert.read(str(path), content.get("bert"))
        extraction = extraction_record.check_optional(content.get("extraction"))
        checked = {"options": options, "bert": kept, "extraction": extraction}
        if (average := content.get("average")) is not None:  # of `WeightAverage.state`
            steps = expect(average, "steps", int, 0, state.MOST_STEPS)
            checked["average"] = dict(model=dict(average["model"]), steps=steps)
        return content | checked
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _refusal(path, error) from error


def check_progress(
    path: Path, content: Mapping[str, Any], steps_per_epoch: int, num_epochs: int
) -> None:
    """Check that the position in a LAST file is within the resumed run. Raises InputError."""
    if content["epoch"] > num_epochs:
        raise InputError(
            f"{path}: the run has trained {content['epoch']} epochs (found --num_epochs "
            f"{num_epochs}, expected at least as many). Give --num_epochs {content['epoch']} for "
            "the table of its best epoch"
        )
    if content["position"]["step_in_epoch"] > steps_per_epoch:
        error = ValueError(
            f"step_in_epoch {content['position']['step_in_epoch']}, expected 0 to "
            f"{steps_per_epoch}, the steps of an epoch"
        )
        raise _refusal(path, error)


def restore(
    path: Path,
    content: Mapping[str, Any],
    model: nn.Module,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    more: Mapping[str, Any] = {},  # noqa: B006  it is only read
) -> None:
    """Load what `load_run` read into the parts of a run; nothing is loaded unless all of it fits.
    Raises InputError. more: state dicts of further models by name, which are only checked."""
    try:
        for name, each in {"model": content["model"], **more}.items():
            state_dicts.check_module(each, model, name)
        state_dicts.check_module(content["objective"], objective, "objective")
        state_dicts.check_optimizer(content["optimizer"], optimizer, content["step"])
    except (ValueError, RuntimeError) as error:
        raise _refusal(path, error) from error
    model.load_state_dict(content["model"])
    objective.load_state_dict(content["objective"])
    optimizer.load_state_dict(content["optimizer"])


def _refusal(path, error):
    return InputError(
        f"{path}: does not fit this run (found {first_sentence(error)}; expected a {LAST} that "
        "train.py wrote with the same options, data and BERT). Name that one, or start a new run "
        "with --resume none"
    )


def check_fits(model: nn.Module, checkpoint: Checkpoint, path: Path | str) -> None:
    """Check that a checkpoint has the entries of `model`. Raises InputError that names the first
    one that does not fit."""
    wanted = model.state_dict()
    for name, value in wanted.items():
        found = checkpoint.model.get(name)
        if wrong := state_dicts.why_unfit(found, value):
            raise InputError(
                f"{path}: checkpoint and model differ: {name} {wrong}. Give the --bert_path and "
                "the data set that it was trained with"
            )
    surplus = sorted(checkpoint.model.keys() - wanted.keys())
    if surplus:
        raise InputError(
            f"{path}: checkpoint and model differ: found {surplus[0]}, which the model does not "
            "have. Give the --bert_path that it was trained with"
        )


def load_into(model: nn.Module, checkpoint: Checkpoint, path: Path | str) -> None:
    """Load a checkpoint's weights into `model`. Raises InputError that names the first entry that
    does not fit."""
    check_fits(model, checkpoint, path)
    model.load_state_dict(checkpoint.model)
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise InputError(
                f"{path}: {name} contains NaN or Inf (expected finite weights). Use another "
                "checkpoint of this run, or copy it again"
            )


def _kind(content):
    if isinstance(content, dict):
        return "a dict with " + (", ".join(map(str, list(content)[:6])) or "nothing")
    return f"a {type(content).__name__}"
