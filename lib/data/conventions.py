"""What is usual for a data set, by its name and its files: the test split,
the longest distance."""

import os
from pathlib import Path
from typing import NamedTuple

NO_SPLIT = "none"  # in place of the name of a test split
# of negatives that are drawn (docs/method.md, section 5)
LONGEST_DISTANCE, COCO_LONGEST_DISTANCE = 1.7, 1.9


class Conventions(NamedTuple):
    """What is usual for a data set: the split that results are reported on, or NO_SPLIT, and where
    distance-weighted sampling stops; note: a line for people where its name and its files do not
    say the same, or None."""

    test_split: str
    longest_distance: float
    note: str | None


def conventions(folder: Path, dataset: str) -> Conventions:
    """The conventions of COCO if the name starts with coco or the folder has `testall`, else those
    of Flickr30K.

    folder: `{dataset}_precomp`.
    """
    has_testall, has_test = has_split(folder, "testall"), has_split(folder, "test")
    is_named = dataset.lower().startswith("coco")  # coco, coco_butd, COCO, ...
    test_split = "testall" if has_testall else "test" if has_test else NO_SPLIT
    longest_distance = COCO_LONGEST_DISTANCE if is_named or has_testall else LONGEST_DISTANCE
    note = None
    if has_testall and not is_named:
        note = (
            f"{folder}: holds testall, as COCO does, though its name does not begin with coco: by "
            "default results are reported on testall, whole and as the mean of five folds, and "
            f"--longest_distance is {longest_distance}; to change this, give train.py "
            f"--test_split test --longest_distance {LONGEST_DISTANCE}, and eval.py --split test"
        )
    elif is_named and has_test and not has_testall:
        note = (
            f"{folder}: holds no testall, which results of COCO are usually of: by default they "
            "are reported on test"
        )
    return Conventions(test_split, longest_distance, note)


def has_split(folder: Path, split: str) -> bool:
    """Whether a data folder has a file of this split."""
    return any(os.path.lexists(Path(folder) / f"{split}_{end}") for end in ("ims.npy", "caps.txt"))
