"""The facts of a table: what it is about and how it was obtained, as saved in metrics.json."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers

from ..system import cache
from ..system.console import one_line


class EvaluatedSplit(Protocol):
    """The part of `lib.data.dataset.RetrievalDataset` that the facts are taken from."""

    folder: Path
    split: str

    @property
    def num_images(self) -> int: ...
    @property
    def num_captions(self) -> int: ...
    def fingerprint(self) -> dict[str, str]: ...


class TrainedModel(Protocol):
    """The part of `lib.model.checkpoint.Checkpoint` that the facts are taken from."""

    @property
    def options(self) -> dict[str, Any]: ...
    @property
    def epoch(self) -> int: ...
    @property
    def is_published(self) -> bool: ...
    @property
    def is_last(self) -> bool: ...
    @property
    def is_average(self) -> bool: ...


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on, and the machine type."""
    return dict(
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        numpy=np.__version__,
        machine=platform.machine(),
    )


def find_facts(
    dataset: str, data: EvaluatedSplit, models: Sequence[tuple[Path, TrainedModel]], folder: Path
) -> dict[str, Any]:
    """What a table is about and how it was obtained, for metrics.json.

    models: path and checkpoint of each model; folder: where the table is saved.
    """
    found = [trained for _, trained in models]
    selected = {
        "test" if one.is_published else one.options["val_split"] for one in found if not one.is_last
    }
    best = [f"best epoch by rsum on {' and '.join(sorted(selected))}"] * bool(selected)
    last = ["last epoch, not selected"] * any(one.is_last for one in found)
    epochs = ", ".join(str(one.epoch) for one in found)
    averages = ", averaged weights" * any(one.is_average for one in found)
    count = (
        "1 model" if len(found) == 1 else f"ensemble of {len(found)} models (mean of similarities)"
    )
    title = one_line(
        f"{dataset}, split {data.split}: {data.num_images} images, {data.num_captions} captions; "
        f"{count}; {' and '.join(best + last)} (after {epochs} epochs{averages})"
    )
    content = cache.digest(sorted(data.fingerprint().items()))
    return dict(
        dataset=dataset,
        split=data.split,
        selected_on=sorted(selected),
        num_models=len(found),
        title=title,
        seeds=[one.options.get("seed") for one in found],
        options=[_plain(one.options) for one in found],
        checkpoints=[os.path.relpath(path, folder) for path, _ in models],
        data=dict(folder=os.path.abspath(data.folder), fingerprint=content),
    )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as values that JSON can represent."""
    return {
        name: value if isinstance(value, (int, float, str, list)) else str(value)
        for name, value in options.items()
    }
