"""State dicts of modules and of AdamW, checked against the parts that are to load them.

A check raises ValueError with what was found and what was expected.
"""

from typing import Any

import torch
from torch import nn

from .state import expect, is_plain_tensor, plain, short_repr

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}


def check_module(found: Any, module: nn.Module, what: str) -> None:
    """Check that a state dict has the names, shapes and types of a module, and finite values.
    what: name of the module in messages."""
    wanted = module.state_dict()
    if not isinstance(found, dict):
        raise ValueError(f"{what} {short_repr(found)}, expected a dict of tensors by name")
    for name in sorted(found.keys() - wanted.keys(), key=str)[:1]:
        raise ValueError(f"{what} has {short_repr(name)}, expected no such entry")
    for name, tensor in wanted.items():
        _check_tensor(found.get(name), tensor, name)


def check_optimizer(found: Any, optimizer: torch.optim.Optimizer, steps_done: int) -> None:
    """Check that a state dict of AdamW fits an optimiser that has taken `steps_done` steps.

    The fused AdamW does not check shapes: it would write beyond a moment that is too small.
    """
    if not isinstance(found, dict):
        raise ValueError(f"optimizer {short_repr(found)}, expected a dict")
    _check_groups(expect(found, "param_groups", list), optimizer.state_dict()["param_groups"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places: set[int] = set()
    moments_of = expect(found, "state", dict)
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
        _check_moments(moments, parameters[number], number, steps_done)
        places |= {value.untyped_storage().data_ptr() for value in moments.values()}
    if len(places) < len(MOMENTS) * len(moments_of):
        raise ValueError(
            "optimizer state shares memory between moments, expected each to have its own"
        )


def _check_moments(moments, like, number, steps_done):
    """Check the moments of parameter `like`, which has this number."""
    if not isinstance(moments, dict) or moments.keys() != MOMENTS:
        raise ValueError(
            f"optimizer state {number} is {short_repr(moments)}, expected "
            f"{', '.join(sorted(MOMENTS))}"
        )
    step = moments["step"]
    _check_tensor(step, torch.zeros(()), f"optimizer state {number}: step")
    if not 0 <= step <= steps_done or step != step.floor():
        raise ValueError(
            f"optimizer state {number}: step {float(step):g}, expected 0 to {steps_done}"
        )
    for name in ("exp_avg", "exp_avg_sq"):
        value, called = moments[name], f"optimizer state {number}: {name}"
        _check_tensor(value, like, called)
        if value.stride() != like.stride():
            raise ValueError(f"{called} has strides {value.stride()}, expected {like.stride()}")
    if moments["exp_avg_sq"].numel() and moments["exp_avg_sq"].min() < 0:
        raise ValueError(f"optimizer state {number}: exp_avg_sq is negative, expected squares")


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


def why_unfit(value: Any, like: torch.Tensor) -> str | None:
    """Why a value is not a tensor of the shape of `like`, such as "is (3,), expected (4,)"; None if
    it is one."""
    is_plain = is_plain_tensor(value)
    if is_plain and value.shape == like.shape:
        return None
    found = tuple(value.shape) if is_plain else "missing" if value is None else "not a plain tensor"
    return f"is {found}, expected {tuple(like.shape)}"


def _check_tensor(value, like, name):
    """Check shape and type against `like`, and that floating-point values are finite."""
    if wrong := why_unfit(value, like):
        raise ValueError(f"{name} {wrong}")
    if value.dtype != like.dtype:
        raise ValueError(f"{name} is of type {value.dtype}, expected {like.dtype}")
    if value.is_floating_point() and not value.isfinite().all():
        raise ValueError(f"{name} contains NaN or Inf, expected finite values")
