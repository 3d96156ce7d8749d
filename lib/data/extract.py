"""Make a data folder of a folder of pictures and a file of captions.

    python -m lib.data extract --images photos/ --captions captions.csv --out data/mine_precomp

The pictures are read twice: first their bytes, so that unreadable pictures and copies are reported
before anything is written, then their features, which are stored in the files of
lib/data/conversion.py.
"""

# N pictures, R regions, D region feature size

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..system.console import one_line, write_line
from ..system.errors import InputError
from ..system.files import why_unreadable
from ..system.options import COUNT, SEED, SWITCH, Number
from . import conversion, extraction_record, extraction_summary, picture_splits, work_folder
from .conversion_summary import print_other_splits
from .extraction_record import DEFAULT_MODEL
from .karpathy import few
from .layout import COUNTS, EXTRACTION, WORK
from .picture_captions import read_captions
from .picture_files import (
    READERS,
    PictureFile,
    PictureIndex,
    file_digest,
    inspect,
    open_picture,
)
from .picture_splits import Matched, split_shares
from .tsv import BAR
from .tsv_image import ImageData
from .work_folder import Shape

if TYPE_CHECKING:
    from .extractor import Extractor

MOST_REGIONS = 4096


def add_command(commands: Any) -> None:  # argparse._SubParsersAction
    """Add `extract` to the commands of lib/data/__main__.py."""
    parser = commands.add_parser(
        "extract",
        description=str(__doc__).split("\n\n")[0],
        help="make a data folder of pictures and captions",
    )
    parser.add_argument("--images", type=Path, required=True, help="the folder of the pictures")
    parser.add_argument(
        "--captions",
        type=Path,
        required=True,
        help="CSV or TSV with a head row, JSON lines, Karpathy JSON, or name.jpg#0<TAB>text",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder to create, such as data/mine_precomp"
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="the network: efficientnet_lite0, or a folder or hub name of transformers",
    )
    parser.add_argument(
        "--regions", type=Number(int, 1, MOST_REGIONS), default=36,
        help="maximum number of regions R per image: the largest square grid within it",
    )  # fmt: skip
    parser.add_argument(
        "--split",
        type=split_shares,
        help="random shares of train/dev/test, such as 80/10/10, if the captions say no splits",
    )
    parser.add_argument("--seed", type=SEED, default=0, help="seed of --split")
    parser.add_argument(
        "--skip_unreadable", type=SWITCH, nargs="?", const=1, default=0,
        help="leave out pictures that cannot be opened",
    )  # fmt: skip
    parser.add_argument(
        "--batch_size", type=COUNT, default=8, help="number of pictures processed at once"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N"
    )
    parser.add_argument(
        "--overwrite", type=SWITCH, nargs="?", const=1, default=0, help="replace the files in --out"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Extract. After Ctrl-C, print how to resume."""
    try:
        extract(options)
    except KeyboardInterrupt:
        write_line("stopped: run the same command again to resume", sys.stderr)
        raise


def extract(options: argparse.Namespace) -> None:
    """Make the data folder that the options describe. Raises InputError for invalid inputs; then
    nothing is written."""
    out, images = options.out, options.images
    finished = conversion.finish_earlier(out)
    asked = _asked(options)
    if finished and {name: finished.get(name) for name in asked} == asked:
        return
    captions = read_captions(options.captions)
    index = PictureIndex(images)
    split_names = picture_splits.choose_split_names(captions, options.split, options.captions)
    conversion.refuse_to_overwrite(out, split_names, options.overwrite)
    matched = picture_splits.match(captions, index, options.captions)
    extractor = _build_extractor(options)  # before the pictures are read, which takes longer
    files = inspect(images, sorted({picture.path for picture in matched}))
    matched = _without_unreadable(images, matched, files, options.skip_unreadable)
    splits = picture_splits.divide(matched, files, options.split, options.seed)
    extraction_summary.print_copies(splits, files)
    named = picture_splits.name_pictures(splits)
    record = extractor.record
    rows, columns = record["grid"]
    with_boxes = extractor.cells is not None
    shape = Shape(rows * columns, record["region_dim"], with_boxes)
    known = asked | {"record": record, "pictures": _digest(splits, files)}
    with conversion.locked(out, named, shape, options.overwrite):
        more = {EXTRACTION: extraction_record.to_bytes(record)}
        conversion.begin(out / WORK, known, named, shape, more)
        _fill(out / WORK, images, splits, files, extractor)
        if _asked(options) != asked:
            raise InputError(
                f"{options.captions}: changed while the features were extracted, expected a file "
                "that does not change; run the same command again"
            )
        extraction_summary.print_summary(named, record)
        print_other_splits(out, splits, "the captions contain")
        counts = [f"{split}_{COUNTS}" for split in splits]  # every image has R regions
        conversion.commit(out, known, splits, unneeded=counts)
        conversion.finish(out)


def _build_extractor(options: argparse.Namespace) -> "Extractor":
    """The extractor of --model. Only now is torch imported, which takes seconds."""
    from ..system import devices
    from . import extractor

    device = devices.choose_device(options.device)
    found = extractor.build_extractor(options.model, options.regions, device)
    found.batch_size = options.batch_size
    return found


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What the features, the captions and the splits depend on, as JSON values. Raises InputError
    if the file of captions is missing."""
    path = options.captions
    if why := why_unreadable(path):
        raise InputError(f"--captions {path}: {why}; expected a file of captions. Name another")
    state = path.stat()
    return {
        "command": "extract",
        "captions": [str(path.resolve()), state.st_size, state.st_mtime_ns],
        "images": str(options.images.resolve()),
        "model": options.model,
        "regions": options.regions,
        "split": list(options.split or ()),
        "seed": options.seed,
        "skip_unreadable": options.skip_unreadable,
    }


def _without_unreadable(
    images: Path, matched: list[Matched], files: Mapping[str, PictureFile], skip: bool
) -> list[Matched]:
    """The pictures that can be opened. Raises InputError if others may not be left out."""
    unreadable = [path for path, file in files.items() if file.flaw]
    if not unreadable:
        return matched
    first = unreadable[0]
    if not skip or len(unreadable) == len(files):
        raise InputError(
            f"{images / first}: cannot be opened (found {files[first].flaw}), expected a picture; "
            f"{len(unreadable)} of {len(files)} pictures cannot be opened: {few(unreadable)}. Copy "
            "them again, or leave them out with --skip_unreadable"
        )
    for path in unreadable:
        write_line(f"left out: {one_line(path)} cannot be opened ({files[path].flaw})")
    return [picture for picture in matched if not files[picture.path].flaw]


def _digest(splits: Mapping[str, Sequence[Matched]], files: Mapping[str, PictureFile]) -> str:
    """Hash which pictures are in each split, and their bytes."""
    content = {
        split: [[picture.path, files[picture.path].digest] for picture in pictures]
        for split, pictures in splits.items()
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _fill(
    work: Path,
    images: Path,
    splits: Mapping[str, Sequence[Matched]],
    files: Mapping[str, PictureFile],
    extractor: "Extractor",
) -> None:
    """Extract and store the features of the remaining pictures, batch by batch."""
    done = work_folder.read_done(work, splits)
    places: dict[str, list[tuple[str, int]]] = {}  # of each picture: its splits and indices
    for split, pictures in splits.items():
        for row, picture in enumerate(pictures):
            places.setdefault(picture.path, []).append((split, row))
    todo = [path for path, own in places.items() if not all(done[split][row] for split, row in own)]
    size, cells = extractor.batch_size, extractor.cells
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(READERS) as readers,
        tqdm(
            total=len(places), initial=len(places) - len(todo), desc="2 of 2: extracting",
            unit="image", **BAR,
        ) as progress,
    ):  # fmt: skip
        warnings.simplefilter("ignore")  # of damaged EXIF data
        for start in range(0, len(todo), size):
            block = todo[start : start + size]
            opened = list(readers.map(lambda path: _open_same(images / path, files[path]), block))
            features = extractor.features(opened)
            work_folder.store(
                work,
                [
                    (split, row, ImageData(own, cells, picture.size))
                    for path, own, picture in zip(block, features, opened)
                    for split, row in places[path]
                ],
                with_boxes=cells is not None,
            )
            progress.update(len(block))


def _open_same(path: Path, file: PictureFile) -> Any:  # PIL.Image.Image
    """Open a picture. Raises InputError if it has changed since `inspect`."""
    if why_unreadable(path) or file_digest(path) != file.digest:
        raise InputError(
            f"{path}: changed while the features were extracted, expected a picture that does not "
            "change; run the same command again"
        )
    return open_picture(path)
