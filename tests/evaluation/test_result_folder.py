"""Folders of earlier versions, and files that are not ours."""

import json
import os
import shutil

import numpy as np
import pytest
from damage import contents
from helpers import evaluate, shared
from test_results import entries

import eval as evaluation
from lib.system import run_folder


@pytest.fixture(scope="module")
def evaluated(finished, tmp_path_factory):
    """A run with a report and similarities; tests leave it as it is."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("evaluated") / "run")
    evaluate(folder, "--report", "--save_results", 1)
    return shared(folder)


@pytest.fixture
def reported(evaluated, tmp_path):
    """A copy of it, for one test."""
    return shutil.copytree(evaluated, tmp_path / "reported")


def without_manifest(run):
    """As an earlier version of this project has left it."""
    for name in (run_folder.MANIFEST, run_folder.MANIFEST_LOCK):
        (run / name).unlink()
    found = entries(run)
    for entry in found.values():
        del entry["data"], entry["checkpoints"]
    (run / "metrics.json").write_text(json.dumps(found))


def test_a_folder_from_before_manifests_is_evaluated_as_before(run):
    evaluate(run, "--report")
    without_manifest(run)
    evaluate(run, "--report", "--save_results", 1)
    assert set(entries(run)) == {"test"} and entries(run)["test"]["checkpoints"] == [
        "model_best.pth"
    ]
    own = {"test.md", "metrics.json", "results_demo.npy", "report.html"}
    assert set(run_folder.RunFolder(run).read()["files"]) == own


def as_link(path):
    path.rename(path.with_name("precious"))
    path.symlink_to(path.with_name("precious"))


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def with_text(text):
    return lambda path: path.write_text(text)


FOREIGN = {
    "a table of somebody's": ("test.md", with_text("# My notes\n")),
    "our table with notes before it": (
        "test.md",
        lambda path: path.write_text("Notes\n" + path.read_text()),
    ),
    "a link to a table": ("test.md", as_link),
    "a pipe": ("test.md", as_pipe),
    "metrics of somebody's": ("metrics.json", with_text('{"accuracy": 0.5}')),
    "metrics that name files elsewhere": ("metrics.json", with_text('{"../../x": {"scores": 1}}')),
    "empty metrics": ("test.md", lambda path: path.with_name("metrics.json").write_text("{}")),
    "published results": (
        "results_demo.npy",
        lambda path: np.save(path, {"npts": 1, "sims": np.eye(2)}),
    ),
    "an array": ("results_demo.npy", lambda path: np.save(path, np.eye(2))),
    "a page of somebody's": ("report.html", with_text("<title>Mine</title>")),
}


@pytest.mark.parametrize("name, change", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_somebody_else_is_refused_before_anything_is_computed(
    reported, refusal, name, change
):
    without_manifest(reported)
    change(reported / name)
    before = {path.name: path.lstat().st_mtime_ns for path in reported.iterdir()}
    error = refusal(evaluation.main, reported, "--report", "--save_results", 1, expected=[name])
    assert "move" in error.lower() and "printed" not in error
    assert {path.name: path.lstat().st_mtime_ns for path in reported.iterdir()} == before


def as_folder(path):
    path.unlink()
    (path / "mine").mkdir(parents=True)


@pytest.mark.parametrize("name", ["test.md", "metrics.json", "results_demo.npy", "report.html"])
@pytest.mark.parametrize("change", [as_link, as_pipe, as_folder])
def test_what_stands_in_place_of_our_file_is_not_ours_whatever_the_manifest_says(
    reported, refusal, name, change
):
    change(reported / name)
    before = {path.name: path.lstat().st_mtime_ns for path in reported.iterdir()}
    error = refusal(evaluation.main, reported, "--report", "--save_results", 1, expected=[name])
    assert "move" in error.lower() and "printed" not in error
    assert {path.name: path.lstat().st_mtime_ns for path in reported.iterdir()} == before


def test_published_run_folders_get_new_files_alone(run, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    shutil.copy(run / "model_best.pth", folder)
    np.save(folder / "results_demo.npy", {"npts": 1, "sims": np.eye(2)})
    before = contents(folder)
    evaluate(folder, "--split", "dev", "--save_results", 1)
    after = contents(folder)
    assert {name: after[name] for name in before} == before and (folder / "dev.md").exists()
