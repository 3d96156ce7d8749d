"""Retrieval tables as people read them: Markdown, and metrics.json beside it
(docs/method.md, section 7)."""

import json
import os
import pickle
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from ..system import cache
from ..system.cache import DAMAGED
from ..system.console import one_line, printable
from ..system.distributed import print_line
from ..system.errors import InputError, first_sentence
from ..system.files import why_unreadable
from ..system.run_folder import RunFolder
from . import metrics
from .result_names import EXTRAS, ResultName

FOLDS = 5
METRICS = "metrics.json"
# what files of similarities and embeddings hold
RESULTS, EMBEDDINGS = ("npts", "sims"), {"key", "images", "captions"}
PAGE = b"<title>HREM: "  # of a report, near its beginning
HEADER = (
    "| images | I2T R@1 | R@5 | R@10 | median | mean | T2I R@1 | R@5 | R@10 | median | mean | "
    "rsum |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


class Table(NamedTuple):
    """A results table: its text, scores by label, and facts, see `find_facts`."""

    text: str
    scores: dict[str, metrics.Scores]
    facts: dict[str, Any]


def folds_by_label(num_images: int, split: str) -> dict[str, int]:
    """The rows of a table: {label: number of folds}. `testall` (COCO) has five folds (1K) and the
    whole (5K)."""
    found = {_thousands(num_images): 1}
    if split == "testall" and num_images % FOLDS == 0:
        found = {f"{_thousands(num_images // FOLDS)} (mean of {FOLDS} folds)": FOLDS} | found
    return found


def tables(similarities: metrics.Similarities, split: str) -> dict[str, metrics.Scores]:
    """Scores of a split by label, averaged over folds."""
    return {
        label: metrics.fold_scores(similarities, folds)
        if folds > 1
        else metrics.scores(metrics.ranks(similarities))
        for label, folds in folds_by_label(similarities.shape[0], split).items()
    }


def _thousands(number):
    return f"{number // 1000}K" if number % 1000 == 0 else str(number)


def markdown(scores_by_label: Mapping[str, metrics.Scores]) -> str:
    """The results table: one row per label, recalls in percent, ranks from 1."""
    return "\n".join(
        [HEADER, *(_row(label, _numbers(scores)) for label, scores in scores_by_label.items())]
    )


def label_seeds(
    by_seed: Mapping[int, Mapping[str, metrics.Scores]], ensemble: Mapping[str, metrics.Scores]
) -> dict[str, metrics.Scores]:
    """Scores by label of several seeds: those of each seed, then those of their ensemble.

    by_seed: {seed: table of `tables`}; ensemble: the table of the mean of similarities.
    """
    return {
        f"{label}, {which}": table[label]
        for label in ensemble
        for which, table in [
            *((f"seed {seed}", table) for seed, table in by_seed.items()),
            ("ensemble", ensemble),
        ]
    }


def markdown_of_seeds(
    by_seed: Mapping[int, Mapping[str, metrics.Scores]], ensemble: Mapping[str, metrics.Scores]
) -> str:
    """The table of `label_seeds`, with the mean and the sample standard deviation over seeds
    between the two."""
    rows = []
    for label, together in ensemble.items():
        numbers = np.array([_numbers(table[label]) for table in by_seed.values()])
        rows += [_row(f"{label}, seed {seed}", row) for seed, row in zip(by_seed, numbers)]
        rows.append(_row(f"{label}, mean", numbers.mean(axis=0)))
        if len(numbers) > 1:  # one seed has no deviation
            rows.append(_row(f"{label}, standard deviation", numbers.std(axis=0, ddof=1)))
        rows.append(_row(f"{label}, ensemble", _numbers(together)))
    return "\n".join([HEADER, *rows])


def _numbers(scores):
    return *scores.image_to_text, *scores.text_to_image, scores.rsum


def _row(label, numbers):
    return f"| {label} | {' | '.join(f'{number:.1f}' for number in numbers)} |"


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    return dict(
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        numpy=np.__version__,
        machine=platform.machine(),
    )


def _entries(path):
    """What metrics.json holds, a dict by name of a table; none where there is no file.
    Raises InputError."""
    why = why_unreadable(path) if os.path.lexists(path) else None
    try:
        if why:
            raise ValueError(why)
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(entries, dict):
            raise ValueError(f"a {type(entries).__name__} instead of a dict")
        strange = next((name for name, entry in entries.items() if not _is_entry(entry)), None)
        if strange is not None:
            raise ValueError(f"{strange!r} is no table of an evaluation")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not JSON of ours ({first_sentence(error)}), expected the metrics of earlier "
            "evaluations; move it away"
        ) from error
    return entries


def _is_entry(entry):
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), dict) for name in ("scores", "versions")
    )


def run_folder(path: Path | str) -> RunFolder:
    """The folder into which results are written."""
    return RunFolder(path, is_ours)


def is_ours(path: Path) -> bool:
    """Whether a file that no manifest names was written by an earlier version of this project,
    according to its contents."""
    if path.name == METRICS:
        return bool(_entries(path))
    if path.suffix == ".md":
        entry = _entries(path.with_name(METRICS)).get(path.stem)
        text = path.read_text(encoding="utf-8", errors="replace")
        return entry is not None and HEADER in text and text.startswith(f"{entry.get('title')}\n")
    if path.suffix in (".npy", ".npz"):
        return _holds_ours(path)
    with open(path, "rb") as file:
        return path.suffix == ".html" and PAGE in file.read(1000)


def _holds_ours(path):
    """Whether a .npy file is a record of similarities, or a .npz file holds kept embeddings,
    by their fields."""
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).dtype.names == RESULTS
        with np.load(path, allow_pickle=False) as file:
            return set(file.files) - {"checksum"} == EMBEDDINGS
    except (*DAMAGED, AttributeError):  # a file of the other kind
        return False


def find_name(folder: RunFolder, result: ResultName, facts: Mapping[str, Any]) -> ResultName:
    """The name under which an evaluation is saved. It has a hash of the data if the name is taken
    by other data.

    facts: of the evaluation, see `save`. Raises InputError if an existing file of that name is not
    ours.
    """
    entries = _entries(folder.path / METRICS)
    # all of them name one file of similarities
    tables = [result._replace(extras=extras).table() for extras in EXTRAS]
    if any(_is_of_other(entries[table], facts) for table in tables if table in entries):
        result = result._replace(data=facts["data"]["fingerprint"][:8])
    return result


def _is_of_other(entry, facts):
    """Whether an entry of metrics.json is of another data set,
    split or other data than an evaluation, see `save`."""
    data = entry.get("data")  # none in entries of earlier versions
    is_other_data = (
        isinstance(data, dict) and data.get("fingerprint") != facts["data"]["fingerprint"]
    )
    return is_other_data or any(entry.get(name) != facts[name] for name in ("dataset", "split"))


def save(
    folder: Path,
    name: str,
    text: str,
    scores_by_label: Mapping[str, metrics.Scores],
    facts: Mapping[str, Any],
) -> None:
    """Write the table as `{name}.md` and its numbers, with the facts of its origin, under `name` in
    metrics.json.

    Other entries of metrics.json are kept, also those that another process adds at the same time.
    Raises InputError if an existing metrics.json is damaged, or an existing file is not ours.
    """
    saved = run_folder(folder)
    with saved.locked():
        saved.claim(f"{name}.md", METRICS)
        entries = _entries(saved.path / METRICS)
        entries[name] = dict(facts) | dict(
            versions=versions(),
            scores={
                label: dict(
                    i2t=scores.image_to_text._asdict(),
                    t2i=scores.text_to_image._asdict(),
                    rsum=scores.rsum,
                )
                for label, scores in scores_by_label.items()
            },
        )
        with saved.atomic_write(f"{name}.md") as file:
            file.write((printable(text) + "\n").encode())
        with saved.atomic_write(METRICS) as file:
            file.write((json.dumps(entries, indent=1, sort_keys=True) + "\n").encode())


def save_similarities(path: Path, similarities: metrics.Similarities, form: int | str = 1) -> None:
    """Write `npts` (number of images) and `sims` (N, C) as a .npy file in a run folder.

    form, as in --save_results: 1: one record without pickle, np.load(path)["sims"]; "published":
    the pickled dict that existing scripts read, np.load(path, allow_pickle=True).item()["sims"].
    """
    npts, sims = similarities.shape[0], similarities[:, :]
    with run_folder(path.parent).atomic_write(path.name) as file:
        if form == "published":
            _write_published(file, npts, sims)
        else:
            record: Any = np.zeros((), dtype=[("npts", np.int64), ("sims", np.float32, sims.shape)])
            record["npts"], record["sims"] = npts, sims
            np.save(file, record, allow_pickle=False)


def _write_published(file, npts, sims):
    """What np.save makes of the published dict, as NumPy 1 writes it, which every version reads."""
    protocol = 3 if sims.nbytes < 2**32 else 4  # 3 holds no more
    content = pickle.dumps(
        np.array(dict(npts=npts, sims=np.ascontiguousarray(sims)), dtype=object), protocol
    )
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    file.write(content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1))


def load_similarities(path: Path | str, allow_pickle: bool = False) -> tuple[int, np.ndarray]:
    """Read a results file: the record of `save_similarities` or, with `allow_pickle`, the published
    pickled dict.

    A pickle can execute any code: allow it only for a file from a source that you trust. Returns
    npts and sims, (N, C) float32. Raises InputError.
    """
    why = why_unreadable(path)
    if why:
        raise InputError(f"{path}: {why}; expected a results_DATASET.npy file: name another")
    try:
        content = np.load(path, allow_pickle=allow_pickle)
        content = content.item() if content.dtype == object else content
        npts, sims = int(content["npts"]), np.asarray(content["sims"], dtype=np.float32)
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        EOFError,
        OSError,
        pickle.UnpicklingError,
    ) as error:
        remedy = (
            "copy it again"
            if allow_pickle
            else (
                "copy it again or, if it is a pickled file of the published code from a source "
                "that you trust, read it with load_similarities(path, allow_pickle=True)"
            )
        )
        raise InputError(
            f"{path}: not a results file that can be read ({first_sentence(error)}); expected an "
            f"array with npts and sims: {remedy}"
        ) from error
    if sims.ndim != 2:
        raise InputError(
            f"{path}: found sims of shape {sims.shape}, expected images x captions; save them again"
        )
    return npts, sims


def summarise(similarities: metrics.Similarities, facts: dict[str, Any]) -> Table:
    """The table of a split. facts: of `find_facts`."""
    scores = tables(similarities, facts["split"])
    return Table(f"{facts['title']}\n\n{markdown(scores)}", scores, facts)


def find_facts(
    dataset: str, data: Any, models: Sequence[tuple[Path, Any]], folder: Path
) -> dict[str, Any]:
    """What a table is about and how it was obtained, for metrics.json.

    data: the split; models: path and `Checkpoint` of each model; folder: where the table is saved.
    """
    found = [trained for _, trained in models]
    selected = {
        "test" if one.is_published else one.options["val_split"] for one in found if not one.is_last
    }
    best = [f"best epoch by rsum on {' and '.join(sorted(selected))}"] * bool(selected)
    last = ["last epoch, not selected"] * any(one.is_last for one in found)
    epochs = ", ".join(str(one.epoch) for one in found)
    count = (
        "1 model" if len(found) == 1 else f"ensemble of {len(found)} models (mean of similarities)"
    )
    title = one_line(
        f"{dataset}, split {data.split}: {data.num_images} images, {data.num_captions} captions; "
        f"{count}; {' and '.join(best + last)} (after {epochs} epochs)"
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


def _plain(options):
    """Options as JSON can hold them."""
    return {
        name: value if isinstance(value, (int, float, str, list)) else str(value)
        for name, value in options.items()
    }


def save_results(
    folder: Path,
    result: ResultName,
    table: Table,
    similarities: metrics.Similarities,
    form: int | str = 0,
    write_page: Callable[[Path], object] | None = None,
    runs: Sequence[Any] = (),
) -> None:
    """Save a table, and what the options ask for beside it. Raises InputError.

    form: of the file of similarities, as in --save_results, 0: none; write_page: writes the report
    to a path; runs: each a `Run` whose checkpoint must not have changed. Under the lock, two
    evaluations never take the same name, and a training that ends meanwhile does not lose its table
    to that of an earlier epoch.
    """
    text, scores, facts = table
    saved = run_folder(folder)
    try:
        with saved.locked():
            for run in runs:
                run.check_unchanged()
            named = find_name(saved, result, facts)
            save(folder, named.table(), text, scores, facts)
            if form:
                save_similarities(folder / named.results(), similarities, form)
            if write_page:
                write_page(folder / named.report())
    except InputError as error:
        raise InputError(
            f"{error}; the table is printed, but not all is saved in {folder}: where that cannot "
            "be changed, copy the checkpoint into a folder of your own and evaluate it there"
        ) from error
    if "+" in named.table():
        why = " (other data under this name were evaluated here before)" if named.data else ""
        print_line(f"saved as {folder / named.table()}.md{why}")
