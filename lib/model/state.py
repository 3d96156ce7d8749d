"""Checks of the options, counters and logs that a checkpoint contains.

A check raises ValueError with what was found and what was expected. The caller adds the file and
the remedy.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from ..data.vocabulary import Vocabulary
from ..system.options import from_saved
from ..system.run_folder import LOG_NAMES
from .options import ALWAYS_SAVED, ModelOptions

OPTION_KINDS = dict(  # checked if they are present
    dataset=str, data_path=str, bert_path=str, val_split=str, test_split=str, glove=str,
    logger_name=str, model_name=str, seed=int, img_dim=int, batch_size=int,
    num_epochs=int,
)  # fmt: skip
# required in LAST
RUN_OPTIONS = ("dataset", "val_split", "seed", "num_epochs", "batch_size", "learning_rate")
LARGEST = 2**20  # size
MOST_STEPS = 2**40
BEST_POSSIBLE = 600.001  # the sum of six recalls in percent, with room for rounding
LARGEST_NUMBER = 2**63 - 1
LONGEST_TEXT = 4096  # characters of an option: the longest path
MAX_DEPTH = 4  # of nested lists
REPORT = {"loss", "terms", "gradient_norm", "is_finite"}


def short_repr(value: object) -> str:
    """A value in an error message: short, and on one line."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (str, int, float, type(None))):
        return f"{value!r:.60}"
    if (
        isinstance(value, (list, tuple))
        and len(value) < 10
        and not any(isinstance(x, (list, tuple)) for x in value)
    ):
        return f"[{', '.join(map(short_repr, value))}]"
    return f"a {type(value).__name__}"


def expect(
    content: Mapping[str, Any],
    name: str,
    kind: type,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """content[name], checked to be of this kind, and from `low` to `high` if they are given, so not
    NaN. An int is also accepted as a float."""
    noun = {int: "a whole number", float: "a number", str: "text", dict: "a dict", list: "a list"}[
        kind
    ]
    if low is not None:
        noun += f" from {low} to {high}"
    if name not in content:
        raise ValueError(f"{name} is missing, expected {noun}")
    value = content[name]
    is_kind = isinstance(value, (int, float) if kind is float else kind) and (
        kind not in (int, float) or not isinstance(value, bool)
    )
    if not is_kind or low is not None and not low <= value <= high:
        raise ValueError(f"{name} {short_repr(value)}, expected {noun}")
    return value


def plain(value: Any, name: str, depth: int = 0) -> Any:
    """A value that JSON can represent: None, bool, number, text, or lists and dicts of these.
    Tuples become lists."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if (
        isinstance(value, int)
        and abs(value) <= LARGEST_NUMBER
        or isinstance(value, float)
        and math.isfinite(value)
    ):
        return value
    if depth < MAX_DEPTH and isinstance(value, (list, tuple)):
        return [plain(item, name, depth + 1) for item in value]
    if depth < MAX_DEPTH and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, name, depth + 1) for key, item in value.items()}
    raise ValueError(
        f"{name} {short_repr(value)}, expected a plain value: a "
        "finite number, text, or a list of these"
    )


def plain_options(options: Any) -> dict[str, Any]:
    """Options as a dict of plain values by name."""
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"options {short_repr(options)}, expected a dict of values by name")
    return {name: plain(value, name) for name, value in options.items()}


def read_vocabulary(content: Mapping[str, Any], options: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a model that reads words."""
    words = expect(content, "vocabulary", list)
    if not all(isinstance(word, str) for word in words):
        raise ValueError("vocabulary has an entry that is not text, expected words")
    return Vocabulary(words, strip_accents=bool(options["strip_accents"]))


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a checkpoint, with defaults for those that are missing in older files. Raises
    ValueError that names an invalid option."""
    for name, kind in OPTION_KINDS.items():
        if options.get(name) is not None:
            limits = () if kind is str else (0, LARGEST_NUMBER) if name == "seed" else (1, LARGEST)
            value = expect(options, name, kind, *limits)
            if kind is str and ("\0" in value or len(value) > LONGEST_TEXT):
                raise ValueError(
                    f"{name} {value!r:.60}, expected at most "
                    f"{LONGEST_TEXT} characters and no NUL character"
                )
    if options.get("longest_distance") is not None:
        expect(options, "longest_distance", float, 0, math.inf)
    found = from_saved(ModelOptions, options, ALWAYS_SAVED)
    if found.embed_size % found.nhead:
        raise ValueError(
            f"embed_size {found.embed_size} and nhead {found.nhead}, expected a multiple of nhead"
        )
    return options | dataclasses.asdict(found)


def read_run_options(content: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a LAST file, after checking that the file is complete."""
    for name in ("model", "objective", "optimizer", "position"):
        expect(content, name, dict)
    options = plain_options(content.get("options"))
    for name in RUN_OPTIONS:
        if options.get(name) is None:
            raise ValueError(f"the option {name} is missing, expected the options of the run")
    options = check_options(options)
    position = content["position"]
    epoch = expect(content, "epoch", int, 0, options["num_epochs"])
    step = expect(content, "step", int, epoch, MOST_STEPS)
    expect(content, "best_rsum", float, -1, BEST_POSSIBLE)
    check_position(position)
    if (
        epoch + position["step_in_epoch"] > step
        or epoch == options["num_epochs"]
        and position["step_in_epoch"]
    ):
        raise ValueError(
            f"step_in_epoch {position['step_in_epoch']} of epoch {epoch} at step {step}, expected "
            f"a place in the run's {options['num_epochs']} epochs"
        )
    if content.get("vocabulary") is not None or options["text_encoder"] == "bigru":
        read_vocabulary(content, options)
    return options


def is_plain_tensor(value: object) -> bool:
    """Whether a value is a dense tensor of real numbers on the CPU."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def check_position(position: Mapping[str, Any]) -> None:
    """Check the position in an epoch that `lib.training.run_state.RunState` saves, except for what
    depends on the data."""
    expect(position, "step_in_epoch", int, 0, MOST_STEPS)
    expect(position, "skipped", int, 0, 2**31 - 1)
    sizes = expect(position, "log_sizes", dict)
    for name in sizes:
        if not isinstance(name, str) or not LOG_NAMES.fullmatch(name):
            raise ValueError(f"log_sizes names {short_repr(name)}, expected the name of a log")
        is_text = name in ("train.txt", "eval.txt")  # created with their first line
        expect(sizes, name, int, int(is_text), LARGEST_NUMBER)
    _check_step_log(expect(position, "step_log", dict))


def _check_step_log(state):
    expect(state, "num_skipped", int, 0, MOST_STEPS)
    expect(state, "waited", float, 0, 1e12)
    expect(state, "seconds", float, 0, 1e12)
    warned = state.get("warned", [])
    if not isinstance(warned, list) or not all(type(percent) is float for percent in warned):
        raise ValueError(f"step_log warned {short_repr(warned)}, expected a list of percentages")
    for report in expect(state, "reports", list):
        if not isinstance(report, dict) or report.keys() - {"connected"} != REPORT:
            raise ValueError(
                f"step_log reports {short_repr(report)}, expected "
                f"{', '.join(sorted(REPORT))} of a step"
            )
        terms = expect(report, "terms", dict)
        if not all(isinstance(name, str) and name.isidentifier() for name in terms):
            raise ValueError(f"step_log terms {short_repr(list(terms))}, expected names of losses")
        scalars = terms | {"loss": report["loss"], "gradient_norm": report["gradient_norm"]}
        # None before the graph is used; missing in older runs
        if report.get("connected") is not None:
            scalars["connected"] = report["connected"]
        for name, value in scalars.items():
            if not is_plain_tensor(value) or value.ndim or not value.is_floating_point():
                raise ValueError(f"step_log {name} {short_repr(value)}, expected a scalar tensor")
        is_finite = report["is_finite"]
        if not is_plain_tensor(is_finite) or is_finite.ndim or is_finite.dtype != torch.bool:
            raise ValueError(
                f"step_log is_finite {short_repr(is_finite)}, expected a scalar tensor of bool"
            )
