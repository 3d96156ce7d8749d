"""What evaluations leave in a run folder: names that say what they are of,
forms that scripts read."""

import json
import multiprocessing
import os
import pickletools
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from damage import OPTIONS, contents

import eval as evaluation
import train
from lib.evaluation import encoding, report
from lib.evaluation.result_names import SEEDS, ResultName, ensemble_id, escape
from lib.system import run_folder
from lib.system.errors import InputError, command_line

USUAL = ResultName("f30k", "f30k", "test", "test")
OTHERS = {
    "another split": dict(split="dev"),
    "another data set": dict(dataset="mine"),
    "a data set whose name holds that of another and a split": dict(dataset="f30k_dev"),
    "another checkpoint": dict(checkpoint="last.pth"),
    "another checkpoint of another split": dict(checkpoint="last.pth", split="dev"),
    "an ensemble": dict(models="01234567"),
    "another ensemble": dict(models="89abcdef"),
    "all seeds": dict(models=SEEDS),
    "all seeds, of another split": dict(models=SEEDS, split="dev"),
    "other data": dict(data="01234567"),
    "with intervals": dict(extras="bootstrap"),
    "with intervals and more": dict(extras="bootstrap-extended"),
    "a split called as an ensemble": dict(split="ensemble_test"),
    "a split with a border": dict(split="test+dataset=mine"),
    "a split with a blank": dict(split="a b"),
    "a split with an escape": dict(split="a=20b"),
}


def evaluate(*arguments):
    evaluation.main([str(argument) for argument in arguments])


def entries(run):
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_the_usual_case_has_the_short_names():
    names = USUAL.table(), USUAL.results(), USUAL.report(), USUAL.embeddings()
    assert names == (
        "test",
        "results_f30k.npy",
        "report.html",
        "embeddings_model_best_f30k_test.npz",
    )
    coco = ResultName("coco", "coco", "testall", "testall")
    assert (coco.table(), coco.report()) == ("testall", "report.html")


@pytest.mark.parametrize("kind", ["table", "results", "report"])
def test_no_two_things_have_the_same_name(kind):
    others = [
        changes for changes in OTHERS.values() if kind != "results" or "extras" not in changes
    ]
    names = [getattr(USUAL._replace(**changes), kind)() for changes in ({}, *others)]
    assert len(set(names)) == len(names)
    for name in names:  # names that the manifest takes
        assert run_folder.OWN_NAMES.fullmatch(name if kind != "table" else f"{name}.md"), name


def test_names_say_what_is_different():
    other = USUAL._replace(split="dev", dataset="coco", checkpoint="last.pth")
    assert other.table() == "dev+dataset=coco+checkpoint=last.pth"
    assert other.results() == "results_coco+split=dev+checkpoint=last.pth.npy"
    assert other.report() == "report_dev+dataset=coco+checkpoint=last.pth.html"


def test_characters_that_files_may_not_have_are_escaped_each_differently():
    texts = ["a/b", "a b", "a=b", "a=20b", "a\nb", "../x", "é", "\udcff", "a+b", "a|b", ""]
    names = [escape(text) for text in texts]
    assert len(set(names)) == len(names) and not set("".join(names)) & set("/\n+|")
    assert escape("é_-. ") == "é_-. " and escape("a/b") == "a=2fb"


def test_an_ensemble_is_named_by_its_members_in_any_order():
    members = ["runs/a/model_best.pth", "runs/b/model_best.pth"]
    assert ensemble_id(members, "runs/a") == ensemble_id(members[::-1], "runs/a")
    assert ensemble_id(members, "runs/a") == ensemble_id(
        [f"/x/{name}" for name in members], "/x/runs/a"
    )
    assert ensemble_id(members, "runs/a") != ensemble_id(
        [*members, "runs/c/model_best.pth"], "runs/a"
    )


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
            r"\nsaved as .*/test\+data=[0-9a-f]{8}.md \(other data under this name .*\)\n", printed
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


def published(run):
    evaluate(run, "--save_results", "published")
    return run / "results_demo.npy"


def test_existing_scripts_read_the_published_form(run, finished):
    expected = np.load(finished / "results_demo.npy")["sims"]
    path = published(run)
    for found in (
        np.load(path, allow_pickle=True).item(),
        np.load(path, allow_pickle=True).tolist(),
    ):
        assert isinstance(found, dict) and found["npts"] == 10
        np.testing.assert_array_equal(found["sims"], expected)
        assert found["sims"].dtype == np.float32 and found["sims"].flags.c_contiguous
    npts, sims = report.load_similarities(path, allow_pickle=True)
    assert npts == 10 and (sims == expected).all()
    with pytest.raises(InputError, match="allow_pickle=True"):
        report.load_similarities(path)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(path)
    with pytest.raises(IndexError):
        np.load(path, allow_pickle=True)["sims"]  # the array holds the dict


def test_training_saves_the_published_form_too(whole, finished, tmp_path):
    argv = [
        *OPTIONS,
        "--data_path",
        str(whole),
        "--logger_name",
        str(tmp_path / "run"),
        "--save_results",
        "published",
    ]
    train.main(argv)
    found = np.load(tmp_path / "run" / "results_demo.npy", allow_pickle=True).item()
    np.testing.assert_array_equal(found["sims"], np.load(finished / "results_demo.npy")["sims"])


def test_the_published_form_names_no_module_that_older_versions_of_numpy_lack(run):
    with open(published(run), "rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        names = [
            argument for opcode, argument, _ in pickletools.genops(file) if opcode.name == "GLOBAL"
        ]
    assert "numpy.core.multiarray _reconstruct" in names and not [
        name for name in names if "_core" in name
    ]


def test_the_plain_form_is_read_as_the_documentation_says(finished):
    found = np.load(finished / "results_demo.npy")
    assert found["sims"].shape == (10, 50) and found["npts"] == 10
    assert np.load(finished / "results_demo.npy", allow_pickle=True)["sims"].shape == (10, 50)
    with pytest.raises(TypeError):
        found.item()["sims"]  # what --save_results published is for
    assert report.load_similarities(finished / "results_demo.npy")[1].shape == (10, 50)


@pytest.mark.parametrize("value", ["2", "yes", "plain", "-1"])
def test_no_other_form_is_taken(run, refusal, value):
    refusal(evaluation.main, run, "--save_results", value, expected=["--save_results", "expected"])


def save_many(folder, name, count):
    scores = report.tables(np.eye(4).repeat(5, axis=1), "test")
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
def test_a_file_of_somebody_else_is_refused_before_anything_is_computed(run, refusal, name, change):
    evaluate(run, "--report")
    without_manifest(run)
    change(run / name)
    before = {path.name: path.lstat().st_mtime_ns for path in run.iterdir()}
    error = refusal(evaluation.main, run, "--report", "--save_results", 1, expected=[name, "move"])
    assert "printed" not in error
    assert {path.name: path.lstat().st_mtime_ns for path in run.iterdir()} == before


def as_folder(path):
    path.unlink()
    (path / "mine").mkdir(parents=True)


@pytest.mark.parametrize("name", ["test.md", "metrics.json", "results_demo.npy", "report.html"])
@pytest.mark.parametrize("change", [as_link, as_pipe, as_folder])
def test_what_stands_in_place_of_our_file_is_not_ours_whatever_the_manifest_says(
    run, refusal, name, change
):
    evaluate(run, "--report", "--save_results", 1)
    change(run / name)
    before = {path.name: path.lstat().st_mtime_ns for path in run.iterdir()}
    error = refusal(evaluation.main, run, "--report", "--save_results", 1, expected=[name, "move"])
    assert "printed" not in error
    assert {path.name: path.lstat().st_mtime_ns for path in run.iterdir()} == before


def test_published_run_folders_get_new_files_alone(run, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    shutil.copy(run / "model_best.pth", folder)
    np.save(folder / "results_demo.npy", {"npts": 1, "sims": np.eye(2)})
    before = contents(folder)
    evaluate(folder, "--split", "dev", "--save_results", 1)
    after = contents(folder)
    assert {name: after[name] for name in before} == before and (folder / "dev.md").exists()


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
        and "copy the checkpoint into a folder of your own" in printed.err
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
        scores_by_label=report.tables(np.eye(4).repeat(5, axis=1), "test"),
        facts={},
    )
    save("test", "a\x1b[2Jb\x9b\ud800\n| c |")
    assert (tmp_path / "test.md").read_text() == "a\\x1b[2Jb\\x9b\\ud800\n| c |\n"
