"""A data folder (SPEC section 1) from bottom-up-attention TSV files and a Karpathy split JSON.

    python -m lib.dataset convert --tsv FILE [FILE ...] --json dataset_flickr30k.json --out data/mine_precomp

A TSV line is an image: image_id, image_w, image_h, num_boxes, boxes, features, the last two base64 of little-endian
float32. The files are read twice, a line at a time: first for ids and lengths, so that whatever is missing is told
before anything is written, then for the features, which go into memory-mapped arrays in OUT/.conversion. An image's
entry in num_regions is set once its features are on disk; 0 means: still to do. So a conversion that was ended, in
whatever way, goes on where it was when it is run again. When all is there the files move to their names.
"""

# N images, R regions, D region feature size, n true regions of an image

import base64
import binascii
import json
import math
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from lib.errors import InputError, first_sentence
from lib.files import atomic_write, why_unreadable
from lib.layout import COMPLETE, WORK, without_dev
from lib.metrics import CAPTIONS_PER_IMAGE
from lib.options import COUNT, SWITCH

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
FIELDS = ("cocoid", "filename", "imgid")  # of the JSON, that may name an image in the TSV
KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "missing"}  # of JSON
SPLIT_OF = {"train": "train", "restval": "train", "val": "dev", "test": "test"}  # Karpathy's name -> ours
COCO_1K = 1000  # COCO's test images are testall; the first of them are test
STORED_AT_ONCE = 64  # images
READ_AT_ONCE = 2**19  # bytes: a line of 36 x 2048 features has 400 kB
BAR = dict(leave=False, disable=None, nrows=20)  # nrows: shown, too, in a terminal that tells no size


class Image(NamedTuple):
    """An image of the JSON: what it may be called in a TSV, {field: name}, and its five captions."""

    names: dict
    captions: list

    def called(self, field):
        """Its name in this field of the JSON, or in the first that it has."""
        return self.names.get(field) or next(iter(self.names.values()))

    def id(self, field):
        """What stands in {split}_ids.txt: COCO's number where it has one, or its name in the field that TSVs go by."""
        return self.called("cocoid" if "cocoid" in self.names else field)


class Line(NamedTuple):
    """Where the features of an image lie: a line of a TSV file (from 1), its first byte, and its number of boxes."""

    path: Path
    number: int
    offset: int
    num_boxes: int


def add_command(commands):
    """Add `convert` to the commands of lib/dataset.py."""
    parser = commands.add_parser("convert", description=__doc__.split("\n")[0], help="make a folder of own features")
    parser.add_argument("--tsv", type=Path, nargs="+", required=True, help="bottom-up-attention features")
    parser.add_argument("--json", type=Path, required=True, help="captions and splits, such as dataset_coco.json")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make, such as data/mine_precomp")
    parser.add_argument("--regions", type=COUNT, default=36, help="R: the first R boxes of an image, or zero rows")
    parser.add_argument("--overwrite", type=SWITCH, nargs="?", const=1, default=0, help="replace the files in --out")
    parser.set_defaults(run=run)


def run(options):
    """Convert; after Ctrl-C with a word on how to go on."""
    try:
        convert(options.tsv, options.json, options.out, options.regions, options.overwrite)
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on", file=sys.stderr)
        raise


def convert(tsv_paths, json_path, out, num_regions=36, overwrite=False):
    """Make the folder `out`. Raises InputError, before anything is written if inputs lack something."""
    inputs = _fingerprint([*tsv_paths, json_path], num_regions)
    if _state(out / COMPLETE) == inputs:  # ended while its files moved
        return _deliver(out)
    splits = read_splits(json_path)
    _refuse_to_overwrite(out, splits, overwrite)
    index, dim, num_repeated = read_index(tsv_paths)
    field, lines = match(splits, index, json_path)
    work = out / WORK
    if _state(work) == inputs:
        print(f"going on with the conversion that was begun in {work}")
    else:
        _prepare(work, splits, field, (num_regions, dim), inputs)
    _fill(work, lines, dim)
    _summarise(splits, lines, dim, num_regions)
    print(f"not used: {len(index) - len(lines)} images not in the JSON, {num_repeated} lines that repeat an image")
    shutil.rmtree(out / COMPLETE, ignore_errors=True)
    os.replace(work, out / COMPLETE)
    _deliver(out)


def _summarise(splits, lines, dim, num_regions):
    for split, images in splits.items():
        print(f"{split}: {len(images)} images, {len(images) * CAPTIONS_PER_IMAGE} captions")
    if without := without_dev(splits):
        print(f"{without} (the JSON has no image of val)")
    boxes = np.array([line.num_boxes for line, _ in lines])
    print(
        f"{len(boxes)} images of {boxes.min()} to {boxes.max()} regions x {dim} features: "
        f"{(boxes > num_regions).sum()} cut to their first {num_regions} regions, {(boxes < num_regions).sum()} padded "
        "with zero rows"
    )


def read_splits(path):
    """Images of a Karpathy split JSON by split, in its order: {split: [Image]}. Raises InputError."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({first_sentence(error)}), expected a Karpathy split such as "
            "dataset_flickr30k.json: download it again"
        ) from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f'{path}: found no list "images", expected a Karpathy split such as dataset_flickr30k.json')
    splits = {"train": [], "dev": [], "test": []}
    for number, entry in enumerate(entries):
        flaw = _flaw(entry)
        if flaw:
            raise InputError(f"{path}: image {number}: {flaw}; images count from 0: mend this one")
        splits[SPLIT_OF[entry["split"]]].append(_image(entry))
    few = [image for images in splits.values() for image in images if len(image.captions) < CAPTIONS_PER_IMAGE]
    if few:
        raise InputError(
            f"{path}: {len(few)} images with fewer than {CAPTIONS_PER_IMAGE} sentences, such as "
            f"{_few([image.called('filename') for image in few])}; expected {CAPTIONS_PER_IMAGE} an image: write more, "
            "or take these images out"
        )
    if any("cocoid" in entry for entry in entries):
        splits = {**splits, "test": splits["test"][:COCO_1K], "testall": splits["test"]}
    return {split: images for split, images in splits.items() if images}


def _flaw(entry):
    """What is wrong with an entry of the JSON, in words; None where nothing is."""
    if not isinstance(entry, dict):
        return f'{_kind(entry)}, expected {{"split": ..., "sentences": [...], "filename": ...}}'
    split, sentences = entry.get("split"), entry.get("sentences")
    if split not in list(SPLIT_OF):
        found = f"split {split!r} is none of" if isinstance(split, str) else f"split is {_kind(split)}, expected one of"
        return f"{found} {', '.join(SPLIT_OF)}"
    if not isinstance(sentences, list):
        return f'sentences is {_kind(sentences)}, expected a list of {{"raw": ...}}'
    for number, sentence in enumerate(sentences):
        if not isinstance(sentence, dict):
            return f'sentences[{number}] is {_kind(sentence)}, expected {{"raw": ...}}'
        if not isinstance(sentence.get("raw"), str):
            return f'"raw" of sentences[{number}] is {_kind(sentence.get("raw"))}, expected a string'
    return None if _names(entry) else f"found none of {', '.join(FIELDS)}, expected the name that a TSV has for it"


def _kind(value):
    return KINDS.get(type(value), "a number")


def _names(entry):
    return {field: _plain(entry[field]) for field in FIELDS if entry.get(field) not in (None, "")}


def _image(entry):
    captions = [" ".join(sentence["raw"].split()) for sentence in entry["sentences"][:CAPTIONS_PER_IMAGE]]
    return Image(_names(entry), captions)


def _plain(name):
    """An image's name without folder, ending and leading zeros: "00042", 42 and "42.jpg" are one."""
    text = str(name).strip().rsplit("/", 1)[-1]
    text = text.removesuffix(".jpg").removesuffix(".jpeg").removesuffix(".png")
    return str(int(text)) if text.isascii() and text.isdigit() else text


def read_index(paths):
    """Find every image in the TSV files. Returns {name: Line}, D, and how many lines repeat an image: the first counts.

    Raises InputError naming file and line where columns, numbers or lengths are wrong.
    """
    found, dim, num_repeated = {}, None, 0
    total = sum(path.stat().st_size for path in paths)
    with tqdm(total=total, desc="1 of 2: reading", unit="B", unit_scale=True, **BAR) as progress:
        for path in paths:
            offset = 0
            with open(path, "rb", READ_AT_ONCE) as file:
                for number, line in enumerate(file, 1):
                    fields = line.rstrip(b"\r\n").split(b"\t")
                    if line.strip() and not (number == 1 and fields[0] == b"image_id"):  # some have a head
                        name, num_boxes, dim = _measure(f"{path}: line {number}", line, fields, dim)
                        num_repeated += name in found
                        found.setdefault(name, Line(path, number, offset, num_boxes))
                    offset += len(line)
                    progress.update(len(line))
    if not found:
        raise InputError(f"{paths[0]}: found no image in the TSV files, expected one a line: extract them again")
    return found, dim, num_repeated


def _measure(where, line, fields, dim):
    """Name, number of boxes and feature size that a line tells without being decoded."""
    mend = "extract this image again" if line.endswith(b"\n") else "the file is cut short, copy or download it again"
    if len(fields) != len(COLUMNS):
        raise InputError(
            f"{where} has {len(fields)} columns, expected {len(COLUMNS)} separated by tabs ({', '.join(COLUMNS)}): "
            f"{mend}"
        )
    name, num_boxes, features = fields[0].decode("utf-8", "replace"), fields[3], fields[5]
    if not num_boxes.isdigit() or int(num_boxes) < 1:
        found = num_boxes[:20].decode("utf-8", "replace")
        raise InputError(f"{where}: found num_boxes {found!r}, expected a whole number of at least 1: {mend}")
    num_boxes = int(num_boxes)
    num_bytes = len(features) // 4 * 3 - features[-2:].count(b"=")
    row_bytes = 4 * (dim or max(num_bytes // (4 * num_boxes), 1))
    if num_bytes != num_boxes * row_bytes or len(features) % 4:
        of = f"{dim} features, as in the first line" if dim else "a whole number of features"
        raise InputError(
            f"{where} (image {name}): found {num_bytes} bytes of features, expected {num_boxes} boxes of {of}, 4 bytes "
            f"each: {mend}"
        )
    return _plain(name), num_boxes, row_bytes // 4


def match(splits, lines, json_path):
    """Find the TSV line of every image of the JSON, by the one field of cocoid, filename and imgid that names most.

    splits: of `read_splits`; lines: of `read_index`. Returns this field and [(Line, [(split, index), ...])], in the
    order of the files. Raises InputError naming the images that no TSV has, and names that several images have.
    """
    places = [(image, (split, index)) for split in splits for index, image in enumerate(splits[split])]
    images = list({id(image): image for image, _ in places}.values())  # each once: some are in test and in testall
    missing = {
        field: [image for image in images if image.names.get(field) not in lines]
        for field in FIELDS
        if any(field in image.names for image in images)
    }
    field = min(missing, key=lambda name: len(missing[name]))
    if missing[field]:
        absent = _few([image.called(field) for image in missing[field]])
        raise InputError(
            f"{json_path}: {len(missing[field])} of {len(images)} images are in no TSV file, such as {absent} (by "
            f"{field}); expected features of every image: give the other TSV files too, extract these images, or take "
            "them out of the JSON"
        )
    for found in ([image.names[field] for image in images], [image.id(field) for image in images]):
        repeated = [name for name, count in Counter(found).items() if count > 1]
        if repeated:
            raise InputError(
                f"{json_path}: {len(repeated)} names stand for several images, such as {_few(repeated)}; expected a "
                "name of its own for each (folders, endings and leading zeros make no difference): take out images "
                "that are there twice, or rename them"
            )
    found = {line: [] for line in lines.values()}  # in the order of the files
    for image, place in places:
        found[lines[image.names[field]]].append(place)
    return field, [(line, of_line) for line, of_line in found.items() if of_line]


def _few(names):
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _fingerprint(paths, num_regions):
    """What a conversion depends on. Raises InputError where a file is missing."""
    for path in paths:
        why = why_unreadable(path)
        if why:
            such = f", such as {path}/*.tsv" if any(path.glob("*.tsv")) else ""
            raise InputError(f"{path}: {why}; expected --tsv and --json to name files that are there{such}")
    facts = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return {"inputs": facts, "regions": num_regions}


def _state(folder):
    """The fingerprint of the conversion that a work folder is of; None where there is none, or it is not prepared."""
    path = folder / "inputs.json"
    return json.loads(path.read_bytes()) if path.exists() else None


def _refuse_to_overwrite(out, splits, overwrite):
    there = [path for path in out.glob("*") for split in splits if path.name in _files(split)]
    if there and not overwrite:
        raise InputError(
            f"{out}: holds {_few(sorted(path.name for path in there))}, expected none of the files to write; give "
            "another --out, or --overwrite to replace them"
        )


def _files(split):
    return [f"{split}_ims.npy", f"{split}_num_regions.npy", f"{split}_caps.txt", f"{split}_ids.txt"]


def _prepare(work, splits, field, shape, inputs):
    """A new work folder: captions, ids, arrays of zeros, of `shape` (R, D) an image; the fingerprint comes last."""
    needed = 4 * math.prod(shape) * sum(map(len, splits.values()))
    there = next(folder for folder in work.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--out {work.parent}: found {there}, expected a folder to write in; name another")
    free = shutil.disk_usage(there).free
    if free < needed:  # writing to a memory-mapped array on a full disk ends the process without a word
        raise InputError(f"--out {work.parent}: {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB: make room")
    (work / "inputs.json").unlink(missing_ok=True)  # first: half a folder is of no conversion
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for split, images in splits.items():
        regions, counts, captions, ids = (work / name for name in _files(split))
        np.lib.format.open_memmap(regions, "w+", np.float32, (len(images), *shape))
        np.lib.format.open_memmap(counts, "w+", np.int32, (len(images),))
        captions.write_text("".join(f"{text}\n" for image in images for text in image.captions), "utf-8", newline="\n")
        ids.write_text("".join(f"{image.id(field)}\n" for image in images), "utf-8", newline="\n")
    with atomic_write(work / "inputs.json") as file:
        file.write(json.dumps(inputs).encode())


def _fill(work, lines, dim):
    """Decode and store what is still to do."""
    counts = {
        path.name.removesuffix("_num_regions.npy"): np.load(path, allow_pickle=False)
        for path in work.glob("*_num_regions.npy")
    }
    todo = [(line, places) for line, places in lines if not all(counts[split][index] for split, index in places)]
    num_done = len(lines) - len(todo)
    with tqdm(total=len(lines), initial=num_done, desc="2 of 2: writing", unit="image", **BAR) as progress:
        for start in range(0, len(todo), STORED_AT_ONCE):
            found = []
            for line, places in todo[start : start + STORED_AT_ONCE]:
                features = _decode(line, dim)
                found += [(split, index, features) for split, index in places]
                progress.update()
            _store(work, found)


def _decode(line, dim):
    """(n, D), the features of a TSV line. Raises InputError naming it."""
    with open(line.path, "rb", READ_AT_ONCE) as file:
        file.seek(line.offset)
        field = file.readline().rstrip(b"\r\n").split(b"\t")[5]
    where = f"{line.path}: line {line.number}"
    try:
        features = np.frombuffer(base64.b64decode(field, validate=True), dtype="<f4").reshape(line.num_boxes, dim)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"{where}: bad base64 ({first_sentence(error)}), expected float32 features of {line.num_boxes} boxes: "
            "extract this image again"
        ) from error
    if not np.isfinite(features).all():
        raise InputError(f"{where}: the features hold NaN or Inf, expected finite ones: extract this image again")
    return features


def _store(work, found):
    """Write features to their places, and the counts once the features are on disk. found: [(split, index, (n, D))]."""
    for split in {split for split, _, _ in found}:
        regions = np.load(work / f"{split}_ims.npy", mmap_mode="r+", allow_pickle=False)
        counts = np.load(work / f"{split}_num_regions.npy", mmap_mode="r+", allow_pickle=False)
        own = [(index, features[: regions.shape[1]]) for name, index, features in found if name == split]
        for index, features in own:
            regions[index, : len(features)] = features
        regions.flush()
        for index, features in own:
            counts[index] = len(features)
        counts.flush()


def _deliver(out):
    """Move what is complete to its names."""
    for path in sorted((out / COMPLETE).iterdir()):
        if path.name != "inputs.json":
            os.replace(path, out / path.name)
    shutil.rmtree(out / COMPLETE)
    print(f"{out} is complete; check it: python -m lib.dataset check {out}")
    if not out.absolute().name.endswith("_precomp"):
        print(
            "training finds it as --dataset NAME only where the folder is called NAME_precomp: rename it, such as to "
            f"{out}_precomp"
        )
