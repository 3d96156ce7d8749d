"""The scenes of the demo data: a few coloured things on a background.

Two main things of a dev or test scene are a pair of looks that no training scene contains. Many
scenes are variants of the previous one, which serve as hard negatives.
"""

# T things of a scene

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .demo_settings import (
    BACKGROUNDS,
    CLEARNESS,
    COLOURS,
    FAR,
    FEWEST_THINGS,
    HELD_OUT_SHARE,
    KINDS,
    LOOKS,
    MOST_THINGS,
    NEAR,
    SHORTEST_DISTANCE,
    SIZES_OF_SPLITS,
    VARIANT_SHARE,
)

Choice = TypeVar("Choice")
Look = tuple[str, str]  # colour, kind
Meetings = dict[frozenset[Look], str]  # the split to which each pair of looks belongs


class Thing(NamedTuple):
    """One thing: keys of KINDS, COLOURS, SIZES and MATERIALS, and the position of its centre."""

    kind: str
    colour: str
    size: str
    material: str
    x: float
    y: float


class Scene(NamedTuple):
    """2 to 5 things, the two main ones first, on a background.

    background: key of BACKGROUNDS; change: the only field of a main thing that differs from the
    previous scene ("position": the main things exchanged their positions), or "".
    """

    background: str
    things: tuple[Thing, ...]
    change: str


def generator_of(seed: int, purpose: str) -> np.random.Generator:
    """A separate generator for each purpose, so that a change of one does not affect the others."""
    return np.random.default_rng([seed, *purpose.encode()])


def pick(options: Sequence[Choice], generator: np.random.Generator) -> Choice:
    """Draw one of the options."""
    return options[int(generator.integers(len(options)))]


def scenes(split: str, seed: int = 0, size: int | None = None) -> list[Scene]:
    """The scenes of a split in the order of its images, the first `size` or all."""
    generator, meetings = generator_of(seed, f"{split} scenes"), _meetings(seed)
    found: list[Scene] = []
    while len(found) < (SIZES_OF_SPLITS[split] if size is None else size):
        is_variant = bool(found) and generator.random() < VARIANT_SHARE
        background, spots = pick(list(BACKGROUNDS), generator), _draw_spots(generator)
        scene = None
        # if a scene is not allowed, only its looks are drawn again
        while scene is None or not _is_allowed(scene.things, split, meetings):
            scene = (
                _vary(found[-1], generator)
                if is_variant
                else _furnish(background, spots, generator)
            )
        found.append(scene)
    return found


def relations(first: Thing, second: Thing) -> list[str]:
    """Keys of RELATIONS that clearly hold for the first thing with respect to the second."""
    right, down = first.x - second.x, first.y - second.y
    distance = np.hypot(right, down)
    holds = {
        "left": -right >= CLEARNESS * abs(down),
        "right": right >= CLEARNESS * abs(down),
        "above": -down >= CLEARNESS * abs(right),
        "below": down >= CLEARNESS * abs(right),
        "near": distance <= NEAR,
        "far": distance >= FAR,
    }
    return [name for name, is_true in holds.items() if is_true]


def _meetings(seed: int) -> Meetings:
    """Draw the split to which each unordered pair of looks belongs."""
    looks = [(colour, kind) for colour in COLOURS for kind in KINDS]
    pairs = [
        frozenset((look, other)) for index, look in enumerate(looks) for other in looks[:index]
    ]
    shares = (1 - HELD_OUT_SHARE, HELD_OUT_SHARE / 3, HELD_OUT_SHARE * 2 / 3)
    drawn = generator_of(seed, "meetings").choice(
        ("train", "dev", "test"), size=len(pairs), p=shares
    )
    return dict(zip(pairs, drawn.tolist(), strict=True))


def _is_allowed(things: Sequence[Thing], split: str, meetings: Meetings) -> bool:
    """Whether a scene may be in a split.

    A training scene contains no held-out pair. The main things of another scene are a pair held out
    for its split.
    """
    looks = [(thing.colour, thing.kind) for thing in things]
    if len(set(looks)) < len(looks):  # "a red cup" should be unambiguous
        return False
    looks = looks if split == "train" else looks[:2]
    return all(
        meetings[frozenset((a, b))] == split for index, a in enumerate(looks) for b in looks[:index]
    )


def _draw_spots(generator: np.random.Generator) -> list[list[float]]:
    """Draw positions (T, 2) of 2 to 5 things that do not overlap.

    The direction between the first two is clear.
    """
    count = int(generator.integers(FEWEST_THINGS, MOST_THINGS + 1))
    while True:
        spots = generator.uniform(0.13, 0.87, size=(count, 2)).round(3)
        distances = np.hypot(*(spots[:, None] - spots).T)[np.triu_indices(count, 1)]
        shorter, longer = sorted(abs(spots[0] - spots[1]))
        if distances.min() >= SHORTEST_DISTANCE and longer >= CLEARNESS * shorter:
            return spots.tolist()


def _furnish(
    background: str, spots: Sequence[Sequence[float]], generator: np.random.Generator
) -> Scene:
    """Draw the looks of things at given positions."""
    things = []
    for x, y in spots:
        looks: dict[str, Any] = {
            name: pick(list(values), generator) for name, values in LOOKS.items()
        }
        things.append(Thing(**looks, x=x, y=y))
    return Scene(background, tuple(things), "")


def _vary(scene: Scene, generator: np.random.Generator) -> Scene:
    """Change one attribute of one main thing, or exchange the positions of both main things."""
    things, change = list(scene.things), pick([*LOOKS, "position"], generator)
    if change == "position":
        first, second = things[:2]
        things[:2] = first._replace(x=second.x, y=second.y), second._replace(x=first.x, y=first.y)
    else:
        which = generator.integers(2)
        others = [value for value in LOOKS[change] if value != getattr(things[which], change)]
        changed: dict[str, Any] = {change: pick(others, generator)}
        things[which] = things[which]._replace(**changed)
    return Scene(scene.background, tuple(things), change)
