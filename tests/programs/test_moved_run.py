"""A run folder is complete: moved elsewhere, with the BERT folder gone, it is evaluated, searched,
exported and resumed as before. Evaluation never builds data."""

import shutil
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from helpers import Stopped, evaluate, make_data, read, same, shared, stop_at_step
from processes import run_program

import train
from lib import load
from lib.model import checkpoint
from lib.system.errors import InputError

OPTIONS = (
    "--dataset demo --num_epochs 2 --batch_size 30 --embed_size 32 --nhead 2 --warmup 4 "
    "--log_step 4 --save_results 0"
).split()
TABLES = "test.md", "metrics.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Data and a finished run on them; tests leave both as they are."""
    data = shared(make_data(tmp_path_factory, train=60, dev=20, test=20))
    run = helpers.fit(OPTIONS, data, tmp_path_factory.mktemp("runs") / "first")
    return data, shared(run)


@pytest.fixture
def moved(original, tmp_path, monkeypatch):
    """The run and its data elsewhere, no BERT beside the data, and another working directory."""
    data, run = original
    without_bert = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(without_bert / "demo_precomp" / "bert")
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    return without_bert, Path(shutil.copytree(run, tmp_path / "moved"))


@pytest.fixture
def lost_bert(original, monkeypatch):
    """Call it: the BERT folder that the run names is no longer there."""
    folder = original[0] / "demo_precomp" / "bert"
    hidden = folder.with_name("hidden")
    yield lambda: folder.rename(hidden)
    if hidden.exists():
        hidden.rename(folder)


def test_a_moved_run_gives_the_same_table(original, moved, lost_bert):
    lost_bert()
    data, folder = moved
    for name in TABLES:
        (folder / name).unlink()
    evaluate("--model_path", folder, "--data_path", data)
    assert (folder / "test.md").read_bytes() == (original[1] / "test.md").read_bytes()


def test_a_moved_run_searches_and_exports(original, moved, lost_bert, tmp_path, capsys):
    lost_bert()
    data, folder = moved
    evaluate(folder, "--data_path", data, "--query", "a small red square", "--topk", 3)
    assert capsys.readouterr().out.count("\n") > 3
    evaluate(folder, "--data_path", data, "--export", tmp_path / "vectors")
    assert np.load(tmp_path / "vectors" / "caption_embeddings.npy").shape == (100, 32)


def test_load_needs_no_file_but_the_checkpoint(original, moved, lost_bert, tmp_path):
    data, run = original
    expected = load(run).encode_captions(["a red circle", "two green squares"])
    lost_bert()
    alone = shutil.copy(run / "model_best.pth", tmp_path / "alone.pth")
    found = load(alone).encode_captions(["a red circle", "two green squares"])
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_a_moved_run_resumes_bit_for_bit(original, moved, lost_bert, tmp_path, monkeypatch, capsys):
    data, whole = original
    options, folder = [*OPTIONS, "--save_step", "5"], tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at_step(patched, 12)
        helpers.fit(options, data, folder)
    lost_bert()
    here = Path(shutil.move(folder, tmp_path / "continued"))
    helpers.fit([*options, "--resume", "auto"], moved[0], here)
    assert "the BERT kept in" in capsys.readouterr().out
    for name in ("model_best.pth", "last.pth"):
        found, expected = read(here, name), read(whole, name)
        for part in ("model", "objective", "optimizer", "epoch", "step", "best_rsum", "bert"):
            assert same(found[part], expected[part]), f"{name}: {part}"


def test_training_starts_from_a_moved_model(moved, lost_bert, tmp_path, capsys):
    lost_bert()
    data, folder = moved
    start = ["--init_from", folder / "model_best.pth"]
    helpers.fit([*OPTIONS, "--num_epochs", "1"], data, tmp_path / "second", *start)
    assert "the BERT kept in" in capsys.readouterr().out


def test_another_bert_is_not_replaced_by_the_kept_one(moved, refusal, tmp_path):
    data, folder = moved
    refusal(
        train.main, *OPTIONS, "--num_epochs", 3, "--data_path", data, "--logger_name", folder,
        "--resume", "auto", "--bert_path", tmp_path / "nowhere",
        expected=["nowhere", "expected"],
    )  # fmt: skip


def test_evaluation_builds_no_demo_data(original, moved, refusal, tmp_path):
    folder = moved[1]
    content = read(folder)
    content["options"]["data_path"] = "./data/"
    torch.save(content, folder / "model_best.pth")
    status, _, errors = run_program("eval.py", folder)
    assert status == 2 and "--data_path" in errors and not list(Path().iterdir())


def test_checkpoints_that_keep_no_bert_still_load(original, tmp_path):
    data, run = original
    content = read(run)
    del content["bert"]
    older = tmp_path / "older.pth"
    torch.save(content, older)
    found = load(older).encode_captions(["a red circle"])
    expected = load(run).encode_captions(["a red circle"])
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


DAMAGES = {
    "no dict": lambda bert: "bert",
    "no tokeniser": lambda bert: bert.pop("tokeniser") and bert,
    "no number of layers": lambda bert: bert["config"].pop("num_hidden_layers") and bert,
    "other layers": lambda bert: bert["config"].update(num_hidden_layers=9) or bert,
    "a huge vocabulary": lambda bert: bert["config"].update(vocab_size=10**12) or bert,
    "another model": lambda bert: bert["config"].update(model_type="gpt2") or bert,
    "a torn tokeniser": lambda bert: bert.update(tokeniser=bert["tokeniser"][:300]) or bert,
    "a number for a token": lambda bert: bert["special_tokens"].update(pad_token=3) or bert,
    "an unknown token": lambda bert: bert["special_tokens"].update(pad_token="[Z]") or bert,
    "text for a size": lambda bert: bert["config"].update(hidden_size="large") or bert,
    "no heads": lambda bert: bert["config"].update(num_attention_heads=0) or bert,
    "an unknown activation": lambda bert: bert["config"].update(hidden_act="nothing") or bert,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_kept_bert_is_refused(original, tmp_path, damage):
    content = read(original[1])
    content["bert"] = damage(content["bert"])
    path = tmp_path / "model_best.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match="model_best.pth") as refused:
        load(path)
    assert "\n" not in str(refused.value)


def test_models_that_read_words_keep_no_bert(original, tmp_path):
    options = [*OPTIONS, "--num_epochs", "1", "--text_encoder", "bigru"]
    run = helpers.fit(options, original[0], tmp_path / "bigru")
    assert checkpoint.load(run / "model_best.pth").bert is None
