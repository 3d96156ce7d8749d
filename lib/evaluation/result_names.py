"""Names of the files that an evaluation writes into a run folder.

Different evaluations get different names, so none overwrites the results of another. Results of the
best checkpoint on the test split of its own data set have short names: `test.md`,
`results_DATASET.npy`, `report.html`. Other names list what differs: `test+dataset=coco.md`,
`dev+checkpoint=last.pth.md`.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..system.cache import digest
from ..system.run_folder import BEST

EXTRAS = ("", "bootstrap", "extended", "bootstrap-extended")  # additions to a table
SEEDS = "seeds"  # replaces the hash of an ensemble: all runs of one folder


class ResultName(NamedTuple):
    """What is evaluated, and the file names that follow from it.

    own_dataset: data set of the training; test_split: split on which results of `dataset` are
    usually reported; checkpoint: file name of a single model; models: "" for a single model,
    otherwise `ensemble_id` or SEEDS; extras: one of EXTRAS; data: the beginning of a hash of the
    data if the name is already used for other data, otherwise "".
    """

    dataset: str
    own_dataset: str
    split: str
    test_split: str
    checkpoint: str = BEST
    models: str = ""
    extras: str = ""
    data: str = ""

    def table(self) -> str:
        """Key in metrics.json; with the suffix .md, the name of the table file."""
        if self.models == SEEDS:
            base = SEEDS if self._is_test else f"{SEEDS}_{escape(self.split)}"
        else:
            base = f"ensemble_{escape(self.split)}" if self.models else escape(self.split)
        return base + self._suffix(
            {"dataset": self._other_dataset, "models": self._hash, "with": self.extras}
        )

    def results(self) -> str:
        """Name of the file of similarities."""
        suffix = self._suffix(dict(split=self._other_split, models=self.models))
        return f"results_{escape(self.dataset)}{suffix}.npy"

    def report(self) -> str:
        """Name of the file of the report page."""
        base = "report" if self._is_test else f"report_{escape(self.split)}"
        parts = {"dataset": self._other_dataset, "models": self.models, "with": self.extras}
        return f"{base}{self._suffix(parts)}.html"

    def embeddings(self) -> str:
        """Name of the file of cached embeddings. A key in the file identifies their contents."""
        parts = self.checkpoint.removesuffix(".pth"), self.dataset, self.split
        return f"embeddings_{'_'.join(map(escape, parts))}.npz"

    @property
    def _is_test(self) -> bool:
        return self.split == self.test_split

    @property
    def _other_split(self) -> str:
        return "" if self._is_test else self.split

    @property
    def _other_dataset(self) -> str:
        return "" if self.dataset == self.own_dataset else self.dataset

    @property
    def _hash(self) -> str:
        return "" if self.models == SEEDS else self.models

    def _suffix(self, parts: dict[str, str]) -> str:
        other = "" if self.models or self.checkpoint == BEST else self.checkpoint
        parts = parts | dict(checkpoint=other, data=self.data)
        return "".join(f"+{name}={escape(value)}" for name, value in parts.items() if value)


def ensemble_id(paths: Iterable[Path], folder: Path) -> str:
    """Eight hexadecimal digits that identify the checkpoint files of an ensemble.

    The order of the files does not matter. Paths are hashed relative to `folder`.
    """
    return digest(sorted(os.path.relpath(path, folder) for path in paths))[:8]


def escape(text: str) -> str:
    """Escape `text` for a file name: "/" becomes "=2f".

    Letters, digits, spaces and the characters _ - . are kept. Others become their UTF-8 bytes.
    """
    return re.sub(
        r"[^\w. -]", lambda match: "=" + match[0].encode("utf-8", "surrogatepass").hex("="), text
    )
