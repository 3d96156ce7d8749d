"""The files of a run folder that are ours: a manifest names them, and only those are ever replaced or deleted.

A name is written into the manifest before the file is made. A file that was there before is somebody else's: it is
neither replaced nor deleted, and the command that would do so is refused.
"""

import contextlib
import json
import os
import re
from pathlib import Path

from lib.errors import InputError, first_sentence
from lib.files import atomic_write, lock, why_unreadable

MANIFEST, MANIFEST_LOCK = "run_manifest.json", ".run_manifest.lock"
FORMAT = "hrem-run-1"
TRACEBACK = "traceback.txt"
OWN_NAMES = re.compile(  # what this project writes into run folders; a manifest with other names is not ours
    r"(train|eval|Parameters|traceback)\.txt|metrics\.json|(last|model_[\w-]+)\.pth|events\.out\.tfevents\..+"
    r"|[\w.=+-]+\.md|results_[\w.=+-]+\.npy|embeddings_[\w.=+-]+\.npz|report[\w.=+-]*\.html"
)


class RunFolder:
    """A run folder and its manifest. Nothing is written before a file is claimed.

    Raises InputError where the manifest is damaged or not ours.
    """

    def __init__(self, path):
        self.path = Path(path)

    def read(self):
        """The manifest, a dict; {"format": ..., "files": []} where there is none. Raises InputError."""
        path = self.path / MANIFEST
        if not os.path.lexists(path):
            return {"format": FORMAT, "files": []}
        why = why_unreadable(path)
        try:
            if why:
                raise ValueError(why)
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                raise ValueError("no manifest of this project")
            files = found.get("files")
            if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
                raise ValueError("no list of files")
            strange = next((name for name in files if not OWN_NAMES.fullmatch(name)), None)
            if strange is not None:
                raise ValueError(f"the name {strange!r}, which this project never writes")
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: cannot be used (found {first_sentence(error)}), expected the manifest that train.py or "
                "eval.py wrote; move it away, or name another folder"
            ) from error
        return found

    def is_own(self, name):
        """Whether the manifest says that a run or an evaluation wrote this file, and it is no link."""
        return name in self.read()["files"] and not (self.path / name).is_symlink()

    @contextlib.contextmanager
    def update(self):
        """Change the manifest, a dict that is written when the block ends; other processes wait meanwhile."""
        with lock(self.path / MANIFEST_LOCK, wait=True):
            content = self.read()
            before = json.dumps(content)
            yield content
            if json.dumps(content) != before:
                with atomic_write(self.path / MANIFEST) as file:
                    file.write((json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    def claim(self, *names):
        """Enter names in the manifest, before their files are made. Raises InputError where a file is not ours."""
        assert all(OWN_NAMES.fullmatch(name) for name in names), names
        if set(names) <= set(self.read()["files"]):
            return
        with self.update() as content:
            for name in names:
                if name not in content["files"]:
                    self._refuse_foreign(name)
                    content["files"] = sorted({*content["files"], name})

    def _refuse_foreign(self, name):
        path = self.path / name
        if os.path.lexists(path):
            raise InputError(
                f"{path}: found a file that {MANIFEST} does not name, expected none: this program replaces only what "
                "it wrote; move the file away, or name another folder"
            )

    @contextlib.contextmanager
    def atomic_write(self, name):
        """`lib.files.atomic_write` of a file of this folder, which is claimed first."""
        self.claim(name)
        with atomic_write(self.path / name) as file:
            yield file

    @contextlib.contextmanager
    def keep_traceback(self):
        """Inside, an unexpected exception learns to save its traceback here, once a program ends with it."""
        try:
            yield
        except Exception as error:  # any: it is handed on as it is
            error.save_traceback = self._save_traceback
            raise

    def _save_traceback(self, text):
        """Write traceback.txt; returns its path, or None where the folder is no run's or cannot be written."""
        if not os.path.lexists(self.path / MANIFEST):
            return None
        try:
            with self.atomic_write(TRACEBACK) as file:
                file.write(text.encode("utf-8", "backslashreplace"))
        except InputError:
            return None
        return self.path / TRACEBACK

    def remove(self, *names):
        """Delete those of the named files that are ours, and take the names out of the manifest afterwards."""
        own = [name for name in names if self.is_own(name)]
        for name in own:
            (self.path / name).unlink(missing_ok=True)
        with self.update() as content:
            content["files"] = [name for name in content["files"] if name not in own]
