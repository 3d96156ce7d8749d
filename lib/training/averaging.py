"""An average of a model's weights over the steps of training (`--average_from`).

Averages of late weights generalise better than the last ones (Polyak and Juditsky, 1992; Izmailov
et al., UAI 2018), and cost no step.
"""

import copy
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """An exponential moving average of a model's weights and running statistics.

    model: a copy that holds the average; steps: number of steps that are in it. While there are
    fewer than 1 / (1 - decay), it is their mean. A step that was skipped counts with its unchanged
    weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = copy.deepcopy(model).requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the weights of `model` after a step."""
        self.steps += 1
        ours, theirs = self.model.state_dict().values(), model.state_dict().values()
        pairs = [(mean, value) for mean, value in zip(ours, theirs, strict=True)]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        means, values = (list(side) for side in zip(*floats))
        torch._foreach_lerp_(means, values, max(1 - self.decay, 1 / self.steps))
        for mean, value in pairs:  # numbers of batches
            if not mean.is_floating_point():
                mean.copy_(value)

    def state(self) -> dict[str, Any]:
        """What resuming needs, for `restore`."""
        return dict(model=self.model.state_dict(), steps=self.steps)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the `state` of another."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]
