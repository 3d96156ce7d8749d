"""Conventions of a data set: the split that results are reported on, and the maximum distance of
sampled negatives. They follow from its name and its files."""

import os
from pathlib import Path
from typing import NamedTuple

NO_SPLIT = "none"  # in place of the name of a test split
# of sampled negatives (docs/method.md, section 5)
LONGEST_DISTANCE, COCO_LONGEST_DISTANCE = 1.7, 1.9


class Conventions(NamedTuple):
    """Conventions of a data set.

    test_split: the split that results are reported on, or NO_SPLIT; longest_distance: where
    distance-weighted sampling stops; note: a line to print if the name and the files of the data
    set disagree, or None.
    """

    test_split: str
    longest_distance: float
    note: str | None


def conventions(folder: Path | str, dataset: str) -> Conventions:
    """The `Conventions` of a data set.

    They are those of COCO if the name starts with coco or the folder contains `testall`, otherwise
    those of Flickr30K. folder: `{dataset}_precomp`.
    """
    has_testall, has_test = has_split(folder, "testall"), has_split(folder, "test")
    is_named = dataset.lower().startswith("coco")  # coco, coco_butd, COCO, ...
    test_split = "testall" if has_testall else "test" if has_test else NO_SPLIT
    longest_distance = COCO_LONGEST_DISTANCE if is_named or has_testall else LONGEST_DISTANCE
    note = None
    if has_testall and not is_named:
        note = (
            f"{folder}: contains testall, like COCO, although its name does not begin with coco: "
            "by default, results are reported on testall, as a whole and as the mean of five "
            f"folds, and --longest_distance is {longest_distance}; to change this, give train.py "
            f"--test_split test --longest_distance {LONGEST_DISTANCE}, and eval.py --split test"
        )
    elif is_named and has_test and not has_testall:
        note = (
            f"{folder}: contains no testall, the split on which results of COCO are usually "
            "reported: by default, they are reported on test"
        )
    return Conventions(test_split, longest_distance, note)


def has_split(folder: Path | str, split: str) -> bool:
    """Whether a data folder contains a file of this split."""
    return any(os.path.lexists(Path(folder) / f"{split}_{end}") for end in ("ims.npy", "caps.txt"))
