"""State that is read from disk, checked before anything is changed: options, counters,
logs, tensors, moments.

A check raises ValueError with what was found and what was expected; who calls it knows the file and
the remedy.
"""

import dataclasses
import math

import torch

from ..data.vocabulary import Vocabulary
from ..system.options import from_saved
from ..system.run_folder import LOG_NAMES
from .options import ALWAYS_SAVED, ModelOptions

OPTION_KINDS = dict(  # checked where they are there
    dataset=str, data_path=str, bert_path=str, val_split=str, test_split=str, glove=str,
    logger_name=str, model_name=str, seed=int, img_dim=int, batch_size=int,
    num_epochs=int,
)  # fmt: skip
# that LAST must have
RUN_OPTIONS = ("dataset", "val_split", "seed", "num_epochs", "batch_size", "learning_rate")
LARGEST = 2**20  # of what is a size
MOST_STEPS = 2**40  # no run counts further
BEST_POSSIBLE = 600.001  # the sum of six recalls in percent, with room for rounding
LARGEST_NUMBER = 2**63 - 1
LONGEST_TEXT = 4096  # of an option: the longest path
MAX_DEPTH = 4  # lists in lists
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
REPORT = {"loss", "terms", "gradient_norm", "is_finite"}


def short_repr(value):
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


def expect(content, name, kind, low=None, high=None):
    """content[name], of this kind; a number from `low` to `high`, so never NaN.
    An int does for a float."""
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


def plain(value, name, depth=0):
    """A value that JSON can hold: None, bool, number, text, or lists and dicts of these.
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


def plain_options(options):
    """Options as a dict of plain values by name."""
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"options {short_repr(options)}, expected a dict of values by name")
    return {name: plain(value, name) for name, value in options.items()}


def read_vocabulary(content, options):
    """The `Vocabulary` of a model that reads words, as its options say."""
    words = expect(content, "vocabulary", list)
    if not all(isinstance(word, str) for word in words):
        raise ValueError("vocabulary holds what is no word")
    return Vocabulary(words, strip_accents=bool(options["strip_accents"]))


def check_options(options):
    """Options of a checkpoint, plain values by name, with the defaults of those that its version
    did not have. Raises ValueError that names an option which describes no model."""
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


def read_run_options(content):
    """The options of what a run saved to go on from, plain values,
    once all of it is found in place."""
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


def is_plain_tensor(value):
    """A tensor of real numbers, all of them there: none that is sparse,
    quantised or without memory."""
    is_whole = (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )
    return is_whole and not value.is_quantized and not value.is_complex()


def check_position(position):
    """What `lib.training.run_state.RunState` saves of its place in an epoch,
    but for what depends on the data."""
    expect(position, "step_in_epoch", int, 0, MOST_STEPS)
    expect(position, "skipped", int, 0, 2**31 - 1)
    sizes = expect(position, "log_sizes", dict)
    for name in sizes:
        if not isinstance(name, str) or not LOG_NAMES.fullmatch(name):
            raise ValueError(f"log_sizes names {short_repr(name)}, expected logs of a run")
        is_text = name in ("train.txt", "eval.txt")  # these are made with their first line
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
        if report.get("connected") is not None:  # None before the graph; older runs do not have it
            scalars["connected"] = report["connected"]
        for name, value in scalars.items():
            if not is_plain_tensor(value) or value.ndim or not value.is_floating_point():
                raise ValueError(f"step_log {name} {short_repr(value)}, expected a scalar tensor")
        is_finite = report["is_finite"]
        if not is_plain_tensor(is_finite) or is_finite.ndim or is_finite.dtype != torch.bool:
            raise ValueError(
                f"step_log is_finite {short_repr(is_finite)}, expected a scalar tensor of bool"
            )


def check_module(found, module, what):
    """A state dict against the module that is to take it: the same names, shapes and types,
    finite values."""
    wanted = module.state_dict()
    if not isinstance(found, dict):
        raise ValueError(f"{what} {short_repr(found)}, expected a dict of tensors by name")
    for name in sorted(found.keys() - wanted.keys(), key=str)[:1]:
        raise ValueError(f"{what} holds {short_repr(name)}, expected no such entry")
    for name, tensor in wanted.items():
        _check_tensor(found.get(name), tensor, name)


def check_optimizer(found, optimizer, steps_done):
    """A state dict of AdamW against the optimizer that is to take it.

    Its fused form trusts the shapes of what it has loaded and would write beyond a moment that is
    too small.
    """
    if not isinstance(found, dict):
        raise ValueError(f"optimizer {short_repr(found)}, expected a dict")
    _check_groups(expect(found, "param_groups", list), optimizer.state_dict()["param_groups"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places, moments_of = set(), expect(found, "state", dict)
    number_of_encoders = sum(
        len(group["params"]) for group in optimizer.param_groups if group["name"] != "relations"
    )
    # relations have none before the graph takes part
    for number in range(number_of_encoders if steps_done else 0):
        if number not in moments_of:
            raise ValueError(
                f"optimizer state {number} is missing, expected the moments of step {steps_done}"
            )
    for number, moments in moments_of.items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(
                f"optimizer state of parameter {short_repr(number)}, expected 0 to "
                f"{len(parameters) - 1}"
            )
        if not isinstance(moments, dict) or moments.keys() != MOMENTS:
            raise ValueError(
                f"optimizer state {number} is {short_repr(moments)}, expected "
                f"{', '.join(sorted(MOMENTS))}"
            )
        step, like = moments["step"], parameters[number]
        _check_tensor(step, torch.zeros(()), f"optimizer state {number}: step")
        if not 0 <= step <= steps_done or step != step.floor():
            raise ValueError(
                f"optimizer state {number}: step {float(step):g}, expected 0 to {steps_done}"
            )
        places.add(step.untyped_storage().data_ptr())
        for name in ("exp_avg", "exp_avg_sq"):
            value, called = moments[name], f"optimizer state {number}: {name}"
            _check_tensor(value, like, called)
            if value.stride() != like.stride():
                raise ValueError(f"{called} has strides {value.stride()}, expected {like.stride()}")
            places.add(value.untyped_storage().data_ptr())
        if moments["exp_avg_sq"].numel() and moments["exp_avg_sq"].min() < 0:
            raise ValueError(f"optimizer state {number}: exp_avg_sq is negative, expected squares")
    if len(places) < len(MOMENTS) * len(moments_of):
        raise ValueError(
            "optimizer state shares memory between moments, expected each to have its own"
        )


def _check_groups(groups, wanted):
    if len(groups) != len(wanted) or not all(isinstance(group, dict) for group in groups):
        raise ValueError(
            f"optimizer has {len(groups)} groups of parameters, expected {len(wanted)}"
        )
    for group, own in zip(groups, wanted):
        for name in own.keys() - {"lr"}:
            value = plain(group.get(name), name)
            if value != plain(own[name], name):
                raise ValueError(
                    f"optimizer group {own['name']}: {name} {short_repr(value)}, expected "
                    f"{short_repr(own[name])} as the options say"
                )
        expect(group, "lr", float, 0, own["initial_lr"])


def why_unfit(value, like):
    """Why a value is no tensor of the shape of `like`, such as "is (3,), expected (4,)";
    None where it is one."""
    is_plain = is_plain_tensor(value)
    if is_plain and value.shape == like.shape:
        return None
    found = tuple(value.shape) if is_plain else "missing" if value is None else "no plain tensor"
    return f"is {found}, expected {tuple(like.shape)}"


def _check_tensor(value, like, name):
    """A tensor of the shape and type of `like`; what holds fractions holds finite ones."""
    if wrong := why_unfit(value, like):
        raise ValueError(f"{name} {wrong}")
    if value.dtype != like.dtype:
        raise ValueError(f"{name} is of type {value.dtype}, expected {like.dtype}")
    if value.is_floating_point() and not value.isfinite().all():
        raise ValueError(f"{name} holds NaN or Inf, expected finite values")
