"""The options of a checkpoint: defaults of those that it does not hold, refusal of what no command
line accepts."""

import argparse
import dataclasses

import pytest
import torch

import arguments
from lib.model import checkpoint
from lib.model.options import ALWAYS_SAVED, ModelOptions
from lib.objective.options import ObjectiveOptions
from lib.system.errors import InputError
from lib.system.options import COUNT, FRACTION, add_fields, from_saved, option
from lib.system.run_folder import BEST
from lib.training.run_start import check_resumed

CLASSES = (ModelOptions, ObjectiveOptions)
FIELDS = {field.name: field for each in CLASSES for field in dataclasses.fields(each)}
NO_LIMIT = {
    "decorrelation", "soft_labels",
    "margin", "mask_weight", "reg_loss_weight", "attention_temperature", "lse_temperature",
    "temperature", "vse_weight",
}  # fmt: skip
ADDED = [field.name for field in dataclasses.fields(ModelOptions) if field.name not in ALWAYS_SAVED]


def changed(folder, tmp_path, change):
    """A copy of a run's checkpoint whose options are changed."""
    content = torch.load(folder / BEST, weights_only=True)
    change(content["options"])
    torch.save(content, tmp_path / "file.pth")
    return tmp_path / "file.pth"


@pytest.mark.parametrize("name", ADDED)
def test_a_checkpoint_without_an_option_has_its_default(finished, tmp_path, name):
    path = changed(finished, tmp_path, lambda options: options.pop(name))
    assert checkpoint.load(path).options[name] == FIELDS[name].default


@pytest.mark.parametrize("name", ALWAYS_SAVED)
def test_an_option_that_every_version_has_saved_may_not_be_missing(finished, tmp_path, name):
    path = changed(finished, tmp_path, lambda options: options.pop(name))
    with pytest.raises(InputError, match=f"file.pth.*the option {name} is missing"):
        checkpoint.load(path)


@pytest.mark.parametrize("value", [[], "nothing", -1, None, 10**12], ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_a_value_that_no_command_line_accepts_is_refused(name, value):
    field = FIELDS[name]
    if value == field.default or value == 10**12 and name in NO_LIMIT:
        return
    options = next(each for each in CLASSES if name in each.__dataclass_fields__)
    with pytest.raises(ValueError, match=f"^{name} .*, expected "):
        from_saved(options, {name: value})


def test_the_command_line_has_the_same_defaults():
    parser = arguments.training_parser()
    found = vars(arguments.parse_training(parser, []))
    assert {name: found[name] for name in FIELDS} == {
        name: field.default for name, field in FIELDS.items()
    }


def test_a_new_field_is_an_option_with_a_default_for_older_checkpoints():
    @dataclasses.dataclass(frozen=True)
    class More:
        share: float = option(0.5, FRACTION, "a share")
        kind: str = option("a", ("a", "b"), "a kind")
        is_on: bool = option(False, None, "a switch")
        size: int = option(3, COUNT, "a size")

    parser = argparse.ArgumentParser()
    add_fields(parser, More, "share", "kind", "is_on", "size")
    assert More(**vars(parser.parse_args([]))) == More()
    given = parser.parse_args(["--share", "0.25", "--kind", "b", "--is_on", "--size", "7"])
    assert More(**vars(given)) == from_saved(More, vars(given)) == More(0.25, "b", True, 7)
    assert from_saved(More, {"share": 1, "other": 4}) == More(share=1)
    for name, value, expected in (
        ("share", 1.5, "a number of at least 0 and at most 1"),
        ("kind", "c", "one of a, b"),
        ("is_on", "yes", "one of 0, 1"),
        ("size", 2.5, "a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=f"{name} {value!r}, expected {expected}"):
            from_saved(More, {name: value})


def test_a_run_from_before_an_option_was_started_with_its_default():
    options = dict(distance="l2sq", pooling="maxk+relation")
    with pytest.raises(InputError, match="found --distance l2sq, expected --distance l2"):
        check_resumed("runs/a/last.pth", options, {})
    check_resumed("runs/a/last.pth", options | dict(distance="l2"), {})
