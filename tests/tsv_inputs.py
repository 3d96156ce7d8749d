"""TSV files as different extractors write them, with a split JSON of the same images."""

import base64
import json

import numpy as np
from test_check import run

from lib.data import tsv_columns

DIM, NUM_BOXES = 64, 6
NAMES = list(range(100, 130))  # of pictures
PICTURES = [98, 99, *NAMES]  # a folder of pictures, two of which are in no split
SPLITS = ["train"] * 20 + ["val"] * 5 + ["test"] * 5
PLACES = {"train": NAMES[:20], "dev": NAMES[20:25], "test": NAMES[25:]}


def features(picture):
    """(n, D) float32, with zeros and without negative values, as of a detector."""
    values = np.random.default_rng(picture).normal(0.3, 0.6, (NUM_BOXES, DIM))
    return np.maximum(values, 0).astype(np.float32)


def encoded(array, dtype=np.float32):
    return base64.b64encode(np.asarray(array, dtype).tobytes()).decode()


def cells(picture, name=str, dtype=np.float32, box_dtype=np.float32):
    boxes = np.random.default_rng(picture).uniform(1, 400, (NUM_BOXES, 4))
    return dict(
        image_id=name(picture), img_id=name(picture), image_w="640", image_h="480", img_w="640",
        img_h="480", num_boxes=str(NUM_BOXES), boxes=encoded(boxes, box_dtype),
        features=encoded(features(picture), dtype),
        objects_id=encoded(np.zeros(NUM_BOXES), np.int64), objects_conf=encoded(np.ones(NUM_BOXES)),
        attrs_id=encoded(np.zeros(NUM_BOXES), np.int64), attrs_conf=encoded(np.ones(NUM_BOXES)),
        note="",
    )  # fmt: skip


def write_tsv(
    folder, columns=tsv_columns.COLUMNS, head=False, pictures=NAMES, change=lambda cell: cell,
    change_head=lambda name: name, **settings,
):  # fmt: skip
    lines = ["\t".join(map(change_head, columns))] if head else []
    for picture in pictures:
        found = cells(picture, **settings)
        lines.append("\t".join(change(found[column]) for column in columns))
    (folder / "a.tsv").write_text("\n".join(lines) + "\n")


def write_json(folder, counts=lambda number: 5, **more):
    images = [
        dict(filename=f"{picture}.jpg", imgid=number, split=split)
        | dict(
            sentences=[dict(raw=f"caption {c} of picture {picture}") for c in range(counts(number))]
        )
        | {field: value(picture) for field, value in more.items()}
        for number, (picture, split) in enumerate(zip(NAMES, SPLITS))
    ]
    (folder / "split.json").write_text(json.dumps(dict(images=images)))


def convert_there(folder, *more):
    command = [
        "convert",
        "--tsv",
        folder / "a.tsv",
        "--json",
        folder / "split.json",
        "--out",
        folder / "mine_precomp",
    ]
    return run(*command, "--regions", NUM_BOXES, *more)


def check_values(folder, of=lambda picture: picture, **tolerance):
    for split, pictures in PLACES.items():
        found = np.load(folder / "mine_precomp" / f"{split}_ims.npy")
        np.testing.assert_allclose(
            found, [features(of(picture)) for picture in pictures], **tolerance
        )
