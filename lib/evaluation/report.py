"""Save an evaluation: its table, the numbers and facts in metrics.json, its similarities."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..system.console import printable
from ..system.distributed import print_line
from ..system.errors import InputError
from .facts import versions
from .metrics import Scores
from .result_folder import METRICS, find_name, read_entries, run_folder
from .result_names import ResultName
from .similarity import Similarities
from .similarity_file import load_similarities as load_similarities  # its documented place
from .similarity_file import save_similarities
from .table import Table


class EvaluatedRun(Protocol):
    """The part of `lib.results.runs.Run` that saving needs."""

    def check_unchanged(self) -> None: ...


def save(
    folder: Path,
    name: str,
    text: str,
    scores_by_label: Mapping[str, Scores],
    facts: Mapping[str, Any],
) -> None:
    """Write the table to `{name}.md`, and its numbers and facts to the entry `name` of
    metrics.json.

    Other entries of metrics.json are kept, including those that another process adds meanwhile.
    Raises InputError if an existing metrics.json is damaged, or an existing file is not ours.
    """
    saved = run_folder(folder)
    with saved.locked():
        saved.claim(f"{name}.md", METRICS)
        entries = read_entries(saved.path / METRICS)
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


def save_results(
    folder: Path,
    result: ResultName,
    table: Table,
    similarities: Similarities,
    form: int | str = 0,
    write_page: Callable[[Path], object] | None = None,
    runs: Sequence[EvaluatedRun] = (),
) -> None:
    """Save a table and, if requested, the similarities and the report page. Raises InputError.

    form: of the file of similarities, as in --save_results, 0: none; write_page: writes the report
    page to a path; runs: their checkpoints must not have changed. The lock ensures that two
    evaluations never use the same name, and that the table of a training that ends meanwhile is not
    replaced by that of an earlier epoch.
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
            f"{error}. The table was printed, but not everything was saved in {folder}. If that "
            "folder cannot be changed, copy the checkpoint to a folder of your own and evaluate it "
            "there"
        ) from error
    if "+" in named.table():
        why = " (results on other data have the shorter name)" if named.data else ""
        print_line(f"saved as {folder / named.table()}.md{why}")
