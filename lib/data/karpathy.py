"""Read the images and captions of a Karpathy split JSON."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.caption_order import CAPTIONS_PER_IMAGE
from ..system.console import one_line
from ..system.errors import InputError, first_sentence
from .tsv import stem

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
            "dataset_flickr30k.json: give another file"
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
                f'"raw" of sentences[{number}] contains NUL or half a '
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


def few(names: Sequence[str]) -> str:
    """Format the first five names for a message."""
    return ", ".join(one_line(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
