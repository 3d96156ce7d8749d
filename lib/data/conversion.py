"""Files of a conversion, and the switch that moves them into place together.

A conversion writes to a work folder OUT/.conversion (lib/data/work_folder.py). When all files are
complete, OUT/.converted lists the files to move. Until they have moved, no reader opens OUT
(lib/data/layout.py), so files of two conversions are never used together. After a kill at any time,
the same command can be run again.
"""

# N images of a split, R regions, D region feature size

import contextlib
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..system.console import write_line
from ..system.errors import InputError, first_sentence
from ..system.files import find_temporaries, flush_folder, lock, report_write_errors
from . import layout, work_folder
from .conversion_record import read_record, write_record
from .karpathy import few
from .layout import (
    EXTRACTION,
    SWITCH,
    WORK,
    refuse_unfinished_switch,
    split_file_names,
    unfinished_switch,
)
from .work_folder import NAMES, Shape, clear

LOCK = ".conversion.lock"  # in the data folder; locked while it is written to


class Named(NamedTuple):
    """The id and the captions of an image."""

    id: str
    captions: list[str]


Splits = Mapping[str, Sequence[Named]]


@contextlib.contextmanager
def locked(out: Path, splits: Splits, shape: Shape, overwrite: bool) -> Iterator[None]:
    """Create and lock the data folder. Raises InputError if the files cannot be written to it."""
    check_places(out, splits, array_bytes(_sizes(splits), shape))
    out.mkdir(parents=True, exist_ok=True)
    with lock(out / LOCK):
        refuse_unfinished_switch(out)  # another process may have written in the meantime
        refuse_to_overwrite(out, splits, overwrite)
        yield


def begin(
    work: Path,
    asked: dict[str, Any],
    splits: Splits,
    shape: Shape,
    more: Mapping[str, bytes] | None = None,
) -> None:
    """Resume the conversion in the work folder if it is the same one; otherwise start a new one.

    asked: what the conversion depends on; more: contents of further files, by name.
    """
    sizes, texts = _sizes(splits), _texts(splits) | dict(more or {})
    why = work_folder.why_not_resumable(work, asked, sizes, shape, texts)
    if why is None:
        write_line(f"resuming the conversion in {work}")
        return
    if why:
        write_line(f"the conversion in {work} is restarted: {why}")
    work_folder.prepare(work, asked, sizes, shape, texts)


def _sizes(splits: Splits) -> dict[str, int]:
    """The number of images of each split."""
    return {split: len(images) for split, images in splits.items()}


def _texts(splits: Splits) -> dict[str, bytes]:
    """Contents of the text files, by name: captions, ids and, if needed, the map.

    A split needs a map from captions to images if its images have different numbers of captions.
    """
    texts: dict[str, bytes] = {}
    for split, images in splits.items():
        lines: dict[str, list[Any]] = {
            layout.CAPTIONS: [caption for image in images for caption in image.captions],
            layout.IDS: [image.id for image in images],
        }
        if len({len(image.captions) for image in images}) > 1:
            lines[layout.MAP] = [
                number for number, image in enumerate(images) for _ in image.captions
            ]
        texts |= {
            f"{split}_{end}": "".join(f"{line}\n" for line in content).encode()
            for end, content in lines.items()
        }
    return texts


def refuse_to_overwrite(out: Path, splits: Iterable[str], overwrite: bool) -> None:
    """Raise InputError if files to write exist, unless they may be overwritten."""
    there = find_files(out, splits) + [EXTRACTION] * os.path.lexists(out / EXTRACTION)
    if there and not overwrite:
        raise InputError(
            f"{out}: found {few(there)}, expected none of the files to write; give "
            "another --out, or --overwrite to replace them"
        )


def finish_earlier(out: Path) -> dict[str, Any] | None:
    """Finish an earlier conversion, if its files only have to be moved into place.

    Returns what that conversion depended on, or None if there was none. Raises InputError if
    another process writes to `out`, before the inputs are read.
    """
    if os.path.lexists(out / LOCK) or unfinished_switch(out):
        with lock(out / LOCK):
            if unfinished_switch(out):
                return finish(out)
    return None


def finish(out: Path) -> dict[str, Any]:
    """Move the files of a complete conversion into place, and print how to go on.

    Returns what the conversion depends on.
    """
    asked = finish_switch(out)
    write_line(f"{out} is complete; check it: python -m {__package__} check {out}")
    if not out.absolute().name.endswith("_precomp"):
        write_line(
            "training finds it with --dataset NAME only if the folder is called NAME_precomp: "
            f"rename it, for instance to {out}_precomp"
        )
    return asked


def find_files(out: Path, splits: Iterable[str]) -> list[str]:
    """Names of the files of these splits that exist in `out`, including links."""
    return [name for name in split_file_names(splits) if os.path.lexists(out / name)]


def check_places(out: Path, splits: Iterable[str], num_bytes: int) -> None:
    """Raise InputError if the new files cannot be written to `out`. Writes nothing."""
    there = next(
        folder for folder in [out.absolute(), *out.absolute().parents] if os.path.lexists(folder)
    )
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--out {out}: found {there}, expected a writable folder; give another")
    for name in split_file_names(splits):
        if (out / name).is_dir():
            raise InputError(
                f"{out / name}: found a folder, expected a file or nothing; move it away"
            )
    work = out / WORK
    if os.path.lexists(work) and (work.is_symlink() or not work.is_dir()):
        raise InputError(
            f"{work}: found a link or a file, expected a folder of convert; move it away"
        )
    free = shutil.disk_usage(there).free
    if free < num_bytes and not work.exists():
        raise InputError(
            f"--out {out}: found {free / 1e9:.1f} GB of free disk space, expected "
            f"{num_bytes / 1e9:.1f} GB: free some space"
        )


def array_bytes(sizes: dict[str, int], shape: Shape) -> int:
    """Bytes of the region features and the boxes. sizes: {split: N}."""
    return 4 * shape.num_regions * (shape.dim + 4 * shape.with_boxes) * sum(sizes.values())


def commit(
    out: Path, asked: dict[str, Any], splits: Iterable[str], unneeded: Collection[str] = ()
) -> None:
    """Record that the files of the work folder replace those of `splits` in `out`.

    `finish_switch` moves them. unneeded: names of files of the work folder that are not moved.
    """
    flush_folder(out / WORK)
    moving = {
        name: None if name in unneeded else _stamp(out / WORK / name)
        for name in [*split_file_names(splits), EXTRACTION]
    }
    write_record(out / SWITCH, asked=asked, files=moving)


def _stamp(path: Path) -> list[int] | None:
    """[size, time of the last change] of a regular file, which renaming keeps.

    None if there is no such file.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns] if stat.S_ISREG(found.st_mode) else None


def finish_switch(out: Path) -> dict[str, Any]:
    """Move the files of a complete conversion into place, and remove old files of its splits.

    Returns what the conversion depends on. Raises InputError if one of its files is missing, or the
    switch is damaged.
    """
    content = _read_switch(out)
    with report_write_errors(out):
        for name, stamp in content["files"].items():
            if stamp is None:
                (out / name).unlink(missing_ok=True)
            elif _stamp(out / WORK / name) == stamp:
                os.replace(out / WORK / name, out / name)
            elif _stamp(out / name) != stamp:
                raise InputError(
                    f"{out / name}: the file that convert was moving is missing or was changed, "
                    f"expected it here or in {out / WORK}; give another --out, or remove {out} and "
                    "convert again"
                )
        clear(out / WORK)
        for path, name in find_temporaries(out).items():
            if name == SWITCH:  # from a process that was killed in `commit`
                path.unlink()
        flush_folder(out)
        (out / SWITCH).unlink()
    return content["asked"]


def _read_switch(out: Path) -> dict[str, Any]:
    path = out / SWITCH
    try:
        content = read_record(path)
        files = content.get("files")
        if not isinstance(files, dict) or not NAMES.issuperset(files) or "asked" not in content:
            raise ValueError("names of files that convert does not write")
    except ValueError as error:
        raise InputError(
            f"{path}: damaged (found {first_sentence(error)}), expected the record of a complete "
            "conversion; this folder may contain files of two conversions: give another --out, or "
            f"remove {out} and convert again"
        ) from error
    return content
