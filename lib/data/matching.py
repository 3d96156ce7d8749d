"""Match the images of a Karpathy split JSON with the lines of TSV files, by a field of the JSON.

The running number `imgid` is used only if the user selects it, because a TSV file may number images
differently.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ..system.errors import InputError
from .karpathy import FIELDS, Image, few
from .tsv import Index, Line, key


class Matched(NamedTuple):
    """Images of the JSON, matched with lines of TSV files.

    field: the field used for matching; counts: number of images that each field matches; lines: the
    lines in the order of the files, each with the places of its image: (split, index in the split).
    """

    field: str
    counts: dict[str, int]
    lines: list[tuple[Line, list[tuple[str, int]]]]


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
        remedy = f"the JSON has no {field}: select another field with --match"
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
