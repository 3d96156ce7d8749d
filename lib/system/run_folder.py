"""The files of a run folder that are ours: a manifest names them,
and only those are ever replaced or deleted.

A name is written into the manifest before the file is made. A file that was there before is
somebody else's: it is neither replaced nor deleted, and the command that would do so is refused.
The manifest also records the run itself, see `lib.training.run_start`: one atomic write of it
begins a run and discards the files of the run before.
"""

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError, first_sentence
from .files import atomic_write, lock, why_unreadable

MANIFEST, MANIFEST_LOCK = "run_manifest.json", ".run_manifest.lock"
FORMAT = "hrem-run-1"
PART = r"[\w=+-][\w.=+ -]*"  # of a file's name: a data set or a split
# bytes; two of them, and what stands around them, must be one name of at most 255 bytes
LONGEST_PART = 80
TRACEBACK = "traceback.txt"
# what grows with a run
LOG_NAMES = re.compile(r"(train|eval)\.txt|events\.out\.tfevents\.[^/\x00-\x1f\x7f]+")
# what this project writes into run folders; a manifest with other names is not ours
OWN_NAMES = re.compile(
    LOG_NAMES.pattern + r"|(Parameters|traceback)\.txt|metrics\.json|(last|model_[\w-]+)\.pth"
    r"|[\w.=+ -]+\.md|results_[\w.=+ -]+\.npy|embeddings_[\w.=+ -]+\.npz|report[\w.=+ -]*\.html"
)
# see `run_start`
RUN_FIELDS = dict(id=str, log=str, saved=bool, resumed_from=(str, type(None)), replaces=list)
BEST, LAST = "model_best.pth", "last.pth"


def check_name(what: str, name: str) -> None:
    """Refuse a name of a data set or split that cannot be part of a file name. The InputError
    begins with `what`."""
    if not re.fullmatch(PART, name) or len(name.encode()) > LONGEST_PART:
        raise InputError(
            f"{what} {name}: found a name that cannot be part of a file's name, expected at most "
            f"{LONGEST_PART} bytes of letters, digits, spaces and . _ - = +, not beginning with a "
            "dot or a space; rename the data folder or its files, and give that name"
        )


def is_plain_file(path: Path) -> bool:
    """Whether `path` is a file, and not a link, folder, pipe or device."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


class RunFolder:
    """A run folder and its manifest. Nothing is written before a file is claimed.

    is_ours: tells of a file that the manifest does not name whether its contents prove that this
    project wrote it: folders from before manifests hold such files. Raises InputError where the
    manifest is damaged or not ours.
    """

    def __init__(
        self, path: Path | str, is_ours: Callable[[Path], bool] = lambda path: False
    ) -> None:
        self.path, self._is_ours = Path(path), is_ours

    def read(self) -> dict[str, Any]:
        """The manifest, or an empty one if there is none. Raises InputError.

        files: names of our files; discarded: those that belong to an overwritten run and are to be
        deleted; run: RUN_FIELDS of the run whose checkpoints are here, or None; log: identifier of
        the logs here, or None.
        """
        path = self.path / MANIFEST
        if not os.path.lexists(path):
            return _with_defaults({"format": FORMAT})
        why = why_unreadable(path)
        try:
            if why:
                raise ValueError(why)
            return _validated(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: cannot be used (found {first_sentence(error)}), expected the manifest "
                "that train.py or eval.py wrote; move it away (one that may not be read: change "
                "its permissions), or name another folder"
            ) from error

    def is_own(self, name: str) -> bool:
        """Whether the manifest names this file, and it is not a link."""
        return name in self.read()["files"] and not (self.path / name).is_symlink()

    def holds(self, name: str) -> bool:
        """Whether there is a file of this name, ours or not, that is not discarded."""
        return (self.path / name).exists() and name not in self.read()["discarded"]

    def is_empty(self, but: Path | str | None = None) -> bool:
        """Whether the folder is missing or has no files. Hidden files do not count.

        but: a path in this folder that does not count either.
        """
        if not self.path.is_dir():
            return True
        ignored = (
            os.path.relpath(os.path.realpath(but), os.path.realpath(self.path)).split(os.sep)[0]
            if but
            else None
        )
        return all(name.startswith(".") or name == ignored for name in os.listdir(self.path))

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """A context in which no other process changes the manifest, or a file that is written under
        this lock."""
        return lock(self.path / MANIFEST_LOCK, wait=True)

    @contextlib.contextmanager
    def update(self) -> Iterator[dict[str, Any]]:
        """Change the manifest, which is written when the block ends. Other processes wait until
        then.

        Discarded files that still exist are deleted first.
        """
        with self.locked():
            content = self.read()
            before = json.dumps(content)
            self._unlink(content, content["discarded"])
            content["discarded"] = []
            yield content
            if json.dumps(content) != before:
                with atomic_write(self.path / MANIFEST) as file:
                    file.write((json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    def _unlink(self, content, names):
        """Delete files of these names, and take them out of a manifest's content.
        What is no plain file stays."""
        for name in names:
            if is_plain_file(self.path / name):
                (self.path / name).unlink()
        content["files"] = [name for name in content["files"] if name not in names]

    def claim(self, *names: str) -> None:
        """Enter names in the manifest before their files are created. Raises InputError if a file
        is not ours."""
        assert all(OWN_NAMES.fullmatch(name) for name in names), names
        content = self.read()
        self.check_writable(names, self._plain(content["files"]))
        if set(names) <= set(content["files"]) and not content["discarded"]:
            return
        with self.update() as content:
            for name in names:
                if name not in content["files"]:
                    self._refuse_foreign(name)
                    content["files"] = sorted({*content["files"], name})

    def check(self, *names: str) -> None:
        """Raise the InputError of `claim`, but change nothing."""
        self.check_writable(names, self._plain(self.read()["files"]))

    def _plain(self, names):
        """Those of the names that are plain files:
        a folder or pipe in place of a file of ours is somebody else's."""
        return [name for name in names if is_plain_file(self.path / name)]

    def _refuse_foreign(self, name):
        path = self.path / name
        if os.path.lexists(path) and not (
            is_plain_file(path) and not why_unreadable(path) and self._is_ours(path)
        ):
            kind = "folder" if path.is_dir() else "file"
            raise InputError(
                f"{path}: found a {kind} that {MANIFEST} does not name, expected none: this "
                f"program replaces only what it wrote; move the {kind} away, or name another "
                "folder"
            )

    def check_writable(self, names: Collection[str], own: Collection[str]) -> None:
        """Refuse whatever prevents writing files of these names. own: names that are ours. Raises
        InputError."""
        for name in names:
            path = self.path / name
            if path.is_symlink():
                raise InputError(
                    f"{path}: found a link, expected a file or nothing: this program writes "
                    "through no link; put the file itself there, move the link away, or name "
                    "another folder"
                )
            if name not in own:
                self._refuse_foreign(name)

    @contextlib.contextmanager
    def atomic_write(self, name: str) -> Iterator[BinaryIO]:
        """`lib.system.files.atomic_write` of a file of this folder, which is claimed first."""
        self.claim(name)
        with atomic_write(self.path / name) as file:
            yield file

    @contextlib.contextmanager
    def keep_traceback(self) -> Iterator[None]:
        """If an unexpected exception ends the program inside, its traceback is saved in this
        folder."""
        try:
            yield
        except Exception as error:  # any: it is handed on as it is
            error.save_traceback = self._save_traceback  # type: ignore[attr-defined]
            raise

    def _save_traceback(self, text):
        """Write traceback.txt; returns its path, or None where the folder is no run's or cannot be
        written."""
        if not os.path.lexists(self.path / MANIFEST):
            return None
        try:
            with self.atomic_write(TRACEBACK) as file:
                file.write(text.encode("utf-8", "backslashreplace"))
        except InputError:
            return None
        return self.path / TRACEBACK

    def remove(self, *names: str) -> None:
        """Delete those of the named files that are ours, and then remove the names from the
        manifest."""
        if not set(names) & set(self.read()["files"]):
            return
        with self.update() as content:
            own = [
                name
                for name in names
                if name in content["files"] and not (self.path / name).is_symlink()
            ]
            self._unlink(content, own)


def _validated(found):
    """A manifest that was read. Raises ValueError."""
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError("no manifest of this project")
    found = _with_defaults(found)
    for key in ("files", "discarded"):
        if not isinstance(found[key], list) or not all(
            isinstance(name, str) for name in found[key]
        ):
            raise ValueError(f"no list of names as {key}")
        strange = next((name for name in found[key] if not OWN_NAMES.fullmatch(name)), None)
        if strange is not None:
            raise ValueError(f"the name {strange!r}, which this project never writes")
    run = found["run"]
    is_run = isinstance(run, dict) and all(
        isinstance(run.get(key), kind) for key, kind in RUN_FIELDS.items()
    )
    if run is not None and not is_run or not isinstance(found["log"], (str, type(None))):
        raise ValueError("a damaged record of the run")
    return found


def _with_defaults(content):
    return dict(files=[], discarded=[], run=None, log=None) | content


def seed_folder(folder: Path | str, seed: int) -> str:
    """The run folder of one of several seeds."""
    return str(Path(folder) / f"seed{seed}")
