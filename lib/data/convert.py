"""Make a data folder (docs/method.md, section 1) of bottom-up-attention TSV files and a split JSON.

    python -m lib.data convert --tsv FILE [FILE ...] --json dataset_flickr30k.json \\
        --out data/mine_precomp

The TSV files (lib/data/tsv.py) are read twice, line by line: first the names and lengths, so that
missing images are reported before anything is written, then the features, which are stored in the
files of lib/data/conversion.py.
"""

# N images, R regions, D region feature size

import argparse
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..system.console import one_line, write_line
from ..system.errors import InputError
from ..system.files import lock, why_unreadable
from ..system.options import COUNT, COUNT_OR_NONE, SWITCH
from . import conversion, karpathy, tsv
from .element_type import DTYPES, find_dtype
from .layout import SPLITS, WORK, describe_missing_dev, refuse_unfinished_switch, unfinished_switch

LOCK = ".conversion.lock"  # in the data folder; locked while it is written to
IMAGES_PER_WRITE = 64

Shape = tuple[int, int]  # R, D
Places = list[tuple[str, int]]  # split, index of an image in it


def add_command(commands: Any) -> None:  # argparse._SubParsersAction
    """Add `convert` to the commands of lib/data/__main__.py."""
    parser = commands.add_parser(
        "convert",
        description=str(__doc__).split("\n\n")[0],
        help="make a folder of your own features",
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


def run(options: argparse.Namespace) -> None:
    """Convert. After Ctrl-C, print how to resume."""
    try:
        convert(
            options.tsv, options.json, options.out, options.regions, options.overwrite,
            options.match, options.captions_per_image, options.dtype,
        )  # fmt: skip
    except KeyboardInterrupt:
        write_line("stopped: run the same command again to resume", sys.stderr)
        raise


def convert(
    tsv_paths: Sequence[Path],
    json_path: Path,
    out: Path,
    num_regions: int = 36,
    overwrite: bool = False,
    match: str | None = None,
    captions_per_image: int | None = None,
    dtype: str | None = None,
) -> None:
    """Make the data folder `out`; the arguments are the options of the command.

    Raises InputError for invalid inputs. If inputs are missing, nothing is written.
    """
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


def _fingerprint(paths: Iterable[Path]) -> dict[str, Any]:
    """Paths, sizes and times of the inputs. Raises InputError if a file is missing."""
    for path in paths:
        why = why_unreadable(path)
        if why:
            such = f", such as {path}/*.tsv" if any(path.glob("*.tsv")) else ""
            raise InputError(
                f"{path}: {why}; expected --tsv and --json to name existing files{such}"
            )
    return {
        "inputs": [
            [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths
        ]
    }


def _refuse_changed(asked: dict[str, Any], tsv_paths: Sequence[Path], json_path: Path) -> None:
    now = _fingerprint([*tsv_paths, json_path])["inputs"]
    changed = [before[0] for before, after in zip(asked["inputs"], now) if before != after]
    if changed:
        raise InputError(
            f"{changed[0]}: changed while it was read, expected a file that does not change; run "
            "the same command again once it is complete"
        )


def _finish_earlier(out: Path) -> dict[str, Any] | None:
    """Finish an earlier conversion whose files only have to be moved into place.

    Returns what that conversion depended on, or None if there was none. Raises InputError if
    another process writes to `out`, before the inputs are read.
    """
    if os.path.lexists(out / LOCK) or unfinished_switch(out):
        with lock(out / LOCK):
            if unfinished_switch(out):
                return _finish_switch(out)
    return None


def _finish_switch(out: Path) -> dict[str, Any]:
    asked = conversion.finish_switch(out)
    write_line(f"{out} is complete; check it: python -m {__package__} check {out}")
    if not out.absolute().name.endswith("_precomp"):
        write_line(
            "training finds it as --dataset NAME only where the folder is called NAME_precomp: "
            f"rename it, such as to {out}_precomp"
        )
    return asked


def _refuse_to_overwrite(out: Path, splits: Iterable[str], overwrite: bool) -> None:
    there = conversion.find_files(out, splits)
    if there and not overwrite:
        raise InputError(
            f"{out}: holds {karpathy.few(there)}, expected none of the files to write; give "
            "another --out, or --overwrite to replace them"
        )


def _find_dtype(lines: list[tuple[tsv.Line, Places]], row_bytes: int, given: str | None) -> str:
    found = find_dtype(tsv.sample_bytes([line for line, _ in lines], row_bytes), row_bytes)
    dtype = given or found
    if dtype is None or row_bytes % np.dtype(dtype).itemsize:
        why = (
            "their type cannot be inferred from their bytes"
            if dtype is None
            else f"--dtype {dtype} does not fit"
        )
        raise InputError(
            f"{lines[0][0].path}: found {row_bytes} bytes of features per box, and {why}; expected "
            "float16, float32 or float64: give the right --dtype"
        )
    if found not in (None, dtype):
        write_line(
            f"features: taken as {dtype}, as --dtype says, although their bytes look like {found}"
        )
    return dtype


def _texts(splits: dict[str, list[karpathy.Image]], field: str) -> dict[str, bytes]:
    """Contents of the text files, by name: captions, ids and, if needed, the map.

    A split needs a map from captions to images if its images have different numbers of captions.
    """
    texts: dict[str, bytes] = {}
    for split, images in splits.items():
        lines: dict[str, list[Any]] = {
            conversion.CAPTIONS: [caption for image in images for caption in image.captions],
            conversion.IDS: [image.id(field) for image in images],
        }
        if len({len(image.captions) for image in images}) > 1:
            lines[conversion.MAP] = [
                number for number, image in enumerate(images) for _ in image.captions
            ]
        texts |= {
            f"{split}_{end}": "".join(f"{line}\n" for line in content).encode()
            for end, content in lines.items()
        }
    return texts


def _begin(
    work: Path,
    asked: dict[str, Any],
    sizes: dict[str, int],
    shape: Shape,
    texts: dict[str, bytes],
) -> None:
    """Resume the conversion in the work folder if it is the same one; otherwise start a new one."""
    why = conversion.why_not_resumable(work, asked, sizes, shape, texts)
    if why is None:
        write_line(f"resuming the conversion in {work}")
        return
    if why:
        write_line(f"the conversion in {work} is restarted: {why}")
    conversion.prepare(work, asked, sizes, shape, texts)


def _fill(
    work: Path,
    lines: list[tuple[tsv.Line, Places]],
    shape: Shape,
    row_bytes: int,
    dtype: str,
) -> None:
    """Decode and store the features of the remaining images."""
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
            block: list[tuple[str, int, np.ndarray]] = []
            for line, places in todo[start : start + IMAGES_PER_WRITE]:
                features = tsv.read_features(line, row_bytes, dtype)[: shape[0]]
                block += [(split, index, features) for split, index in places]
                progress.update()
            conversion.store(work, block)


def _print_matching(matched: karpathy.Matched, index: tsv.Index) -> None:
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


def _summarise(
    given: dict[str, list[karpathy.Image]],
    splits: dict[str, list[karpathy.Image]],
    matched: karpathy.Matched,
    shape: Shape,
    dtype: str,
    index: tsv.Index,
) -> None:
    """Print how the inputs were used. given: the splits with all their captions."""
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


def _name_other_splits(out: Path, splits: Collection[str]) -> None:
    others = [
        split for split in SPLITS if split not in splits and conversion.find_files(out, [split])
    ]
    if others:
        write_line(
            f"left as they are: files of {', '.join(others)} in "
            f"{out}, which the JSON has no image of"
        )
