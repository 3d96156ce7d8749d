"""A split in Karpathy's JSON form: its images, their captions,
and which image of the TSV files each one is.

An image may be named by `cocoid`, `filename` or `imgid`. The last is a running number, which a TSV
file may count in another way: it is used only when it is asked for.
"""

import json
import unicodedata
from collections import Counter
from typing import NamedTuple

from ..evaluation.metrics import CAPTIONS_PER_IMAGE
from ..system.console import one_line
from ..system.errors import InputError, first_sentence
from .tsv import key, stem

FIELDS = ("cocoid", "filename", "imgid")  # that may name an image in the TSV
# of JSON
KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    type(None): "missing",
}
# Karpathy's name -> ours
SPLIT_NAMES = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
COCO_1K = 1000  # COCO's test images are testall; the first of them are test


class Image(NamedTuple):
    """An image of the JSON: what it may be called in a TSV, {field: name}, and its captions."""

    names: dict
    captions: list

    def called(self, field):
        """Its name in this field of the JSON, or in the first that it has."""
        return self.names.get(field) or next(iter(self.names.values()))

    def id(self, field):
        """What stands in {split}_ids.txt: COCO's number where it has one,
        or its name in the field that TSVs go by."""
        return self.called("cocoid" if "cocoid" in self.names else field)


class Matched(NamedTuple):
    """The field that names the images, {field: number of images it names}, and [(Line, [(split,
    index), ...])] in the order of the files."""

    field: str
    counts: dict
    lines: list


def read_splits(path):
    """Images of a Karpathy split JSON by split, in its order,
    with all their captions: {split: [Image]}.

    Raises InputError.
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
            "dataset_flickr30k.json"
        )
    splits = {"train": [], "dev": [], "test": []}
    for number, entry in enumerate(entries):
        flaw = _flaw(entry)
        if flaw:
            raise InputError(f"{path}: image {number}: {flaw}; images count from 0: mend this one")
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
            "least one an image: write some, or take these images out"
        )
    if any("cocoid" in entry for entry in entries):
        splits = {**splits, "test": splits["test"][:COCO_1K], "testall": splits["test"]}
    return {split: images for split, images in splits.items() if images}


def keep_captions(splits, captions_per_image=None):
    """The same splits with the first `captions_per_image` captions of each image;
    0: with all of them.

    None: five, as published, where every image has at least five (COCO and Flickr30K have up to
    seven); otherwise all.
    """
    if captions_per_image is None:
        fewest = min(len(image.captions) for images in splits.values() for image in images)
        captions_per_image = CAPTIONS_PER_IMAGE if fewest >= CAPTIONS_PER_IMAGE else 0
    stop = captions_per_image or None
    return {
        split: [image._replace(captions=image.captions[:stop]) for image in images]
        for split, images in splits.items()
    }


def _flaw(entry):
    """What is wrong with an entry of the JSON, in words; None where nothing is."""
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


def _flaw_of_names(entry):
    given = {field: entry[field] for field in FIELDS if entry.get(field) not in (None, "")}
    for field, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return f"{field} is {_kind(value)}, expected a string or a whole number"
        if _is_unwritable(str(value)) or any(
            unicodedata.category(letter) == "Cc" for letter in stem(value)
        ):
            return (
                f"{field} '{one_line(value)}' holds characters that no "
                "line of text can, expected a file's name"
            )
    return (
        None
        if given
        else f"found none of {', '.join(FIELDS)}, expected the name that a TSV has for it"
    )


def _is_unwritable(text):
    return "\0" in text or any(
        0xD800 <= ord(letter) < 0xE000 for letter in text if not letter.isascii()
    )


def _kind(value):
    return KINDS.get(type(value), "a number")


def _image(entry):
    names = {field: stem(entry[field]) for field in FIELDS if entry.get(field) not in (None, "")}
    return Image(names, [" ".join(sentence["raw"].split()) for sentence in entry["sentences"]])


def match(splits, index, json_path, field=None):
    """Find the TSV line of every image of the JSON by one field of its names. Returns a `Matched`.

    splits: of `read_splits`; index: of `lib.data.tsv.read_index`; field: one of FIELDS, or None for
    cocoid or filename, whichever names all. Raises InputError naming the images that no TSV has,
    and names that several images have.
    """
    places = [
        (image, (split, number)) for split in splits for number, image in enumerate(splits[split])
    ]
    # each once: some are in test and in testall
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
    of_line = {line: [] for line in index.lines.values()}  # in the order of the files
    for image, place in places:
        of_line[index.lines[key(image.names[field])]].append(place)
    return Matched(field, counts, [(line, where) for line, where in of_line.items() if where])


def _choose(found, counts, images, json_path):
    """cocoid or filename: the one that names more; refused where both name all images,
    but not the same lines."""
    names = [name for name in ("cocoid", "filename") if name in found] or ["filename"]
    whole = [name for name in names if counts.get(name) == len(images)]
    if len(whole) > 1:
        differing = next(
            (n for n, (left, right) in enumerate(zip(*map(found.get, whole))) if left != right),
            None,
        )
        if differing is not None:
            lines = " and ".join(f"{found[name][differing].where} by {name}" for name in whole)
            raise InputError(
                f"{json_path}: cocoid and filename both name all images, but differently: image "
                f"{images[differing].called('filename')} is {lines}; expected one meaning: say "
                "--match cocoid or --match filename"
            )
    return max(names, key=lambda name: counts.get(name, 0))


def _refuse_missing(absent, images, field, index, counts, json_path):
    used = {key(image.names[field]) for image in images if field in image.names}
    others = [line.name for name, line in index.lines.items() if name not in used]
    if field not in counts:
        remedy = f"the JSON has no {field}, name another field with --match"
    elif counts.get("imgid") == len(images) and field != "imgid":
        remedy = (
            "imgid, a running number, matches all of them: say --match imgid only if the TSV "
            "files count the images as this JSON does; otherwise extract them under their file "
            "names"
        )
    else:
        remedy = "give the other TSV files too, extract these images, or take them out of the JSON"
    raise InputError(
        f"{json_path}: {len(absent)} of {len(images)} images are in no TSV file, such as "
        f"{few([image.called(field) for image in absent])} (by {field}); the TSV files hold "
        f"{len(others)} others{', such as ' + few(others) if others else ''}; matched by "
        f"{describe_counts(counts)}; expected features of every image: {remedy}"
    )


def _refuse_repeated(images, field, index, json_path):
    for found in ([image.names[field] for image in images], [image.id(field) for image in images]):
        repeated = [name for name, count in Counter(map(key, found)).items() if count > 1]
        if repeated:
            raise InputError(
                f"{json_path}: {len(repeated)} names stand for several images, such as "
                f"{few(repeated)}; expected a name of its own for each (folders, endings, "
                "capitals and leading zeros make no difference): take out images that are there "
                "twice, or rename them"
            )
    clash = next(
        (name for image in images if (name := key(image.names[field])) in index.clashes), None
    )
    if clash is not None:
        first, second = index.lines[clash], index.clashes[clash]
        raise InputError(
            f"{second.where}: the names '{second.name}' and '{first.name}' ({first.where}) both "
            f"stand for image {clash}, expected one line for it (folders, endings, capitals and "
            "leading zeros make no difference): take one of the two lines out"
        )


def describe_counts(counts):
    """Such as "cocoid: 0, filename: 30"."""
    return ", ".join(f"{field}: {count}" for field, count in counts.items())


def few(names):
    """The first of these names, to be printed."""
    return ", ".join(one_line(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
