"""Results of different evaluations in a run folder do not overwrite each other."""

import json
import multiprocessing
import os
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from damage import OPTIONS
from helpers import evaluate

import eval as evaluation
import train
from lib.evaluation import encoding, report
from lib.evaluation.table import scores_by_label
from lib.system import run_folder
from lib.system.errors import command_line


def entries(run):
    return json.loads((run / "metrics.json").read_text())


def test_what_is_evaluated_beside_the_usual_leaves_it_as_it_was(run, data, tmp_path):
    """Another split, checkpoint, data set, other data,
    an ensemble: the table and results of training stay."""
    usual = {name: (run / name).read_bytes() for name in ("test.md", "results_demo.npy")}
    evaluate(run, "--report")
    usual["report.html"] = (run / "report.html").read_bytes()
    before = entries(run)["test"]
    shutil.copytree(data / "demo_precomp", data / "other_precomp")
    np.save(
        data / "demo_precomp" / "test_ims.npy",
        np.load(data / "demo_precomp" / "test_ims.npy")[::-1],
    )
    second = shutil.copytree(run, tmp_path / "second")
    for more in (
        [run, "--split", "dev"],
        [run / "last.pth"],
        [run, "--dataset", "other", "--data_path", data],
        [run, "--data_path", data],
    ):
        evaluate(*more, "--save_results", 1, "--report")
    for other in (run / "last.pth", second):
        evaluate(run, other, "--save_results", 1)
    assert {name: (run / name).read_bytes() for name in usual} == usual and entries(run)[
        "test"
    ] == before
    found = entries(run)
    assert len(found) == 7 and all((run / f"{name}.md").exists() for name in found)
    assert len(list(run.glob("results_*.npy"))) == 7 and len(list(run.glob("report*.html"))) == 5
    assert found["test+checkpoint=last.pth"]["checkpoints"] == ["last.pth"]
    assert found["test+dataset=other"]["data"]["folder"] == str(data / "other_precomp")
    (other,) = (name for name in found if name.startswith("test+data="))
    assert found[other]["data"]["folder"] == str(data / "demo_precomp") != before["data"]["folder"]
    assert found["test"]["checkpoints"] == ["model_best.pth"]


def test_intervals_are_kept_when_the_table_is_made_again(run):
    evaluate(run, "--bootstrap", 20, "--report")
    before = (
        (run / "test+with=bootstrap.md").read_bytes(),
        (run / "report+with=bootstrap.html").read_bytes(),
    )
    evaluate(run, "--report")
    assert before == (
        (run / "test+with=bootstrap.md").read_bytes(),
        (run / "report+with=bootstrap.html").read_bytes(),
    )
    assert (
        "bootstrap" in entries(run)["test+with=bootstrap"]
        and "bootstrap" not in entries(run)["test"]
    )


def test_the_same_data_elsewhere_replace_the_entry_and_name_their_folder(run, data):
    evaluate(run, "--data_path", data)
    assert set(entries(run)) == {"test"} and entries(run)["test"]["data"]["folder"] == str(
        data / "demo_precomp"
    )


def test_other_data_are_told_and_found_again(run, data, capsys):
    path = data / "demo_precomp" / "test_ims.npy"
    np.save(path, np.load(path)[::-1])
    for _ in range(2):
        evaluate(run, "--data_path", data)
        printed = capsys.readouterr().out
        assert re.search(
            r"\nsaved as .*/test\+data=[0-9a-f]{8}.md \(results on other data .*\)\n",
            printed,
        )
    assert len(entries(run)) == 2


def test_similarities_of_other_data_replace_none_whatever_stands_beside_the_table(run, whole, data):
    """Tables with intervals have names of their own, the file of similarities has the same name."""
    evaluate(run, "--save_results", 1)
    before = (run / "results_demo.npy").read_bytes()
    path = data / "demo_precomp" / "test_ims.npy"
    np.save(path, np.load(path)[::-1])
    evaluate(run, "--save_results", 1, "--data_path", data, "--bootstrap", 10)
    assert (run / "results_demo.npy").read_bytes() == before
    assert (
        len(list(run.glob("results_demo+data=*.npy")))
        == len(list(run.glob("test+with=bootstrap+data=*.md")))
        == 1
    )
    evaluate(run, "--save_results", 1, "--bootstrap", 10, "--data_path", whole)
    assert (run / "results_demo.npy").read_bytes() == before and (
        run / "test+with=bootstrap.md"
    ).exists()


def test_the_table_at_the_end_of_training_replaces_none_of_other_data(run, whole, data, capsys):
    """As when a run goes on with data that have changed."""
    before = (run / "test.md").read_bytes(), entries(run)["test"]
    path = data / "demo_precomp" / "test_ims.npy"
    np.save(path, np.load(path)[::-1])
    options = [
        *OPTIONS,
        "--data_path",
        str(data),
        "--logger_name",
        str(run),
        "--resume",
        "auto",
        "--num_epochs",
        "2",
    ]
    train.main([*options, "--allow_changed_data", "1"])
    assert ((run / "test.md").read_bytes(), entries(run)["test"]) == before
    (new,) = run.glob("test+data=*.md")
    assert f"saved as {new}" in capsys.readouterr().out


@pytest.mark.parametrize("is_gone", [False, True])
def test_results_of_a_checkpoint_that_was_replaced_meanwhile_are_not_saved(
    run, refusal, monkeypatch, is_gone
):
    """A training that ends beside an evaluation keeps its table: that of the last best epoch."""
    before, measured = (run / "test.md").read_bytes(), encoding.similarities
    path = run / "model_best.pth"

    def replaced_meanwhile(*arguments):
        found = measured(*arguments)
        path.unlink()
        if not is_gone:
            shutil.copyfile(run / "last.pth", path)
        return found

    monkeypatch.setattr(encoding, "similarities", replaced_meanwhile)
    refusal(
        evaluation.main,
        run,
        "--save_results",
        1,
        expected=[path, "another file than the one that was evaluated"],
    )
    assert (run / "test.md").read_bytes() == before and not list(run.glob("*+*"))


def test_the_last_epoch_is_not_called_the_best(run, capsys):
    evaluate(run / "last.pth", "--report")
    assert "1 model; last epoch, not selected (after 1 epochs)" in capsys.readouterr().out
    assert entries(run)["test+checkpoint=last.pth"]["selected_on"] == []
    evaluate(run, run / "last.pth")
    assert (
        "best epoch by rsum on dev and last epoch, not selected (after 1, 1 epochs)"
        in capsys.readouterr().out
    )


def save_many(folder, name, count):
    scores = scores_by_label(np.eye(4).repeat(5, axis=1), "test")
    for number in range(count):
        report.save(folder, f"{name}{number}", "table", scores, {"name": name})


def test_two_evaluations_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=save_many, args=(tmp_path, name, 10)) for name in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    assert set(entries(tmp_path)) == {f"{name}{number}" for name in "ab" for number in range(10)}
    tables = {f"{name}.md" for name in entries(tmp_path)}
    assert set(run_folder.RunFolder(tmp_path).read()["files"]) == {"metrics.json", *tables}


def test_a_table_that_cannot_be_saved_is_printed_and_said(run, tmp_path, monkeypatch, capfd):
    """What goes elsewhere is written all the same."""
    original = os.open

    def refuse(path, *arguments, **settings):
        if str(path).startswith(str(run)):
            raise PermissionError(13, "Permission denied", str(run / "test.md"))
        return original(path, *arguments, **settings)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        patched.setattr("lib.system.files.os.open", refuse)
        command_line(lambda: evaluate(run, "--export", tmp_path / "exported"))
    printed = capfd.readouterr()
    assert ended.value.code == 2 and "| images |" in printed.out and printed.err.count("\n") == 1
    assert (
        "permission denied" in printed.err
        and "copy the checkpoint to a folder of your own" in printed.err
    )
    assert (tmp_path / "exported" / "README.md").exists()


def test_hostile_names_reach_no_file_raw(run, tmp_path, capsys):
    content = torch.load(run / "model_best.pth", weights_only=True)
    content["options"]["val_split"] = "dev\x1b[31m\n| 100 | 100 |"
    torch.save(content, run / "model_best.pth")
    evaluate(run)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "dev\\x1b[31m\\n| 100" in printed
    saved = (run / "test.md").read_text()
    assert "\x1b" not in saved and saved.splitlines()[0].endswith("(after 1 epochs)")


def test_saving_escapes_control_characters(tmp_path):
    save = partial(
        report.save,
        tmp_path,
        scores_by_label=scores_by_label(np.eye(4).repeat(5, axis=1), "test"),
        facts={},
    )
    save("test", "a\x1b[2Jb\x9b\ud800\n| c |")
    assert (tmp_path / "test.md").read_text() == "a\\x1b[2Jb\\x9b\\ud800\n| c |\n"
