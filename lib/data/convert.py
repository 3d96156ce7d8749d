"""Make a data folder (docs/method.md, section 1) of bottom-up-attention TSV files and a split JSON.

    python -m lib.data convert --tsv FILE [FILE ...] --json dataset_flickr30k.json \\
        --out data/mine_precomp

The TSV files (lib/data/tsv.py) are read twice, line by line: first the names and lengths, so that
missing images are reported before anything is written, then the features, which are stored in the
files of lib/data/conversion.py.
"""

# N images, R regions, D region feature size

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..system.console import write_line
from ..system.errors import InputError
from ..system.files import why_unreadable
from ..system.options import COUNT, COUNT_OR_NONE, SWITCH
from . import (
    conversion,
    conversion_summary,
    karpathy,
    matching,
    tsv,
    tsv_image,
    work_folder,
)
from .element_type import DTYPES, find_dtype
from .layout import WORK
from .work_folder import Shape

IMAGES_PER_WRITE = 64

Places = list[tuple[str, int]]  # split, index of an image in it


def add_command(commands: Any) -> None:  # argparse._SubParsersAction
    """Add `convert` to the commands of lib/data/__main__.py."""
    parser = commands.add_parser(
        "convert",
        description=str(__doc__).split("\n\n")[0],
        help="make a data folder of your own features",
    )
    parser.add_argument(
        "--tsv", type=Path, nargs="+", required=True, help="bottom-up-attention features"
    )
    parser.add_argument(
        "--json", type=Path, required=True, help="captions and splits, such as dataset_coco.json"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder to create, such as data/mine_precomp"
    )
    parser.add_argument(
        "--regions",
        type=COUNT,
        default=36,
        help="number of regions R per image: the first R boxes, padded with zeros",
    )
    match = "the JSON's field that names the images of the TSV (default: cocoid or filename)"
    parser.add_argument("--match", choices=karpathy.FIELDS, help=match)
    kept = (
        "keep the first K sentences of each image, or all if K is 0 (default: 5 if every image "
        "has at least 5, otherwise all)"
    )
    parser.add_argument("--captions_per_image", type=COUNT_OR_NONE, help=kept)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="type of the features in the TSV files (default: inferred from their bytes)",
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
    finished = conversion.finish_earlier(out)
    asked = _fingerprint([*tsv_paths, json_path]) | {
        "regions": num_regions,
        "match": match,
        "captions_per_image": captions_per_image,
        "dtype": dtype,
    }
    if finished == asked:
        return
    given = karpathy.read_splits(json_path)
    conversion.refuse_to_overwrite(out, given, overwrite)
    index = tsv.read_index(tsv_paths)
    matched = matching.match(given, index, json_path, match)
    dtype = _find_dtype(matched.lines, index.row_bytes, dtype)
    _refuse_changed(asked, tsv_paths, json_path)
    splits = karpathy.keep_captions(given, captions_per_image)
    with_boxes = all(line.has_boxes for line, _ in matched.lines)
    shape = Shape(num_regions, index.row_bytes // np.dtype(dtype).itemsize, with_boxes)
    named = {
        split: [conversion.Named(image.id(matched.field), image.captions) for image in images]
        for split, images in splits.items()
    }
    with conversion.locked(out, named, shape, overwrite):
        conversion.begin(out / WORK, asked, named, shape)
        _fill(out / WORK, matched.lines, shape, index.row_bytes, dtype)
        _refuse_changed(asked, tsv_paths, json_path)
        conversion_summary.print_matching(matched, index)
        conversion_summary.print_summary(given, splits, matched, shape, dtype, index)
        conversion_summary.print_boxes(out / WORK, splits, matched, shape)
        conversion_summary.print_other_splits(out, splits)
        conversion.commit(out, asked, splits)
        conversion.finish(out)


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
            "the same command again when the file is complete"
        )


def _find_dtype(lines: list[tuple[tsv.Line, Places]], row_bytes: int, given: str | None) -> str:
    found = find_dtype(tsv_image.sample_bytes([line for line, _ in lines], row_bytes), row_bytes)
    dtype = given or found
    if dtype is None or row_bytes % np.dtype(dtype).itemsize:
        why = (
            "their type cannot be inferred from their bytes"
            if dtype is None
            else f"--dtype {dtype} does not fit this size"
        )
        raise InputError(
            f"{lines[0][0].path}: found {row_bytes} bytes of features per box, and {why}; expected "
            "float16, float32 or float64: give the right --dtype"
        )
    if found not in (None, dtype):
        write_line(
            f"warning: features are read as {dtype}, because of --dtype, although their bytes look "
            f"like {found}"
        )
    return dtype


def _fill(
    work: Path,
    lines: list[tuple[tsv.Line, Places]],
    shape: Shape,
    row_bytes: int,
    dtype: str,
) -> None:
    """Decode and store the features of the remaining images."""
    done = work_folder.read_done(work, {split for _, places in lines for split, _ in places})
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
            block: list[tuple[str, int, tsv_image.ImageData]] = []
            for line, places in todo[start : start + IMAGES_PER_WRITE]:
                image = tsv_image.read_image(line, row_bytes, dtype).first(shape.num_regions)
                block += [(split, index, image) for split, index in places]
                progress.update()
            work_folder.store(work, block, shape.with_boxes)
