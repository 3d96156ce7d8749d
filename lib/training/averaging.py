"""An average of a model's weights over the steps of training (`--average_from`).

Averages of late weights generalise better than the last ones (Polyak and Juditsky, 1992; Izmailov
et al., UAI 2018), and cost no step.
"""

import copy
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """A moving average of a model's weights and running statistics.

    model: a copy that holds the average; steps: number of steps that are in it, a scalar tensor. It
    is the mean of the steps while there are fewer than 1 / (1 - decay), and exponential from there
    on; with a decay of 0 it stays the mean of all.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = copy.deepcopy(model).requires_grad_(False), decay
        device = next(model.parameters()).device
        self.steps = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, model: nn.Module, is_finite: torch.Tensor) -> None:
        """Add the weights of `model` after a step. is_finite: a scalar tensor; where it is False
        the step was skipped, and the average does not change."""
        self.steps += is_finite
        least = 1 - self.decay if self.decay else 0.0
        weight = self.steps.clamp(min=1).reciprocal().clamp(min=least) * is_finite
        ours, theirs = self.model.state_dict().values(), model.state_dict().values()
        pairs = [(mean, value) for mean, value in zip(ours, theirs, strict=True)]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        means, values = (list(side) for side in zip(*floats))
        torch._foreach_lerp_(means, values, [weight] * len(means))
        for mean, value in pairs:  # numbers of batches
            if not mean.is_floating_point():
                mean.copy_(value)

    def state(self) -> dict[str, Any]:
        """What resuming needs, for `restore`."""
        return dict(model=self.model.state_dict(), steps=int(self.steps))

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the `state` of another."""
        self.model.load_state_dict(state["model"])
        self.steps.fill_(state["steps"])
