"""Parameter groups and learning rates of the optimiser (docs/method.md, section 6)."""

from typing import Any

import torch

from graph_lib import Objective

from ..model.network import HREM


def parameter_groups(
    model: HREM,
    objective: Objective,
    learning_rate: float,
    graph_lr_factor: float = 1.0,
    bert_lr_factor: float = 0.1,
) -> list[dict[str, Any]]:
    """AdamW's parameter groups, each with its `name`: all but BERT at the learning rate, BERT and
    the relation modules at their factors of it.

    Empty groups are left out. Other text encoders than BERT are in the first group.
    """
    bert = [
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith("text_encoder.bert.")
    ]
    is_bert = {id(parameter) for parameter in bert}
    encoders = [parameter for parameter in model.parameters() if id(parameter) not in is_bert]
    groups = [
        dict(name="encoders", params=encoders, lr=learning_rate),
        dict(name="bert", params=bert, lr=learning_rate * bert_lr_factor),
        dict(
            name="relations",
            params=list(objective.parameters()),
            lr=learning_rate * graph_lr_factor,
        ),
    ]
    return [group for group in groups if group["params"]]


def build(
    model: HREM,
    objective: Objective,
    learning_rate: float,
    graph_lr_factor: float = 1.0,
    bert_lr_factor: float = 0.1,
    weight_decay: float = 1e-4,
) -> torch.optim.AdamW:
    """AdamW over the model and the objective. The fused form can skip a step without
    synchronising."""
    groups = parameter_groups(model, objective, learning_rate, graph_lr_factor, bert_lr_factor)
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of every group to `factor` times its own."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the first group in the last step: of the encoders."""
    return optimizer.param_groups[0]["lr"]
