"""Picture files: find them in a folder, match them with names, open them, find copies.

Pillow is imported when the first picture is opened, because it is an optional package.
"""

import hashlib
import os
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from ..system.console import one_line
from ..system.errors import InputError, first_sentence
from ..system.files import why_unreadable
from .karpathy import few
from .tsv import BAR, key

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
INSTALL = "pip install -r requirements-extract.txt"
DAMAGED = (  # what Pillow raises for damaged files, besides DecompressionBombError
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError,
    struct.error,
)  # fmt: skip
DECODED_AT_ONCE = 64
READERS = min(8, os.cpu_count() or 1)  # threads; Pillow decodes without holding Python's lock


class PictureFile(NamedTuple):
    """What was found in a file. digest: SHA-256 of its bytes; flaw: why it is not a picture that
    can be opened, or None."""

    digest: str
    flaw: str | None


class PictureIndex:
    """The pictures of a folder and its subfolders, by path and by name.

    A name may have another ending, other capitals or leading zeros (`lib.data.tsv.key`).
    """

    def __init__(self, folder: Path) -> None:
        """Raises InputError if the folder does not exist or has no picture."""
        if not folder.is_dir():
            found = "a file" if folder.exists() else "no such folder"
            raise InputError(
                f"--images {folder}: found {found}, expected a folder of pictures. Name another"
            )
        self.folder = folder
        self.paths = sorted(
            Path(where, name).relative_to(folder).as_posix()
            for where, _, names in os.walk(folder, followlinks=True)
            for name in names
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        )
        if not self.paths:
            raise InputError(
                f"--images {folder}: found no picture, expected files such as 1.jpg "
                f"({', '.join(ENDINGS)}). Name another folder"
            )
        self._known = set(self.paths)
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            self._by_key[key(path)].append(path)

    def find(self, name: str) -> str | None:
        """The path, relative to the folder, of the picture of this name; None if there is none.

        Raises InputError if several pictures have this name.
        """
        if name in self._known:
            return name
        found = self._by_key.get(key(name), [])
        exact = [path for path in found if Path(path).name == Path(name).name]
        found = exact or found
        if len(found) > 1:
            raise InputError(
                f"--images {self.folder}: several pictures are called {one_line(name)} (found "
                f"{few(found)}, expected one). Write the path below {self.folder} in the captions"
            )
        return found[0] if found else None


def require_pillow() -> None:
    """Raise InputError if Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"pictures cannot be read: Pillow is missing (found {first_sentence(error)}, expected "
            f"the packages for pictures). Install them: {INSTALL}"
        ) from error


def upright(picture: "Image") -> "Image":
    """A picture of Pillow as RGB, turned as its EXIF data say."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture).convert("RGB")


def open_picture(source: "Path | str | Image") -> "Image":
    """A picture as RGB, turned as its EXIF data say. Raises InputError if it cannot be opened.

    source: a path, or a picture of Pillow.
    """
    require_pillow()
    from PIL import Image

    if isinstance(source, Image.Image):
        return upright(source)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"pictures: found a {type(source).__name__}, expected a path or a picture of Pillow"
        )
    if why := why_unreadable(Path(source)):
        raise InputError(f"{source}: {why}; expected a picture. Name another file")
    try:
        with Image.open(source) as image:
            return upright(image)
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise InputError(
            f"{source}: not a picture that can be opened (found {first_sentence(error)}, expected "
            "a whole JPEG, PNG or similar file). Copy it again, or leave it out"
        ) from error


def inspect(folder: Path, paths: Sequence[str]) -> dict[str, PictureFile]:
    """Read and decode each picture, and describe it, by path. Shows a progress bar."""
    require_pillow()
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(READERS) as readers,
        tqdm(total=len(paths), desc="1 of 2: reading", unit="image", **BAR) as progress,
    ):
        warnings.simplefilter("ignore")  # of damaged EXIF data
        found: dict[str, PictureFile] = {}
        for start in range(0, len(paths), DECODED_AT_ONCE):
            block = paths[start : start + DECODED_AT_ONCE]
            files = readers.map(lambda path: _inspect(folder / path), block)
            found |= dict(zip(block, files))
            progress.update(len(block))
    return found


def _inspect(path: Path) -> PictureFile:
    if why := why_unreadable(path):
        return PictureFile("", why)
    digest = file_digest(path)
    try:
        open_picture(path)
    except InputError as error:
        return PictureFile(digest, first_sentence(error.__cause__ or error))
    return PictureFile(digest, None)


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_copies(paths: Iterable[str], files: Mapping[str, PictureFile]) -> list[list[str]]:
    """Groups of at least two pictures with the same bytes."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[files[path].digest].append(path)
    return [group for group in groups.values() if len(group) > 1]
