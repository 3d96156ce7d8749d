"""Conventions of a data set: the split that is reported on, and the distance of negatives."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import arguments
import eval as evaluation
import train
from lib.data import demo
from lib.data.conventions import conventions
from lib.evaluation import extended, metrics, table
from lib.training import run_parts

OPTIONS = (
    "--num_epochs 1 --batch_size 10 --embed_size 16 --nhead 2 --workers 0 --warmup 0 --log_step 1"
)
WITH, WITHOUT = ("train", "dev", "test", "testall"), ("train", "dev", "test")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo_precomp"
    demo.build(folder, sizes={"train": 20, "dev": 10, "test": 15})
    return folder


@pytest.fixture
def made(demo_folder, tmp_path):
    """Make a data set of some splits; testall has 15 images, of which test are the first 5.
    Gives options for it."""

    def make(name, splits):
        folder = tmp_path / "data" / f"{name}_precomp"
        folder.mkdir(parents=True)
        for split in splits:
            source = "test" if split == "testall" else split
            array = np.load(demo_folder / f"{source}_ims.npy")
            lines = (demo_folder / f"{source}_caps.txt").read_text().splitlines(keepends=True)
            count = 5 if split == "test" else len(array)
            np.save(folder / f"{split}_ims.npy", array[:count])
            (folder / f"{split}_caps.txt").write_text("".join(lines[: 5 * count]))
        return [
            "--data_path",
            str(folder.parent),
            "--dataset",
            name,
            "--bert_path",
            str(demo_folder / "bert"),
        ]

    return make


def fit(options, folder, *more):
    """Train. Returns the scores on the test split and the options in the checkpoint."""
    (found,) = train.main([*options, *OPTIONS.split(), "--logger_name", str(folder), *more])
    return found.scores, torch.load(folder / "model_best.pth", weights_only=True)["options"]


def distance_of(argv):
    """The maximum distance of sampled negatives with these options."""
    parser = arguments.training_parser()
    options = arguments.parse_training(parser, argv)
    run_parts.choose_conventions(options, {})
    return run_parts.build_objective(options).options.longest_distance


CHOICES = [  # name, splits -> split that is reported on, maximum distance, part of the note
    ("f30k", WITHOUT, "test", 1.7, None),
    ("mine", WITHOUT, "test", 1.7, None),
    ("coco", WITH, "testall", 1.9, None),
    ("coco_butd", WITH, "testall", 1.9, None),
    ("coco", WITHOUT, "test", 1.9, "contains no testall"),
    ("COCO", WITHOUT, "test", 1.9, "contains no testall"),
    (
        "mscoco",
        WITH,
        "testall",
        1.9,
        "contains testall, like COCO, although its name does not begin with coco",
    ),
    ("mine", ("train", "dev", "testall"), "testall", 1.9, "contains testall"),
    ("mine", ("train", "dev"), "none", 1.7, None),
    ("coco", ("train", "dev"), "none", 1.9, None),
]


@pytest.mark.parametrize("name, splits, split, distance, note", CHOICES)
def test_name_and_files_decide(tmp_path, name, splits, split, distance, note):
    for one in splits:
        (tmp_path / f"{one}_ims.npy").touch()
    found = conventions(tmp_path, name)
    assert found[:2] == (split, distance)
    assert note in found.note if note else found.note is None
    (tmp_path / "testall_ims.npy").unlink(missing_ok=True)
    # a split with a missing file counts as present, and is refused when it is opened
    (tmp_path / "testall_caps.txt").touch()
    assert conventions(tmp_path, name).test_split == "testall"


@pytest.mark.parametrize("name", ["coco", "coco_butd"])
def test_both_programs_report_coco_on_testall(made, tmp_path, name, capsys):
    options = made(name, WITH)
    scores, recorded = fit(options, tmp_path / "run")
    labels = ["3 (mean of 5 folds)", "15"]
    assert list(scores) == labels and (recorded["test_split"], recorded["longest_distance"]) == (
        "testall",
        1.9,
    )
    assert distance_of(options) == 1.9
    printed = capsys.readouterr().out
    assert f"{name}, split testall: 15 images, 75 captions" in printed and "holds" not in printed
    for argv in ([], options):
        evaluation.main([str(tmp_path / "run"), *argv])
        printed = capsys.readouterr().out
        assert (
            f"{name}, split testall: 15 images, 75 captions" in printed and "holds" not in printed
        )
        assert re.findall(r"^\| (\d.*?) \|", printed, re.MULTILINE) == labels
    evaluation.main([str(tmp_path / "run"), "--split", "test"])
    printed = capsys.readouterr().out
    assert f"{name}, split test: 5 images, 25 captions" in printed and "folds" not in printed


def test_the_folds_and_the_whole_of_testall(made, tmp_path, monkeypatch):
    """The mean of the tables of five folds, and the table of all images."""
    options = made("coco", WITH)
    seen, tables = [], table.scores_by_label
    monkeypatch.setattr(
        table, "scores_by_label", lambda *given: seen.append(given[0]) or tables(*given)
    )
    scores, _ = fit(options, tmp_path / "run")
    whole = seen[0][:, :]
    folds = [
        metrics.scores(metrics.ranks(whole[3 * n : 3 * n + 3, 15 * n : 15 * n + 15]))
        for n in range(5)
    ]
    np.testing.assert_allclose(np.mean(folds, axis=0), np.array(scores["3 (mean of 5 folds)"]))
    assert scores["15"] == metrics.scores(metrics.ranks(whole))


def test_extended_compares_the_whole_of_testall(made, tmp_path, monkeypatch, capsys):
    """The package's recalls over all images are those of the row of all images,
    not of the folds."""

    def measure(package, similarity):
        found = metrics.scores(metrics.ranks(similarity[:, :]))
        ours = dict(i2t=found.image_to_text, t2i=found.text_to_image)
        recalls = {
            f"coco_5k_r{cut}": {way: ours[way][n] for way in ours}
            for n, cut in enumerate((1, 5, 10))
        }
        return recalls | {
            name: dict(i2t=1.0, t2i=2.0) for names in extended.COLUMNS.values() for name in names
        }

    monkeypatch.setattr(extended, "annotations", lambda index: None)
    monkeypatch.setattr(extended, "measure", measure)
    scores, _ = fit(made("coco", WITH), tmp_path / "run")
    assert scores["15"][0][:3] != scores["3 (mean of 5 folds)"][0][:3]
    capsys.readouterr()
    evaluation.main([str(tmp_path / "run"), "--extended"])
    assert "| ECCV Caption | 1.0 |" in capsys.readouterr().out


def test_testall_under_another_name_is_told_of(made, tmp_path, capsys):
    options = made("mscoco", WITH)
    scores, recorded = fit(options, tmp_path / "run")
    assert len(scores) == 2 and (recorded["test_split"], recorded["longest_distance"]) == (
        "testall",
        1.9,
    )
    printed = capsys.readouterr().out
    assert (
        printed.count(
            "mscoco_precomp: contains testall, like COCO, although its name does not begin with "
            "coco"
        )
        == 1
    )
    assert (
        "--test_split test --longest_distance 1.7" in printed
        and "split testall: 15 images" in printed
    )


def test_a_run_is_evaluated_as_it_was_reported(made, tmp_path, capsys):
    options = made("mscoco", WITH)
    scores, recorded = fit(
        options, tmp_path / "run", "--test_split", "test", "--longest_distance", "1.7"
    )
    assert list(scores) == ["5"] and (recorded["test_split"], recorded["longest_distance"]) == (
        "test",
        1.7,
    )
    assert "contains testall" not in capsys.readouterr().out
    assert distance_of([*options, "--longest_distance", "1.5"]) == 1.5
    assert "contains testall" in capsys.readouterr().out  # because the test split was not given
    for more in ([], options):
        evaluation.main([str(tmp_path / "run"), *more])
        printed = capsys.readouterr().out
        assert (
            "mscoco, split test: 5 images, 25 captions" in printed
            and "contains testall" not in printed
        )
    other = made("coco", WITH)  # what was recorded is of the run's own data
    evaluation.main([str(tmp_path / "run"), *other])
    assert "coco, split testall: 15 images" in capsys.readouterr().out


def test_a_run_that_goes_on_keeps_what_it_began_with(made, tmp_path, refusal):
    options = made("mine", WITHOUT)
    fit(options, tmp_path / "run", "--longest_distance", "1.5")
    folder = tmp_path / "data" / "mine_precomp"
    for end in ("ims.npy", "caps.txt"):
        shutil.copy(folder / f"test_{end}", folder / f"testall_{end}")
    again = [
        *OPTIONS.replace("--num_epochs 1", "--num_epochs 2").split(),
        "--logger_name",
        str(tmp_path / "run"),
    ]
    again += ["--resume", "auto"]
    (found,) = train.main([*options, *again])
    assert list(found.scores) == ["5"]
    assert (
        torch.load(tmp_path / "run" / "last.pth", weights_only=True)["options"]["longest_distance"]
        == 1.5
    )
    refusal(
        train.main,
        *options,
        *again,
        "--longest_distance",
        "1.9",
        expected=["--longest_distance 1.5"],
    )
    refusal(
        train.main,
        *options,
        *again,
        "--test_split",
        "testall",
        expected=["expected --test_split test"],
    )


def test_runs_from_before_the_options_go_by_their_name(made):
    options = made("mscoco", WITH)
    parser = arguments.training_parser()
    for name, argv, expected in (("mscoco", [], 1.7), ("coco", ["--dataset", "coco"], 1.9)):
        if argv:
            made(name, WITH)
        parsed = arguments.parse_training(parser, [*options, *argv])
        run_parts.choose_conventions(parsed, dict(dataset=name))
        assert (parsed.test_split, parsed.longest_distance) == ("testall", expected)


@pytest.mark.parametrize(
    "splits, more", [(("train", "dev"), []), (WITHOUT, ["--test_split", "none"])]
)
def test_training_without_a_test_split_ends_well(made, tmp_path, splits, more):
    options, run = made("mine", splits), tmp_path / "run"
    scores, recorded = fit(options, run, *more)
    assert scores == {} and recorded["test_split"] == "none"
    for name in ("train.txt", "eval.txt"):
        assert "no test table" in (run / name).read_text()
    assert "validations; * marks the best" in (run / "eval.txt").read_text()
    assert not list(run.glob("test*.md")) and (run / "model_best.pth").exists()
    evaluation.main([str(run), "--split", "dev"])


def test_evaluation_without_a_test_split_names_the_option(made, tmp_path, refusal):
    options = made("mine", ("train", "dev"))
    fit(options, tmp_path / "run")
    expected = ["mine_precomp: no test split", "--split dev"]
    refusal(evaluation.main, tmp_path / "run", expected=expected)


def test_a_test_split_that_is_not_there_is_refused(made, tmp_path, refusal):
    options = made("mine", WITHOUT)
    expected = ["testall_ims.npy: no such file"]
    argv = [
        *options,
        *OPTIONS.split(),
        "--logger_name",
        tmp_path / "run",
        "--test_split",
        "testall",
    ]
    refusal(train.main, *argv, expected=expected)
    (tmp_path / "data" / "mine_precomp" / "test_ims.npy").unlink()
    refusal(train.main, *argv[:-2], expected=["test_ims.npy: no such file"])


def test_metrics_name_the_split(made, tmp_path):
    fit(made("coco", WITH), tmp_path / "run")
    (entry,) = json.loads((tmp_path / "run" / "metrics.json").read_text()).values()
    assert entry["split"] == "testall" and set(entry["scores"]) == {"3 (mean of 5 folds)", "15"}
