"""The region features of the demo data, as a detector would find them in a scene."""

# R regions, D region feature size, T things of a scene

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .demo_scenes import Scene, generator_of
from .demo_settings import (
    BACKGROUNDS,
    BOX_JITTER,
    BOX_STRENGTH,
    DETECTOR_NOISE,
    FEATURES,
    GROUND_REGIONS,
    INSTANCE_NOISE,
    LOOKS,
    MAIN_MISS,
    OTHER_MISS,
    PAIR_REGIONS,
    REGIONS,
    SIDES,
    SPARSITY,
    STRENGTH,
)


class Regions(NamedTuple):
    """What the detector finds.

    features: (R, D) float32; boxes: (R, 4) left, top, right, bottom; owners: (R,) index of the
    thing that a box contains, or -1 for a box around two things and for a random box.
    """

    features: np.ndarray
    boxes: np.ndarray
    owners: np.ndarray


def appearance(seed: int = 0) -> dict[str, np.ndarray]:
    """Draw the features of each value of an attribute and of each background, (D,), by its name.

    "box": (4, D), a linear map from boxes to features.
    """
    generator = generator_of(seed, "appearance")
    vectors: dict[str, np.ndarray] = {}
    for name, values in {**LOOKS, "background": BACKGROUNDS}.items():
        vectors |= {value: STRENGTH[name] * generator.normal(size=FEATURES) for value in values}
    return {**vectors, "box": BOX_STRENGTH * generator.normal(size=(4, FEATURES))}


def regions(
    scene: Scene, vectors: Mapping[str, np.ndarray], generator: np.random.Generator
) -> Regions:
    """Draw what a detector would find in a scene, in the order of decreasing confidence.

    vectors: from `appearance`.
    """
    things = scene.things
    halves = np.array([SIDES[thing.size] / 2 for thing in things])
    middles = np.array([(thing.x, thing.y) for thing in things])
    # (T, 4), like boxes
    outlines = np.hstack([middles - halves[:, None], middles + halves[:, None]])
    is_seen = generator.random(len(things)) >= np.where(
        np.arange(len(things)) < 2, MAIN_MISS, OTHER_MISS
    )
    is_seen[0] |= not is_seen.any()  # at least one thing is found
    boxes, owners = _draw_boxes(outlines, np.flatnonzero(is_seen), generator)

    common = np.minimum(boxes[:, None, 2:], outlines[:, 2:]) - np.maximum(
        boxes[:, None, :2], outlines[:, :2]
    )
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1, keepdims=True)
    # (R, T): fraction of the area of a box that a thing covers
    shares = is_seen * common.clip(min=0).prod(axis=2) / areas
    ground = 1 - shares.sum(axis=1, keepdims=True).clip(max=1)
    # square root: a thing counts for more than its fraction of the area
    weights = np.sqrt(np.hstack([shares, ground]))
    contents = [sum(vectors[getattr(thing, name)] for name in LOOKS) for thing in things]
    contents = np.array([*contents, vectors[scene.background]])  # (T + 1, D)
    contents += INSTANCE_NOISE * generator.normal(size=contents.shape)
    values = weights @ contents + (boxes - 0.5) @ vectors["box"]
    values += DETECTOR_NOISE * generator.normal(size=values.shape)

    confidence = shares.max(axis=1) + 0.2 * generator.normal(size=REGIONS)
    order = np.argsort(-confidence, kind="stable")
    # rounded, because the last bits depend on the BLAS library
    features = np.maximum(values - SPARSITY, 0).round(3)
    return Regions(features[order].astype(np.float32), boxes[order], owners[order])


def _draw_boxes(
    outlines: np.ndarray, seen: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw boxes (R, 4) and their owners (R,).

    outlines: (T, 4) of the things; seen: indices of the detected things.
    """
    first: np.ndarray = np.resize(generator.permutation(seen), REGIONS - GROUND_REGIONS)
    second = first.copy()  # a box of one thing is a box around the thing and itself
    second[:PAIR_REGIONS] = generator.choice(seen, size=PAIR_REGIONS)
    low = np.minimum(outlines[first, :2], outlines[second, :2])
    high = np.maximum(outlines[first, 2:], outlines[second, 2:])
    low = np.vstack([low, generator.uniform(0, 0.7, size=(GROUND_REGIONS, 2))])
    high = np.vstack(
        [high, low[-GROUND_REGIONS:] + generator.uniform(0.1, 0.4, size=(GROUND_REGIONS, 2))]
    )
    jitter = BOX_JITTER * generator.uniform(-1, 1, size=(2, REGIONS, 2)) * (high - low)
    owners = np.append(np.where(first == second, first, -1), np.full(GROUND_REGIONS, -1))
    return np.hstack([low + jitter[0], high + jitter[1]]), owners
