"""A data folder (docs/method.md, section 1) from bottom-up-attention TSV files and a Karpathy split
JSON.

    python -m lib.data convert --tsv FILE [FILE ...] --json dataset_flickr30k.json \\
        --out data/mine_precomp

The TSV files (lib/data/tsv.py) are read twice, a line at a time: first for names and lengths, so
that whatever is missing is told before anything is written, then for the features, which go into
the files of lib/data/conversion.py.
"""

# N images, R regions, D region feature size

import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..system.console import one_line, write_line
from ..system.errors import InputError
from ..system.files import lock, why_unreadable
from ..system.options import COUNT, COUNT_OR_NONE, SWITCH
from . import conversion, karpathy, tsv
from .element_type import DTYPES, find_dtype
from .layout import SPLITS, WORK, describe_missing_dev, refuse_unfinished_switch, unfinished_switch

LOCK = ".conversion.lock"  # in the folder; held while it is written to
IMAGES_PER_WRITE = 64  # images


def add_command(commands):
    """Add `convert` to the commands of lib/data/__main__.py."""
    parser = commands.add_parser(
        "convert", description=__doc__.split("\n\n")[0], help="make a folder of own features"
    )
    parser.add_argument(
        "--tsv", type=Path, nargs="+", required=True, help="bottom-up-attention features"
    )
    parser.add_argument(
        "--json", type=Path, required=True, help="captions and splits, such as dataset_coco.json"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder to make, such as data/mine_precomp"
    )
    parser.add_argument(
        "--regions", type=COUNT, default=36, help="R: the first R boxes of an image, or zero rows"
    )
    match = "the JSON's field that names the images of the TSV (default: cocoid or filename)"
    parser.add_argument("--match", choices=karpathy.FIELDS, help=match)
    kept = (
        "keep the first K sentences of an image, 0: all (default: 5 where every image has at "
        "least 5, else all)"
    )
    parser.add_argument("--captions_per_image", type=COUNT_OR_NONE, help=kept)
    parser.add_argument(
        "--dtype", choices=DTYPES, help="type of the features (default: as their bytes show)"
    )
    parser.add_argument(
        "--overwrite", type=SWITCH, nargs="?", const=1, default=0, help="replace the files in --out"
    )
    parser.set_defaults(run=run)


def run(options):
    """Convert; after Ctrl-C with a word on how to go on."""
    try:
        convert(
            options.tsv, options.json, options.out, options.regions, options.overwrite,
            options.match, options.captions_per_image, options.dtype,
        )  # fmt: skip
    except KeyboardInterrupt:
        write_line("stopped: run the same command again to go on", sys.stderr)
        raise


def convert(
    tsv_paths,
    json_path,
    out,
    num_regions=36,
    overwrite=False,
    match=None,
    captions_per_image=None,
    dtype=None,
):
    """Make the folder `out`. Raises InputError, before anything is written if inputs lack
    something."""
    finished = _finish_earlier(out)
    asked = _fingerprint([*tsv_paths, json_path]) | {
        "regions": num_regions,
        "match": match,
        "captions_per_image": captions_per_image,
        "dtype": dtype,
    }
    if finished == asked:
        return
    given = karpathy.read_splits(json_path)
    _refuse_to_overwrite(out, given, overwrite)
    index = tsv.read_index(tsv_paths)
    matched = karpathy.match(given, index, json_path, match)
    dtype = _find_dtype(matched.lines, index.row_bytes, dtype)
    _refuse_changed(asked, tsv_paths, json_path)
    splits = karpathy.keep_captions(given, captions_per_image)
    sizes = {split: len(images) for split, images in splits.items()}
    shape = num_regions, index.row_bytes // np.dtype(dtype).itemsize
    conversion.check_places(out, splits, conversion.array_bytes(sizes, shape))
    out.mkdir(parents=True, exist_ok=True)
    with lock(out / LOCK):
        refuse_unfinished_switch(out)  # another process may have written meanwhile
        _refuse_to_overwrite(out, splits, overwrite)
        _begin(out / WORK, asked, sizes, shape, _texts(splits, matched.field))
        _fill(out / WORK, matched.lines, shape, index.row_bytes, dtype)
        _refuse_changed(asked, tsv_paths, json_path)
        _print_matching(matched, index)
        _summarise(given, splits, matched, shape, dtype, index)
        _name_other_splits(out, splits)
        conversion.commit(out, asked, splits)
        _finish_switch(out)


def _fingerprint(paths):
    """What a conversion depends on. Raises InputError where a file is missing."""
    for path in paths:
        why = why_unreadable(path)
        if why:
            such = f", such as {path}/*.tsv" if any(path.glob("*.tsv")) else ""
            raise InputError(
                f"{path}: {why}; expected --tsv and --json to name files that are there{such}"
            )
    return {
        "inputs": [
            [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths
        ]
    }


def _refuse_changed(asked, tsv_paths, json_path):
    now = _fingerprint([*tsv_paths, json_path])["inputs"]
    changed = [before[0] for before, after in zip(asked["inputs"], now) if before != after]
    if changed:
        raise InputError(
            f"{changed[0]}: changed while it was read, expected a file that stays as it is; run "
            "the same command again once it is complete"
        )


def _finish_earlier(out):
    """What a conversion depended on that had only to be moved into place, and is now;
    None where there was none.

    Raises InputError where another process writes to `out`: at once rather than after the reading.
    """
    if os.path.lexists(out / LOCK) or unfinished_switch(out):
        with lock(out / LOCK):
            if unfinished_switch(out):
                return _finish_switch(out)
    return None


def _finish_switch(out):
    asked = conversion.finish_switch(out)
    write_line(f"{out} is complete; check it: python -m {__package__} check {out}")
    if not out.absolute().name.endswith("_precomp"):
        write_line(
            "training finds it as --dataset NAME only where the folder is called NAME_precomp: "
            f"rename it, such as to {out}_precomp"
        )
    return asked


def _refuse_to_overwrite(out, splits, overwrite):
    there = conversion.find_files(out, splits)
    if there and not overwrite:
        raise InputError(
            f"{out}: holds {karpathy.few(there)}, expected none of the files to write; give "
            "another --out, or --overwrite to replace them"
        )


def _find_dtype(lines, row_bytes, given):
    found = find_dtype(tsv.sample_bytes([line for line, _ in lines], row_bytes), row_bytes)
    dtype = given or found
    if dtype is None or row_bytes % np.dtype(dtype).itemsize:
        why = (
            "their bytes do not show of which type they are"
            if dtype is None
            else f"--dtype {dtype} does not fit"
        )
        raise InputError(
            f"{lines[0][0].path}: found {row_bytes} bytes of features a box, and {why}; expected "
            "float16, float32 or float64: say which with --dtype"
        )
    if found not in (None, dtype):
        write_line(
            f"features: taken as {dtype}, as --dtype says, although their bytes look like {found}"
        )
    return dtype


def _texts(splits, field):
    """{name: bytes} of captions, ids, and the map where the images of a split have different
    numbers of captions."""
    texts = {}
    for split, images in splits.items():
        lines = {
            conversion.CAPTIONS: [caption for image in images for caption in image.captions],
            conversion.IDS: [image.id(field) for image in images],
        }
        if len({len(image.captions) for image in images}) > 1:
            lines[conversion.MAP] = [
                number for number, image in enumerate(images) for _ in image.captions
            ]
        texts |= {
            f"{split}_{end}": "".join(f"{line}\n" for line in found).encode()
            for end, found in lines.items()
        }
    return texts


def _begin(work, asked, sizes, shape, texts):
    """Let the work folder be of this conversion: the one that was begun, or a new one."""
    why = conversion.why_not_resumable(work, asked, sizes, shape, texts)
    if why is None:
        write_line(f"going on with the conversion that was begun in {work}")
        return
    if why:
        write_line(f"{work} is begun anew: {why}")
    conversion.prepare(work, asked, sizes, shape, texts)


def _fill(work, lines, shape, row_bytes, dtype):
    """Decode and store what is still to do."""
    done = conversion.read_done(work, {split for _, places in lines for split, _ in places})
    todo = [
        (line, places)
        for line, places in lines
        if not all(done[split][index] for split, index in places)
    ]
    num_done = len(lines) - len(todo)
    with tqdm(
        total=len(lines), initial=num_done, desc="2 of 2: writing", unit="image", **tsv.BAR
    ) as progress:
        for start in range(0, len(todo), IMAGES_PER_WRITE):
            found = []
            for line, places in todo[start : start + IMAGES_PER_WRITE]:
                features = tsv.read_features(line, row_bytes, dtype)[: shape[0]]
                found += [(split, index, features) for split, index in places]
                progress.update()
            conversion.store(work, found)


def _print_matching(matched, index):
    example = one_line(matched.lines[0][0].name)
    write_line(
        f"matched by {matched.field}: {len(matched.lines)} images, such as line '{example}' "
        f"(images of the JSON that each field finds: {karpathy.describe_counts(matched.counts)})"
    )
    names = {line.name for line in index.lines.values()}
    first = next(
        (first for first in (0, 1) if names == {str(first + n) for n in range(len(names))}), None
    )
    if first is not None and matched.field != "imgid":
        write_line(
            f"warning: the names in the TSV files are the numbers from {first} on; if that is not "
            f"how the pictures are named ({matched.field}), every image has another's features: "
            "extract them under their file names"
        )


def _summarise(given, splits, matched, shape, dtype, index):
    """Print what became of the inputs. given: the splits with all their captions."""
    for split, images in splits.items():
        counts = {len(image.captions) for image in images}
        several = f", {min(counts)} to {max(counts)} an image" if len(counts) > 1 else ""
        num_captions = sum(len(image.captions) for image in images)
        dropped = sum(len(image.captions) for image in given[split]) - num_captions
        more = f"; {dropped} more were dropped, --captions_per_image 0 keeps all" if dropped else ""
        write_line(f"{split}: {len(images)} images, {num_captions} captions{several}{more}")
    if without := describe_missing_dev(splits):
        write_line(f"{without} (the JSON has no image of val)")
    boxes = np.array([line.num_boxes for line, _ in matched.lines])
    num_regions, dim = shape
    write_line(
        f"{len(boxes)} images of {boxes.min()} to {boxes.max()} regions x {dim} features "
        f"({dtype}): {(boxes > num_regions).sum()} cut to their first {num_regions} regions, "
        f"{(boxes < num_regions).sum()} padded with zero rows"
    )
    write_line(
        f"not used: {len(index.lines) - len(boxes)} images not in the JSON, {index.num_repeated} "
        "lines that repeat an image"
    )


def _name_other_splits(out, splits):
    others = [
        split for split in SPLITS if split not in splits and conversion.find_files(out, [split])
    ]
    if others:
        write_line(
            f"left as they are: files of {', '.join(others)} in "
            f"{out}, which the JSON has no image of"
        )
