"""Both programs with other poolings, masked padding and a BiGRU, through main([...]),
on a small demo data set."""

import json
import re
import shutil
from collections import Counter
from functools import partial

import helpers
import numpy as np
import pytest
import torch
from helpers import make_data, read, shared

import arguments
import eval as evaluation
from lib.data import demo
from lib.data.vocabulary import SPECIAL
from lib.model import bert
from lib.model.network import build_model
from lib.results.trained import load
from lib.system.errors import InputError
from lib.training import run_parts

OPTIONS = (
    "--dataset demo --num_epochs 1 --batch_size 20 --embed_size 16 "
    "--nhead 2 --workers 0 --warmup 2 --log_step 4"
)
BIGRU = "--text_encoder bigru --word_dim 12 --pooling gpo+relation --mask_padding 1".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=20, dev=10, test=10)


fit = partial(helpers.fit, OPTIONS.split())


def check_evaluation_repeats(folder):
    before = [(folder / name).read_bytes() for name in ("test.md", "results_demo.npy")]
    evaluation.main(["--model_path", str(folder), "--save_results", "1"])
    assert [(folder / name).read_bytes() for name in ("test.md", "results_demo.npy")] == before


@pytest.fixture(scope="module")
def without_bert(data, tmp_path_factory):
    """The same data with no BERT beside them."""
    return shutil.copytree(
        data, tmp_path_factory.mktemp("bare") / "data", ignore=shutil.ignore_patterns("bert")
    )


@pytest.fixture(scope="module")
def run(without_bert, tmp_path_factory):
    """The run folder of a finished training of a BiGRU; tests leave it as it is."""
    return shared(
        fit(without_bert, tmp_path_factory.mktemp("run") / "first", *BIGRU, "--min_word_count", 6)
    )


@pytest.mark.parametrize(
    "more",
    [
        "--pooling max --mask_padding 1",
        "--pooling mean+relation",
        "--pooling gpo",
        "--pooling attention+relation --mask_padding 1 --precision bf16",
    ],
)
def test_other_encoders_train_and_are_rebuilt_by_evaluation(data, tmp_path, more):
    folder = fit(data, tmp_path / "run", *more.split())
    assert "skipped" not in (folder / "train.txt").read_text()
    check_evaluation_repeats(folder)
    names = {name.split(".")[2] for name in read(folder)["model"] if "fragment_relation" in name}
    assert ("layer" in names) is ("relation" in more)
    assert ("pool" in names) is any(name in more for name in ("gpo", "attention"))


@pytest.mark.parametrize("mask", [0, 1])
def test_masked_padding_reaches_the_image_encoder_and_the_relations(data, mask):
    parser = arguments.training_parser()
    options = [*OPTIONS.split(), "--data_path", str(data), "--mask_padding", str(mask)]
    options = arguments.parse_training(parser, options)
    model = build_model(vars(options), bert.model(options.bert_path), demo.FEATURES)
    assert (
        model.image_encoder.mask_padding
        is run_parts.build_objective(options).relations.mask_padding
        is bool(mask)
    )


def test_a_bigru_trains_without_a_bert_and_is_rebuilt_by_evaluation(run, tmp_path):
    log = (run / "train.txt").read_text()
    assert "skipped" not in log and "regulariser" in log
    words = read(run)["vocabulary"]
    assert (
        isinstance(words, list)
        and len(words) > 20
        and "dog" in words
        and not set(words) & set(SPECIAL)
    )
    assert (
        f"vocabulary: {len(words)} words that occur at least 6 times in the training captions"
        in log
    )
    assert read(run)["model"]["text_encoder.words.weight"].shape == (len(words) + 5, 12)
    check_evaluation_repeats(shutil.copytree(run, tmp_path / "copied"))


def test_the_vocabulary_is_of_the_training_captions_alone(run, without_bert):
    text = (without_bert / "demo_precomp" / "train_caps.txt").read_text().lower()
    counts = Counter(re.findall(r"[a-z]+|[^a-z\s]", text))
    assert set(read(run)["vocabulary"]) == {word for word, count in counts.items() if count >= 6}
    assert min(counts.values()) < 6


def test_the_same_seed_gives_the_same_bigru(run, without_bert, tmp_path):
    again = fit(without_bert, tmp_path / "again", *BIGRU, "--min_word_count", 6)
    ours, theirs = read(run)["model"], read(again)["model"]
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def test_words_that_training_has_not_seen_are_evaluated(run, without_bert, tmp_path):
    new = shutil.copytree(without_bert, tmp_path / "new")
    captions = new / "demo_precomp" / "test_caps.txt"
    copied = shutil.copytree(run, tmp_path / "copied")
    for text in ("zebras quarrel", "quagga quagga"):
        captions.write_text(f"{text}\n" * 50)
        evaluation.main(
            ["--model_path", str(copied), "--data_path", str(new), "--save_results", "1"]
        )
    first, second = (np.load(path)["sims"] for path in copied.glob("results_demo+data=*.npy"))
    np.testing.assert_array_equal(first, second)
    assert (
        np.isfinite(first).all() and (first != np.load(copied / "results_demo.npy")["sims"]).any()
    )


def test_glove_is_read_and_its_words_are_told(without_bert, tmp_path, capsys):
    glove = tmp_path / "glove.txt"
    glove.write_text(
        "dog " + " ".join(["0.5"] * 12) + "\n" + "zebra " + " ".join(["1"] * 12) + "\n"
    )
    folder = fit(without_bert, tmp_path / "run", *BIGRU, "--glove", glove, "--learning_rate", 1e-9)
    words = read(folder)["vocabulary"]
    assert (
        f"{glove}: vectors of 1 of {len(words)} words; the others start at random"
        in capsys.readouterr().out
    )
    found = read(folder)["model"]["text_encoder.words.weight"]
    torch.testing.assert_close(
        found[5 + words.index("dog")], torch.full((12,), 0.5), atol=1e-6, rtol=0
    )
    assert found.abs().max() <= 0.5 and not found[0].any()
    glove.write_text("dog 1 2 3\n")
    with pytest.raises(
        InputError, match=r"glove.txt: line 1 holds 3 values, expected a word and the 12 values"
    ):
        fit(without_bert, tmp_path / "refused", *BIGRU, "--glove", glove)
    assert not (tmp_path / "refused").exists()


def test_accents_are_stripped_and_told_or_kept_in_training_and_after_it(without_bert, tmp_path):
    data = shutil.copytree(without_bert, tmp_path / "data")
    for split in ("train", "dev", "test"):
        captions = data / "demo_precomp" / f"{split}_caps.txt"
        captions.write_text(
            captions.read_text().replace("red", "schön").replace("blue", "schon"), encoding="utf-8"
        )
    told = (
        "merges 2 different words into 1 of the vocabulary (schon: schon, schön); --strip_accents "
        "0 keeps them apart"
    )
    for strip in (1, 0):
        folder = fit(data, tmp_path / f"run{strip}", *BIGRU, "--strip_accents", strip)
        assert (told in (folder / "train.txt").read_text()) is bool(strip)
        assert {"schon", "schön"} & set(read(folder)["vocabulary"]) == (
            {"schon"} if strip else {"schon", "schön"}
        )
        check_evaluation_repeats(folder)
        plain, accented = load(folder).encode_captions(["ein schon ball", "ein schön ball"])
        assert np.array_equal(plain, accented) is bool(strip)
    content = read(tmp_path / "run1")
    del content["options"]["strip_accents"]  # as of a run from before the option
    torch.save(content, tmp_path / "run1" / "model_best.pth")
    check_evaluation_repeats(tmp_path / "run1")


def test_vectors_in_capitals_are_warned_about(without_bert, tmp_path, capsys):
    glove = tmp_path / "vectors.vec"
    words = read(fit(without_bert, tmp_path / "run", *BIGRU))["vocabulary"]
    values = " ".join(["0.5"] * 12)
    glove.write_text(f"{len(words)} 12\n" + "".join(f"{word.upper()} {values}\n" for word in words))
    capsys.readouterr()
    fit(without_bert, tmp_path / "again", *BIGRU, "--glove", glove)
    told = capsys.readouterr().out
    assert "warning: only" in told and "only in capitals" in told


def test_checkpoints_from_before_these_options_are_the_published_encoders(data, tmp_path):
    folder = fit(data, tmp_path / "run")
    content = read(folder)
    for name in ("pooling", "mask_padding", "text_encoder", "word_dim", "glove", "min_word_count"):
        del content["options"][name]
    del content["vocabulary"]
    torch.save(content, folder / "model_best.pth")
    check_evaluation_repeats(folder)
    assert (
        json.loads((folder / "metrics.json").read_text())["test"]["options"][0]["pooling"]
        == "maxk+relation"
    )


@pytest.mark.parametrize("words", [None, ["dog", "dog"], [1], "missing", []], ids=str)
def test_a_checkpoint_with_a_damaged_vocabulary_is_refused(run, tmp_path, words):
    content = read(run) | {"vocabulary": words}
    if words == "missing":
        del content["vocabulary"]
    torch.save(content, tmp_path / "model_best.pth")
    with pytest.raises(
        InputError, match="not a checkpoint of this model|checkpoint and model differ"
    ):
        evaluation.main(["--model_path", str(tmp_path)])
