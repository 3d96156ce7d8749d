"""Karpathy split JSON: read its images and captions, and match the images with lines of TSV files.

An image may be named by `cocoid`, `filename` or `imgid`. An imgid is a running number, and a TSV
file may number images differently. Therefore, imgid is used only if the user selects it.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.caption_order import CAPTIONS_PER_IMAGE
from ..system.console import one_line
from ..system.errors import InputError, first_sentence
from .tsv import Index, Line, key, stem

FIELDS = ("cocoid", "filename", "imgid")  # that may name an image in the TSV
KINDS: dict[type, str] = {  # of JSON values
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    type(None): "missing",
}
# name in the JSON -> name in a data folder
SPLIT_NAMES = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
COCO_1K = 1000  # COCO: "testall" has all test images, "test" the first 1000


class Image(NamedTuple):
    """An image of the JSON. names: by fields of the JSON; a TSV file may use any of these names."""

    names: dict[str, str]
    captions: list[str]

    def called(self, field: str) -> str:
        """Name in this field of the JSON, or else in the first field that it has."""
        return self.names.get(field) or next(iter(self.names.values()))

    def id(self, field: str) -> str:
        """Id for {split}_ids.txt: the cocoid if there is one, otherwise the name in `field`."""
        return self.called("cocoid" if "cocoid" in self.names else field)


class Matched(NamedTuple):
    """Images of the JSON, matched with lines of TSV files.

    field: the field used for matching; counts: number of images that each field matches; lines: the
    lines in the order of the files, each with the places of its image: (split, index in the split).
    """

    field: str
    counts: dict[str, int]
    lines: list[tuple[Line, list[tuple[str, int]]]]


def read_splits(path: Path) -> dict[str, list[Image]]:
    """Read the images of each split of a Karpathy split JSON, in its order, with all captions.

    Raises InputError if the file is unreadable or an entry is invalid.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({first_sentence(error)}), expected a Karpathy split "
            "such as dataset_flickr30k.json: download it again"
        ) from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f'{path}: found no list "images", expected a Karpathy split such as '
            "dataset_flickr30k.json: give another --json"
        )
    splits: dict[str, list[Image]] = {"train": [], "dev": [], "test": []}
    for number, entry in enumerate(entries):
        flaw = _flaw(entry)
        if flaw:
            raise InputError(
                f"{path}: image {number}: {flaw}; images count from 0: correct this one"
            )
        splits[SPLIT_NAMES[entry["split"]]].append(_image(entry))
    none = [
        image.called("filename")
        for images in splits.values()
        for image in images
        if not image.captions
    ]
    if none:
        raise InputError(
            f"{path}: {len(none)} images without sentences, such as {few(none)}; expected at "
            "least one per image: add some, or remove these images"
        )
    if any("cocoid" in entry for entry in entries):
        splits = {**splits, "test": splits["test"][:COCO_1K], "testall": splits["test"]}
    return {split: images for split, images in splits.items() if images}


def keep_captions(
    splits: dict[str, list[Image]], captions_per_image: int | None = None
) -> dict[str, list[Image]]:
    """Keep the first `captions_per_image` captions of each image; 0 keeps all.

    None keeps five, as published, if every image has at least five (COCO and Flickr30K have up to
    seven), otherwise all.
    """
    if captions_per_image is None:
        fewest = min(len(image.captions) for images in splits.values() for image in images)
        captions_per_image = CAPTIONS_PER_IMAGE if fewest >= CAPTIONS_PER_IMAGE else 0
    stop = captions_per_image or None
    return {
        split: [image._replace(captions=image.captions[:stop]) for image in images]
        for split, images in splits.items()
    }


def _flaw(entry: Any) -> str | None:
    """Describe what is wrong with an entry of the JSON; None if it is valid."""
    if not isinstance(entry, dict):
        return f'{_kind(entry)}, expected {{"split": ..., "sentences": [...], "filename": ...}}'
    split, sentences = entry.get("split"), entry.get("sentences")
    if split not in list(SPLIT_NAMES):
        found = (
            f"split {split!r} is none of"
            if isinstance(split, str)
            else f"split is {_kind(split)}, expected one of"
        )
        return f"{found} {', '.join(SPLIT_NAMES)}"
    if not isinstance(sentences, list):
        return f'sentences is {_kind(sentences)}, expected a list of {{"raw": ...}}'
    for number, sentence in enumerate(sentences):
        if not isinstance(sentence, dict):
            return f'sentences[{number}] is {_kind(sentence)}, expected {{"raw": ...}}'
        if not isinstance(sentence.get("raw"), str):
            return (
                f'"raw" of sentences[{number}] is {_kind(sentence.get("raw"))}, expected a string'
            )
        if _is_unwritable(sentence["raw"]):
            return (
                f'"raw" of sentences[{number}] holds NUL or half a '
                "character (a lone surrogate), expected text"
            )
    return _flaw_of_names(entry)


def _flaw_of_names(entry: dict[str, Any]) -> str | None:
    given = {field: entry[field] for field in FIELDS if entry.get(field) not in (None, "")}
    for field, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return f"{field} is {_kind(value)}, expected a string or a whole number"
        if _is_unwritable(str(value)) or any(
            unicodedata.category(letter) == "Cc" for letter in stem(value)
        ):
            shown = one_line(str(value))
            return f"{field} '{shown}' contains control characters, expected a file name"
    return (
        None
        if given
        else f"found none of {', '.join(FIELDS)}, expected the name that a TSV has for it"
    )


def _is_unwritable(text: str) -> bool:
    return "\0" in text or any(
        0xD800 <= ord(letter) < 0xE000 for letter in text if not letter.isascii()
    )


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "a number")


def _image(entry: dict[str, Any]) -> Image:
    names = {field: stem(entry[field]) for field in FIELDS if entry.get(field) not in (None, "")}
    return Image(names, [" ".join(sentence["raw"].split()) for sentence in entry["sentences"]])


def match(
    splits: dict[str, list[Image]], index: Index, json_path: Path, field: str | None = None
) -> Matched:
    """Find the TSV line of every image of the JSON by one field of its names.

    splits: from `read_splits`; index: from `lib.data.tsv.read_index`; field: one of FIELDS, or None
    for cocoid or filename, whichever matches more images. Raises InputError if an image has no
    line, or if several images share a name.
    """
    places = [
        (image, (split, number)) for split in splits for number, image in enumerate(splits[split])
    ]
    # without repetition: an image may be in test and in testall
    images = list({id(image): image for image, _ in places}.values())
    found = {
        name: [
            index.lines.get(key(image.names[name])) if name in image.names else None
            for image in images
        ]
        for name in FIELDS
        if any(name in image.names for image in images)
    }
    counts = {name: sum(line is not None for line in lines) for name, lines in found.items()}
    field = field or _choose(found, counts, images, json_path)
    absent = [
        image for image, line in zip(images, found.get(field, [None] * len(images))) if line is None
    ]
    if absent:
        _refuse_missing(absent, images, field, index, counts, json_path)
    _refuse_repeated(images, field, index, json_path)
    # in the order of the files
    of_line: dict[Line, list[tuple[str, int]]] = {line: [] for line in index.lines.values()}
    for image, place in places:
        of_line[index.lines[key(image.names[field])]].append(place)
    return Matched(field, counts, [(line, where) for line, where in of_line.items() if where])


def _choose(
    found: dict[str, list[Line | None]],
    counts: dict[str, int],
    images: list[Image],
    json_path: Path,
) -> str:
    """Choose cocoid or filename, whichever matches more images.

    Raises InputError if both match all images, but with different lines.
    """
    names = [name for name in ("cocoid", "filename") if name in found] or ["filename"]
    whole = [name for name in names if counts.get(name) == len(images)]
    if len(whole) > 1:
        differing = next(
            (n for n, (left, right) in enumerate(zip(*map(found.get, whole))) if left != right),
            None,
        )
        if differing is not None:
            lines = " and ".join(
                f"{line.where} by {name}" for name in whole if (line := found[name][differing])
            )
            raise InputError(
                f"{json_path}: cocoid and filename both match all images, but differently: image "
                f"{images[differing].called('filename')} is {lines}; expected the same lines: give "
                "--match cocoid or --match filename"
            )
    return max(names, key=lambda name: counts.get(name, 0))


def _refuse_missing(
    absent: list[Image],
    images: list[Image],
    field: str,
    index: Index,
    counts: dict[str, int],
    json_path: Path,
) -> None:
    used = {key(image.names[field]) for image in images if field in image.names}
    others = [line.name for name, line in index.lines.items() if name not in used]
    if field not in counts:
        remedy = f"the JSON has no {field}, name another field with --match"
    elif counts.get("imgid") == len(images) and field != "imgid":
        remedy = (
            "imgid, a running number, matches all of them: give --match imgid only if the TSV "
            "files number the images as this JSON does; otherwise extract them under their file "
            "names"
        )
    else:
        remedy = "give the other TSV files too, extract these images, or remove them from the JSON"
    raise InputError(
        f"{json_path}: {len(absent)} of {len(images)} images are in no TSV file, such as "
        f"{few([image.called(field) for image in absent])} (by {field}); the TSV files hold "
        f"{len(others)} others{', such as ' + few(others) if others else ''}; matched by "
        f"{describe_counts(counts)}; expected features of every image: {remedy}"
    )


def _refuse_repeated(images: list[Image], field: str, index: Index, json_path: Path) -> None:
    for names in ([image.names[field] for image in images], [image.id(field) for image in images]):
        repeated = [name for name, count in Counter(map(key, names)).items() if count > 1]
        if repeated:
            raise InputError(
                f"{json_path}: {len(repeated)} names stand for several images, such as "
                f"{few(repeated)}; expected a different name for each (folders, endings, "
                "capitals and leading zeros are ignored): remove images that occur twice, or "
                "rename them"
            )
    clash = next(
        (name for image in images if (name := key(image.names[field])) in index.clashes), None
    )
    if clash is not None:
        first, second = index.lines[clash], index.clashes[clash]
        raise InputError(
            f"{second.where}: the names '{second.name}' and '{first.name}' ({first.where}) both "
            f"stand for image {clash}, expected one line for it (folders, endings, capitals and "
            "leading zeros are ignored): remove one of the two lines"
        )


def describe_counts(counts: dict[str, int]) -> str:
    """Format counts, such as "cocoid: 0, filename: 30"."""
    return ", ".join(f"{field}: {count}" for field, count in counts.items())


def few(names: Sequence[str]) -> str:
    """Format the first five names for a message."""
    return ", ".join(one_line(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
