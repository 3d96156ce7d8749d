"""Names of what an evaluation writes into a run folder,
so that results of one thing never replace those of another.

The best model of a run, on its own data set's test split, has the short names: `test`,
`results_DATASET.npy`, `report.html`. Whatever is different is said in the name:
`test+dataset=coco.md`, `dev+checkpoint=last.pth.md`.
"""

import os
import re
from typing import NamedTuple

from ..system.cache import digest
from ..system.run_folder import BEST

EXTRAS = ("", "bootstrap", "extended", "bootstrap-extended")  # what may stand beside a table
SEEDS = "seeds"  # in place of the hash of an ensemble: all runs of one folder


class ResultName(NamedTuple):
    """What is evaluated. own_dataset: of the training;
    test_split: that results of this data set are reported on.

    checkpoint: name of the file of a single model; models: "" for a single model, `ensemble_id` or
    SEEDS otherwise; extras: what stands beside the table, such as "bootstrap"; data: the beginning
    of a hash where other data have the name already.
    """

    dataset: str
    own_dataset: str
    split: str
    test_split: str
    checkpoint: str = BEST
    models: str = ""
    extras: str = ""
    data: str = ""

    def table(self):
        """The key in metrics.json; with .md the table's file."""
        if self.models == SEEDS:
            base = SEEDS if self._is_test else f"{SEEDS}_{escape(self.split)}"
        else:
            base = f"ensemble_{escape(self.split)}" if self.models else escape(self.split)
        return base + self._suffix(
            {"dataset": self._other_dataset, "models": self._hash, "with": self.extras}
        )

    def results(self):
        """The file of the similarities."""
        suffix = self._suffix(dict(split=self._other_split, models=self.models))
        return f"results_{escape(self.dataset)}{suffix}.npy"

    def report(self):
        """The file of the page."""
        base = "report" if self._is_test else f"report_{escape(self.split)}"
        parts = {"dataset": self._other_dataset, "models": self.models, "with": self.extras}
        return f"{base}{self._suffix(parts)}.html"

    def embeddings(self):
        """The file of the embeddings that searches keep; a key inside says what they are of."""
        parts = self.checkpoint.removesuffix(".pth"), self.dataset, self.split
        return f"embeddings_{'_'.join(map(escape, parts))}.npz"

    @property
    def _is_test(self):
        return self.split == self.test_split

    @property
    def _other_split(self):
        return "" if self._is_test else self.split

    @property
    def _other_dataset(self):
        return "" if self.dataset == self.own_dataset else self.dataset

    @property
    def _hash(self):
        return "" if self.models == SEEDS else self.models

    def _suffix(self, parts):
        other = "" if self.models or self.checkpoint == BEST else self.checkpoint
        parts = parts | dict(checkpoint=other, data=self.data)
        return "".join(f"+{name}={escape(value)}" for name, value in parts.items() if value)


def ensemble_id(paths, folder):
    """Eight digits that stand for the checkpoint files of an ensemble, in any order,
    as seen from its folder."""
    return digest(sorted(os.path.relpath(path, folder) for path in paths))[:8]


def escape(text):
    """`text` as part of a file name: what is no letter, digit, space, _, - or .
    becomes its bytes, =2f."""
    return re.sub(
        r"[^\w. -]", lambda found: "=" + found[0].encode("utf-8", "surrogatepass").hex("="), text
    )
