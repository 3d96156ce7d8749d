"""SCAN, NAAF and CHAN as people run them: training, resuming, tables, ensembles, search, and what
they refuse; two processes are as one."""

import re
import shutil

import helpers
import numpy as np
import pytest
from helpers import Stopped, evaluate, make_data, read, same, shared, stop_at_step
from processes import in_processes

import eval as evaluation
import train
from lib import load
from lib.evaluation import metrics
from lib.system.errors import InputError

METHODS = "scan", "naaf", "chan"
OPTIONS = (
    "--dataset demo --num_epochs 2 --batch_size 20 --embed_size 16 --nhead 2 --word_dim 12 "
    "--log_step 1 --save_results 1"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shared(make_data(tmp_path_factory, train=40, dev=10, test=10))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A finished run of each method; tests leave them as they are."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        method: shared(helpers.fit([*OPTIONS, "--method", method], data, folder / method))
        for method in METHODS
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_its_table_is_repeated(trained, tmp_path, method):
    run = trained[method]
    assert f"method {method}," in (run / "train.txt").read_text()
    copied = shutil.copytree(run, tmp_path / "copied")
    (copied / "test.md").unlink()
    evaluate(copied)
    assert (copied / "test.md").read_bytes() == (run / "test.md").read_bytes()


@pytest.mark.parametrize("options", [
    "--cross_attention i2t --aggregation lse", "--match_norm softmax", "--text_encoder bert",
    "--region_mlp 1 --size_augment 1 --mask_padding 1", "--base_loss infonce",
])  # fmt: skip
def test_options_of_scan_train(data, tmp_path, options):
    run = helpers.fit(
        [*OPTIONS, "--method", "scan", *options.split(), "--num_epochs", "1"], data, tmp_path / "r"
    )
    assert read(run)["epoch"] == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_resumes_bit_for_bit(data, trained, tmp_path, monkeypatch, method):
    options, folder = [*OPTIONS, "--method", method, "--save_step", "3"], tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at_step(patched, 14)
        helpers.fit(options, data, folder)
    helpers.fit([*options, "--resume", "auto"], data, folder)
    for name in ("model_best.pth", "last.pth"):
        found, expected = read(folder, name), read(trained[method], name)
        for part in ("model", "optimizer", "step", "best_rsum"):
            assert same(found[part], expected[part]), f"{name}: {part}"


def test_the_thresholds_of_naaf_are_saved(trained):
    state = read(trained["naaf"], "last.pth")["model"]
    names = {name for name in state if "threshold" in name}
    assert names == {"similarity.naaf.threshold", "similarity.naaf.safe_threshold"}


def test_an_ensemble_is_the_mean_of_the_matrices(data, trained, tmp_path):
    first = shutil.copytree(trained["scan"], tmp_path / "scan")
    evaluate(first, trained["chan"], "--save_results", 1)
    (found,) = first.glob("results_demo+models=*.npy")
    parts = [np.load(trained[m] / "results_demo.npy")["sims"] for m in ("scan", "chan")]
    np.testing.assert_allclose(np.load(found)["sims"], sum(parts) / 2, atol=1e-6)


def test_a_model_of_embeddings_joins_an_ensemble(data, trained, tmp_path):
    vsepp = helpers.fit([*OPTIONS, "--method", "vsepp"], data, tmp_path / "vsepp")
    evaluate(vsepp, trained["scan"], "--bootstrap", 20)
    assert list(vsepp.glob("ensemble_*.md"))


def test_searches_find_what_the_similarities_say(trained, tmp_path, capsys):
    run = shutil.copytree(trained["scan"], tmp_path / "run")
    scores = np.load(run / "results_demo.npy")["sims"]
    capsys.readouterr()
    evaluate(run, "--query_image", 3, "--topk", 1)
    assert f"| 1 | {scores[3].max():.4f} | {scores[3].argmax()} |" in capsys.readouterr().out
    text = (tmp_path / "run" / "caption.txt", "a small red ball")[1]
    evaluate(run, "--query", text, "--topk", 2)
    assert "| 1 |" in capsys.readouterr().out and not list(run.glob("embeddings*"))


def test_the_model_scores_pairs_and_has_no_embeddings(data, trained):
    model, regions = load(trained["scan"]), np.load(data / "demo_precomp" / "test_ims.npy")
    texts = (data / "demo_precomp" / "test_caps.txt").read_text().splitlines()
    expected = np.load(trained["scan"] / "results_demo.npy")["sims"]
    np.testing.assert_allclose(model.similarities(regions, texts), expected, atol=1e-5)
    for encode in (lambda: model.encode_captions(["a dog"]), lambda: model.encode_images(regions)):
        with pytest.raises(InputError, match=r"similarities\(regions, texts\)"):
            encode()


def test_there_is_nothing_to_export(trained, tmp_path, refusal):
    refusal(
        evaluation.main, trained["scan"], "--export", tmp_path / "out",
        expected=["--export", "--similarity scan", "--save_results 1"],
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given, expected", [
    ("--similarity scan", ["--interaction fusion", "--interaction none", "--method scan"]),
    ("--similarity naaf --interaction none", ["--base_loss trip", "--base_loss vse"]),
    ("--method chan --interaction standalone", ["--interaction standalone"]),
    ("--method chan --decorrelation 0.1", ["--decorrelation 0.1", "--similarity chan"]),
])  # fmt: skip
def test_what_needs_embeddings_is_refused(data, tmp_path, refusal, given, expected):
    refusal(
        train.main, *OPTIONS, *given.split(), "--data_path", data, "--logger_name", tmp_path / "r",
        expected=expected,
    )  # fmt: skip


def test_cross_attention_models_start_only_from_their_like(data, trained, tmp_path, refusal):
    refusal(
        train.main, *OPTIONS, "--method", "naaf", "--data_path", data,
        "--logger_name", tmp_path / "r", "--init_from", trained["scan"],
        expected=["--similarity scan", "--similarity naaf"],
    )  # fmt: skip


def test_a_saved_matrix_of_scores_has_the_table_of_the_run(trained):
    saved = np.load(trained["naaf"] / "results_demo.npy")
    rows = (trained["naaf"] / "test.md").read_text().splitlines()
    rsum = metrics.scores(metrics.ranks(np.array(saved["sims"]))).rsum
    assert f"| {rsum:.1f} |" in rows[-1]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_two_processes_is_that_of_one(data, tmp_path, method):
    """In training the scores are those of the whole batch, thresholds included. With a BiGRU, which
    has no dropout."""
    options = [*OPTIONS, "--method", method, "--text_encoder", "bigru", "--num_epochs", "1"]
    helpers.fit(options, data, tmp_path / "one")
    in_processes(2, lambda: helpers.fit(options, data, tmp_path / "two") and None)
    texts = [(tmp_path / name / "train.txt").read_text() for name in ("one", "two")]
    expected, found = (
        np.array(re.findall(r"loss ([\d.]+) .*gradient ([\d.]+)", text), float) for text in texts
    )
    # later, rounding decides now and then which negative is the hardest
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)
    np.testing.assert_allclose(found[1, 0], expected[1, 0], rtol=1e-2)
