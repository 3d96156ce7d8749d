"""The programs as people run them, through main([...]), on a small demo data set."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from functools import partial

import helpers
import numpy as np
import pytest
import torch
from helpers import evaluate, make_data, read, same, scalars, shared
from published import SHAPES

from lib.data import demo
from lib.evaluation import metrics
from lib.model import bert, published
from lib.system.run_folder import RunFolder
from lib.training import logs

SIZES = {"train": 60, "dev": 20, "test": 20}
OPTIONS = (
    "--dataset demo --num_epochs 2 --batch_size 30 --embed_size 32 --nhead 2 --warmup 12 "
    "--log_step 4 --learning_rate 0.002"
)
FOLDER_FILES = {"run_manifest.json", ".run_manifest.lock", ".lock"}
HEADER = (
    "| images | I2T R@1 | R@5 | R@10 | median | mean | T2I "
    "R@1 | R@5 | R@10 | median | mean | rsum |"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, **SIZES)


fit = partial(helpers.fit, OPTIONS.split())


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """The run folder of a finished training; tests leave it as it is."""
    return shared(fit(data, tmp_path_factory.mktemp("run") / "first"))


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copied")


def test_a_run_leaves_its_files(run):
    names = {re.sub(r"tfevents\..*", "tfevents", path.name) for path in run.iterdir()}
    assert names == {
        "Parameters.txt", "train.txt", "eval.txt", "events.out.tfevents", "model_best.pth",
        "last.pth", "test.md", "metrics.json", "results_demo.npy", *FOLDER_FILES,
    }  # fmt: skip


def test_the_program_that_shows_the_curves_starts():
    found = subprocess.run(
        [sys.executable, "-m", "tensorboard.main", "--version"], capture_output=True, text=True
    )
    assert found.returncode == 0 and re.fullmatch(r"2\.\d+\.\d+", found.stdout.strip()), (
        found.stderr
    )


def test_the_log_says_once_what_runs_where(run):
    log = (run / "train.txt").read_text()
    for line in (
        "train: train split of",
        "60 images x 36 regions x 128, 300 captions",
        "parameters: image encoder",
        "device cpu",
        "seed 0",
        "graph from step 12 on",
        "best epoch by rsum on dev is kept in",
    ):
        assert log.count(line) == 1
    assert "epoch 1 step 14: loss" in log and "cross" in log and "regulariser" in log
    assert "mask_weight: 1.0\n" in (run / "Parameters.txt").read_text()


def test_a_warm_up_that_the_run_does_not_end_is_told(data, run, tmp_path):
    assert "warning: --warmup" not in (run / "train.txt").read_text()
    log = (
        fit(data, tmp_path / "run", "--num_epochs", "1", "--warmup", "10") / "train.txt"
    ).read_text()
    assert log.count("warning: --warmup 10 is not over within the 10 steps of this run") == 1
    log = (
        fit(data, tmp_path / "none", "--num_epochs", "1", "--interaction", "none") / "train.txt"
    ).read_text()
    assert "warning: --warmup" not in log


def test_the_graph_joins_after_the_warm_up(run):
    lines = [
        line for line in (run / "train.txt").read_text().splitlines() if line.startswith("epoch")
    ]
    assert [int(re.search(r"step (\d+)", line)[1]) for line in lines if "cross" in line] == [
        14,
        18,
        20,
    ]
    assert [int(re.search(r"step (\d+)", line)[1]) for line in lines if "cross" not in line] == [
        4,
        8,
        10,
    ]


def test_tensorboard_reads_the_published_scalars_back(run):
    found = scalars(run)
    validation = [
        "r1",
        "r5",
        "r10",
        "medr",
        "meanr",
        "r1i",
        "r5i",
        "r10i",
        "medri",
        "meanri",
        "rsum",
    ]
    assert {"epoch", "step", "batch_time", "data_time", "Iter", "lr", "Loss", *validation} <= set(
        found
    )
    assert [step for step, _ in found["rsum"]] == [10, 20]
    assert found["Iter"] == [(step, step) for step in (4, 8, 10, 14, 18, 20)]
    assert [value for _, value in found["step"]] == [4, 8, 10, 4, 8, 10]
    assert [value for _, value in found["lr"]] == pytest.approx([0.002] * 6)
    logged = [
        float(text) for text in re.findall(r"rsum (\d+\.\d)", (run / "eval.txt").read_text())[:2]
    ]
    assert [value for _, value in found["rsum"]] == pytest.approx(logged, abs=0.06)


def test_the_same_seed_gives_the_same_logs_and_weights(run, data, tmp_path):
    again = fit(
        data, tmp_path / "first", "--workers", "2", "--model_name", str(tmp_path / "models")
    )
    ours, theirs = read(run), read(tmp_path / "models")
    for content in (ours, theirs):
        content["options"] = {
            k: v
            for k, v in content["options"].items()
            if k not in ("logger_name", "model_name", "workers")
        }
    assert same(ours, theirs)
    for name in ("train.txt", "eval.txt"):
        expected = (run / name).read_text().replace(str(run), str(tmp_path / "models"))
        assert (again / name).read_text() == expected
    assert (again / "results_demo.npy").read_bytes() == (run / "results_demo.npy").read_bytes()


def test_another_seed_gives_another_model(run, data, tmp_path):
    other = fit(data, tmp_path / "other", "--seed", "1", "--num_epochs", "1")
    assert not same(read(run)["model"], read(other)["model"])


def test_our_checkpoint_holds_all_that_is_trained_or_counted(run):
    content = read(run)
    assert set(content) == {
        "is_average",
        "format", "model", "objective", "optimizer", "epoch", "step", "best_rsum", "options",
        "vocabulary", "reader", "bert", "extraction",
    }  # fmt: skip
    assert isinstance(content["options"], dict) and content["options"]["val_split"] == "dev"
    assert content["step"] == 10 * content["epoch"]
    trained = sum(
        1
        for name in content["model"] | content["objective"]
        if not re.search(r"running|num_batches", name)
    )
    moments = content["optimizer"]["state"].values()
    assert sum(len(group["params"]) for group in content["optimizer"]["param_groups"]) == trained
    assert all({"step", "exp_avg", "exp_avg_sq"} <= set(moment) for moment in moments)


def test_evaluation_repeats_the_table_of_training(run, copied, data, capsys):
    evaluate("--model_path", copied, "--save_results", 1)
    printed = capsys.readouterr().out
    assert (
        HEADER in printed
        and "best epoch by rsum on dev" in printed
        and "split test: 20 images, 100 captions" in printed
    )
    for name in ("test.md", "metrics.json", "results_demo.npy"):
        assert (copied / name).read_bytes() == (run / name).read_bytes()


def test_the_table_is_that_of_the_similarities(run):
    saved = np.load(run / "results_demo.npy", allow_pickle=False)
    assert (
        saved["npts"] == 20
        and saved["sims"].shape == (20, 100)
        and saved["sims"].dtype == np.float32
    )
    expected = metrics.scores(metrics.ranks(saved["sims"]))
    entry = json.loads((run / "metrics.json").read_text())["test"]
    assert entry["scores"]["20"]["rsum"] == pytest.approx(expected.rsum)
    assert entry["scores"]["20"]["i2t"] == expected.image_to_text._asdict()
    assert entry["selected_on"] == ["dev"] and entry["seeds"] == [0]
    assert (
        entry["options"][0]["mask_weight"] == 1.0
        and entry["versions"]["torch"] == torch.__version__
    )
    assert f"| {expected.rsum:.1f} |" in (run / "test.md").read_text()


def test_another_split_gets_a_table_of_its_own(copied, capsys):
    evaluate("--model_path", copied / "model_best.pth", "--split", "dev")
    best = read(copied)["best_rsum"]
    assert f"| {best:.1f} |" in capsys.readouterr().out
    assert (
        set(json.loads((copied / "metrics.json").read_text())) == {"test", "dev"}
        and (copied / "dev.md").exists()
    )


def test_an_ensemble_is_the_mean_of_similarities(copied, data, tmp_path, capsys):
    other = fit(data, tmp_path / "other", "--seed", "1", "--num_epochs", "1")
    evaluate("--model_path", copied, "--model_path", other, "--save_results", 1)
    assert "ensemble of 2 models (mean of similarities)" in capsys.readouterr().out
    (key,) = {*json.loads((copied / "metrics.json").read_text())} - {"test"}
    assert (
        re.fullmatch(r"ensemble_test\+models=[0-9a-f]{8}", key) and (copied / f"{key}.md").exists()
    )
    fresh = np.load(copied / f"results_demo+{key.split('+')[1]}.npy")["sims"]
    single = np.load(other / "results_demo.npy")["sims"]
    np.testing.assert_allclose(
        fresh, (np.load(copied / "results_demo.npy")["sims"] + single) / 2, atol=1e-6
    )
    entry = json.loads((copied / "metrics.json").read_text())[key]
    assert entry["num_models"] == 2 and entry["checkpoints"] == [
        "model_best.pth",
        "../other/model_best.pth",
    ]


def as_published(folder, path, prefix="", **options):
    """Write the model of a run in the published format, as docs/method.md, section 8 has it."""
    ours = read(folder)
    tables = {"image_encoder.": published.IMAGE_NAMES, "text_encoder.": published.TEXT_NAMES}
    states = []
    for part, table in tables.items():
        state = {}
        for name in [
            *SHAPES[part.rstrip(".")],
            *(n for n in _bert_names(ours) if part == "text_encoder."),
        ]:
            for renamed in published.rename({name: None}, table):
                if part + renamed in ours["model"]:
                    state[prefix + name] = ours["model"][part + renamed]
        states.append(state)
    states[0][prefix + "fc.mlp.bns.1.weight"] = torch.ones(32)
    states[1][prefix + "bert.pooler.dense.weight"] = torch.ones(128, 128)
    states[1][prefix + "bert.embeddings.position_ids"] = torch.arange(64)[None]
    opt = argparse.Namespace(
        embed_size=32, nhead=2, dropout=0.1, residual_weight=0.8, no_imgnorm=False,
        no_txtnorm=False, data_path="/none", dataset="demo", bert_path="/none/bert", **options,
    )  # fmt: skip
    torch.save({"epoch": 7, "model": states, "best_rsum": 1.5, "opt": opt, "Eiters": 20}, path)


def _bert_names(ours):
    return [
        name.removeprefix("text_encoder.")
        for name in ours["model"]
        if name.startswith("text_encoder.bert.")
    ]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_evaluates_as_it_is(run, data, tmp_path, prefix, capsys):
    as_published(run, tmp_path / "theirs.pth", prefix)
    bert_path = data / "demo_precomp" / "bert"
    evaluate(
        "--model_path",
        tmp_path / "theirs.pth",
        "--data_path",
        data,
        "--bert_path",
        bert_path,
        "--save_results",
        1,
    )
    assert "best epoch by rsum on test (after 7 epochs)" in capsys.readouterr().out
    files = run / "results_demo.npy", tmp_path / "results_demo+checkpoint=theirs.pth.npy"
    ours, theirs = (np.load(file)["sims"] for file in files)
    np.testing.assert_array_equal(ours, theirs)


def test_val_step_validates_inside_an_epoch(data, tmp_path):
    folder = fit(data, tmp_path / "run", "--num_epochs", "1", "--val_step", "4")
    assert [step for step, _ in scalars(folder)["rsum"]] == [4, 8, 10]


def test_val_split_test_repeats_the_published_protocol(data, tmp_path):
    folder = fit(data, tmp_path / "run", "--num_epochs", "1", "--val_split", "test")
    entry = json.loads((folder / "metrics.json").read_text())["test"]
    assert entry["selected_on"] == ["test"]
    assert entry["scores"]["20"]["rsum"] == pytest.approx(read(folder)["best_rsum"])


@pytest.mark.parametrize(
    "options",
    [
        "--base_loss vse --gnn_loss vse",
        "--base_loss vse --max_violation --mask_repeat 0 --margin 0.1",
        "--no_imgnorm --no_txtnorm --norm_input 0",
        "--size_augment 0 --cross_loss 0 --reg_loss_weight 0",
        "--mask_weight 0 --threshold 0.01 --topk 40 --num_layers_enc 2",
        "--batch_size 2 --warmup 0 --save_results 0",
    ],
)
def test_other_options_train(data, tmp_path, options, monkeypatch):
    monkeypatch.setattr("lib.data.batches.EpochSampler.__len__", lambda sampler: 3)
    folder = fit(data, tmp_path / "run", "--num_epochs", "1", "--warmup", "1", *options.split())
    assert "skipped" not in (folder / "train.txt").read_text() and (folder / "test.md").exists()


def test_training_goes_on_without_tensorboard_logger(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logs, "TensorBoard", None)
    monkeypatch.setattr(
        logs, "WHY_NO_TENSORBOARD", "No module named 'tensorboard_logger'", raising=False
    )
    folder = fit(data, tmp_path / "run", "--num_epochs", "1")
    assert (
        "TensorBoard curves are not written: tensorboard_logger does not import"
        in capsys.readouterr().out
    )
    assert (folder / "test.md").exists() and not list(folder.glob("events*"))


def test_a_finished_run_is_replaced_only_when_asked(copied, data, capsys):
    before = (copied / "model_best.pth").read_bytes()
    with pytest.raises(ValueError, match="--overwrite 1"):
        fit(data, copied)
    assert (copied / "model_best.pth").read_bytes() == before
    # as evaluations do
    RunFolder(copied).claim("dev.md", "report.html", "embeddings_model_best_demo_test.npz")
    for name in ("dev.md", "report.html", "embeddings_model_best_demo_test.npz"):
        (copied / name).touch()
    others = {
        "notes.md",
        "report_mine.html",
        "results_mine.npy",
        "embeddings_mine.npz",
        "events.out.tfevents.1.mine",
    }
    for name in others:
        (copied / name).write_text("mine")
    fit(data, copied, "--overwrite", "1", "--num_epochs", "1", "--save_results", "0")
    for name in others:
        assert (copied / name).read_text() == "mine"
        (copied / name).unlink()
    left = {
        path.name
        for path in copied.iterdir()
        if "tfevents" not in path.name and path.name[0] != "."
    }
    assert left == {
        "Parameters.txt", "train.txt", "eval.txt", "model_best.pth", "last.pth", "test.md",
        "metrics.json",
        "run_manifest.json",
    }  # fmt: skip
    assert (copied / "metrics.json").read_text().count('"versions"') == 1  # of the test split alone
    assert len(list(copied.glob("events*"))) == 1 and [
        step for step, _ in scalars(copied)["rsum"]
    ] == [10]


def test_the_demo_data_are_built_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.build, "__defaults__", (0, SIZES))
    fit(tmp_path / "new", tmp_path / "run", "--num_epochs", "1")
    assert bert.configuration(tmp_path / "new" / "demo_precomp" / "bert").model_type == "bert"


def test_nothing_is_drawn_on_a_terminal_that_is_none(data, tmp_path, capfd):
    fit(data, tmp_path / "run", "--num_epochs", "1")
    printed = capfd.readouterr()
    assert "it/s" not in printed.err + printed.out and "\r" not in printed.err + printed.out
