"""The schedule of a run: epochs, learning rates by step, and their options
(docs/method.md, section 6).

Parsing imports this module, so it must not import torch.
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

from ..system.options import (
    COUNT_OR_NONE,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY_BELOW_ONE,
    Number,
)

SCHEDULES = ("step", "cosine")
MOST_EPOCHS = 10**6
BATCH_SIZE = Number(int, 2, 2**16)  # one pair has no negative and no batch statistics


class Schedule(NamedTuple):
    """The factor on the learning rates of each step (docs/method.md, section 6).

    name: "step": multiplied by `decay_rate` once for each epoch of `milestones` that is reached;
    "cosine": half a cosine from 1 to 0 at step `num_steps`. Either rises linearly in the first
    `warmup` steps.
    """

    name: str
    milestones: Sequence[int]
    decay_rate: float
    warmup: int
    num_steps: int

    def factor(self, epoch: int, step: int) -> float:
        """The factor of a step. epoch, step: both counted from 0."""
        rise = (step + 1) / self.warmup if step < self.warmup else 1.0
        if self.name == "cosine":
            left = max(self.num_steps - self.warmup, 1)
            done = min(max(step - self.warmup, 0) / left, 1.0)
            return rise * (1 + math.cos(math.pi * done)) / 2
        return rise * self.decay_rate ** sum(epoch >= each for each in self.milestones)


def add_schedule_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the training schedule to an argparse parser."""
    group = parser.add_argument_group("training schedule (docs/method.md, section 6)")
    group.add_argument(
        "--num_epochs", type=Number(int, 1, MOST_EPOCHS), default=30, help="number of epochs"
    )
    group.add_argument(
        "--batch_size",
        type=BATCH_SIZE,
        default=128,
        help="number of image-caption pairs in a batch, B",
    )
    group.add_argument(
        "--learning_rate",
        type=POSITIVE,
        default=5e-4,
        help="learning rate of AdamW",
    )
    group.add_argument(
        "--bert_lr_factor",
        type=NOT_NEGATIVE,
        default=0.1,
        help="factor on the learning rate of BERT",
    )
    group.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="step",
        help="step: the learning rate decays at the epochs of --lr_schedules; cosine: it falls at "
        "every step, along half a cosine, to 0 at the end",
    )
    group.add_argument(
        "--lr_warmup",
        type=COUNT_OR_NONE,
        default=0,
        help="number of first steps in which the learning rate rises linearly",
    )
    group.add_argument(
        "--lr_schedules",
        type=COUNT_OR_NONE,
        nargs="*",
        default=[15, 25],
        help="epochs after which the learning rate is multiplied by --decay_rate",
    )
    group.add_argument(
        "--decay_rate", type=FRACTION, default=0.1, help="factor of each learning-rate decay"
    )
    group.add_argument(
        "--weight_decay", type=NOT_NEGATIVE, default=1e-4, help="weight decay of AdamW"
    )
    group.add_argument(
        "--grad_clip", type=POSITIVE, default=2.0, help="maximum norm of the gradient"
    )
    group.add_argument(
        "--average_from",
        type=COUNT_OR_NONE,
        metavar="EPOCH",
        help="average the weights over the steps from this epoch on, counted from 0, and keep the "
        "average where it is better on the validation split (default: no average)",
    )
    group.add_argument(
        "--average_decay",
        type=PROBABILITY_BELOW_ONE,
        default=0.99,
        help="decay of the average per step: about 1 / (1 - decay) steps count; 0: the mean of all "
        "steps from --average_from on",
    )
