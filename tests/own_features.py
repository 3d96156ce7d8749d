"""Small inputs of a conversion, and the folder that it makes of them."""

import base64
import json
import zlib

import damage
import numpy as np

from lib.data import conversion

DIM = 16


def features(name, num_boxes, dim=DIM):
    """(n, D), the same for the same name; never all zero."""
    return np.random.default_rng(int(name)).random((num_boxes, dim), dtype=np.float32) + 0.1


WIDTH, HEIGHT = 640, 480


def boxes_of(name, num_boxes):
    """(n, 4) float32 in pixels, the same for the same name."""
    corners = np.random.default_rng(zlib.crc32(str(name).encode())).random(
        (num_boxes, 2, 2), dtype=np.float32
    )
    return (np.sort(corners, axis=1) * np.float32([WIDTH, HEIGHT])).reshape(-1, 4)


def encoded(array):
    return base64.b64encode(array).decode()


def tsv_line(name, num_boxes, values=None):
    values = features(name, num_boxes) if values is None else values
    fields = [
        name,
        WIDTH,
        HEIGHT,
        num_boxes,
        encoded(boxes_of(name, num_boxes)),
        encoded(values),
    ]
    return "\t".join(map(str, fields)).encode() + b"\n"


def entry(number, split, sentences=5, **more):
    """An image of a Karpathy JSON, as dataset_flickr30k.json has it."""
    texts = [
        {"raw": f"Caption {caption}  of\n image {number} .", "tokens": []}
        for caption in range(sentences)
    ]
    image = {
        "split": split,
        "sentences": texts,
        "filename": f"{1000 + number}.jpg",
        "imgid": number,
    }
    return image | {"sentids": [5 * number + caption for caption in range(sentences)]} | more


NUM_BOXES = [3, 5, 4, 9, 1, 4, 7, 4, 6, 2, 10, 4]
SPLITS = [
    "train",
    "val",
    "train",
    "test",
    "train",
    "train",
    "val",
    "test",
    "train",
    "test",
    "train",
    "train",
]
# which images, in the JSON's order
PLACES = {"train": [0, 2, 4, 5, 8, 10, 11], "dev": [1, 6], "test": [3, 7, 9]}


def write_json(folder, images, **more):
    (folder / "split.json").write_text(json.dumps({"images": images, "dataset": "mine"} | more))


def arguments(folder, *more, tsv=("a.tsv", "b.tsv")):
    files = [folder / name for name in tsv]
    return [
        "convert",
        "--tsv",
        *files,
        "--json",
        folder / "split.json",
        "--out",
        folder / "mine_precomp",
        *more,
    ]


def contents(folder):
    return {
        path: content
        for path, content in damage.contents(folder).items()
        if path.name != conversion.LOCK
    }


def check_converted(folder, num_regions=4):
    out = folder / "mine_precomp"
    ends = ("ims.npy", "num_regions.npy", "caps.txt", "ids.txt", "boxes.npy", "picture_sizes.npy")
    names = {f"{split}_{end}" for split in PLACES for end in ends}
    assert {path.name for path in out.iterdir()} - {conversion.LOCK} == names
    for split, numbers in PLACES.items():
        regions, counts = (
            np.load(out / f"{split}_ims.npy"),
            np.load(out / f"{split}_num_regions.npy"),
        )
        assert regions.shape == (len(numbers), num_regions, DIM) and regions.dtype == np.float32
        assert counts.dtype == np.int32 and counts.tolist() == [
            min(NUM_BOXES[n], num_regions) for n in numbers
        ]
        for row, count, number in zip(regions, counts, numbers):
            expected = features(1000 + number, NUM_BOXES[number])[:num_regions]
            np.testing.assert_array_equal(row[:count], expected)
            assert not row[count:].any()
        _check_boxes(out, split, numbers, num_regions)
        captions = [
            f"Caption {caption} of image {number} ." for number in numbers for caption in range(5)
        ]
        assert (out / f"{split}_caps.txt").read_text() == "".join(f"{text}\n" for text in captions)
        assert (out / f"{split}_ids.txt").read_text() == "".join(
            f"{1000 + number}\n" for number in numbers
        )


def _check_boxes(out, split, numbers, num_regions):
    boxes, sizes = np.load(out / f"{split}_boxes.npy"), np.load(out / f"{split}_picture_sizes.npy")
    assert boxes.dtype == np.float32 and boxes.shape == (len(numbers), num_regions, 4)
    assert sizes.dtype == np.int32 and sizes.tolist() == [[WIDTH, HEIGHT]] * len(numbers)
    for row, number in zip(boxes, numbers):
        expected = boxes_of(1000 + number, NUM_BOXES[number])[:num_regions]
        expected = expected / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-6)
        assert not row[len(expected) :].any()


def write_inputs(folder):
    """Two TSV files, images in an order of their own,
    and a JSON of twelve images of up to ten boxes."""
    lines = [
        tsv_line(1000 + number, NUM_BOXES[number])
        for number in [7, 2, 11, 0, 9, 4, 6, 1, 10, 3, 8, 5]
    ]
    (folder / "a.tsv").write_bytes(b"".join(lines[:5]))
    (folder / "b.tsv").write_bytes(b"".join(lines[5:]))
    write_json(folder, [entry(number, split) for number, split in enumerate(SPLITS)])
    return folder
