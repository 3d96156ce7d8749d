"""Data folders that cannot be used are refused in one line; blank captions are warned about."""

import pickle
import re

import numpy as np
import pytest
from damage import (
    CAPTIONS,
    OPTIONS,
    TRAIN,
    WEIGHTS,
    configure,
    contents,
    edit,
    poison,
    regions,
    remove,
    weights_as_pickle,
)

import eval as evaluation
import train

DAMAGED_FOLDERS = {  # what is done to a good folder -> what the refusal must say
    "without captions": (
        remove(CAPTIONS),
        [CAPTIONS, "no such file", "a caption per line", "copy the file there"],
    ),
    "without regions": (remove("dev_ims.npy"), ["dev_ims.npy", "no such file", "test, train"]),
    "an image too few": (
        regions("train", lambda array: array[:39]),
        [CAPTIONS, "200 captions", "39 rows", "195"],
    ),
    "a caption too many": (
        edit(CAPTIONS, lambda text: text + b"x\n"),
        [CAPTIONS, "201 captions", "40 rows", "200"],
    ),
    "no caption": (edit(CAPTIONS, lambda text: b""), [CAPTIONS, "0 captions", "40 rows"]),
    "float64": (
        regions("train", lambda array: array.astype("f8")),
        [TRAIN, "float64", "float32", "astype"],
    ),
    "int32": (
        regions("dev", lambda array: array.astype("i4")),
        ["dev_ims.npy", "int32", "expected float32"],
    ),
    "objects": (
        regions("train", lambda array: array[:2].astype(object)),
        [TRAIN, "cannot be read", "Python objects"],
    ),
    "rank 2": (
        regions("test", lambda array: array[:, 0]),
        ["test_ims.npy", "(10, 128)", "rows x regions x features"],
    ),
    "no image": (
        regions("train", lambda array: array[:0]),
        [TRAIN, "(0, 36, 128)", "(1000, 36, 2048)"],
    ),
    "other features": (
        regions("test", lambda array: array[..., :64]),
        ["test_ims.npy", "found 64", "expected 128"],
    ),
    "empty .npy": (edit(TRAIN, lambda content: b""), [TRAIN, "0 bytes", "download it again"]),
    "truncated .npy": (
        edit(TRAIN, lambda content: content[:5000]),
        [TRAIN, "5000 bytes", "download it again"],
    ),
    "truncated header": (
        edit(TRAIN, lambda content: content[:50]),
        [TRAIN, "50 bytes", "download it again"],
    ),
    "open header": (
        edit(TRAIN, lambda content: content.replace(b"}", b" ", 1)),
        [TRAIN, "cannot be read"],
    ),
    "damaged header": (
        edit(TRAIN, lambda content: content.replace(b"{'", b"){", 1)),
        [TRAIN, "cannot be read"],
    ),
    "pickle as .npy": (
        edit(TRAIN, lambda content: pickle.dumps([1])),
        [TRAIN, "pickled", "download it again"],
    ),
    "Latin-1": (
        edit(CAPTIONS, lambda text: text.replace(b"\n", b"\ncaf\xe9 ", 1)),
        [CAPTIONS, "line 2", "0xe9", "iconv"],
    ),
    "Latin-1 with BOM": (
        edit(CAPTIONS, lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\n\xe9", 1)),
        [CAPTIONS, "line 2", "0xe9"],
    ),
    "UTF-16": (
        edit("dev_caps.txt", lambda text: text.decode().encode("utf-16")),
        ["dev_caps.txt", "line 1", "UTF-8"],
    ),
    "without BERT": (
        remove("bert"),
        ["demo_precomp/bert", "neither a folder nor a model", "--bert_path"],
    ),
    "without vocabulary": (
        remove("bert/vocab.txt"),
        ["bert", "without vocabulary", "config.json", "vocab.txt"],
    ),
    "without weights": (
        remove(WEIGHTS),
        ["bert", "without weights", "model.safetensors", "pytorch_model.bin"],
    ),
    "without configuration": (
        remove("bert/config.json"),
        ["bert", "without configuration", "expected config.json"],
    ),
    "another architecture": (
        configure(model_type="roberta"),
        ["bert", "'roberta'", "expected 'bert'", "--bert_path"],
    ),
    "relative positions": (
        configure(position_embedding_type="relative_key"),
        ["'relative_key'", "'absolute'"],
    ),
    "another hidden size": (
        configure(hidden_size=64),
        ["bert", "(128,)", "expected (64,)", "copy or download"],
    ),
    "heads that do not divide": (
        configure(num_attention_heads=3),
        ["bert", "number of attention heads (3)"],
    ),
    "more layers than weights": (
        configure(num_hidden_layers=3),
        ["bert", "weights lack encoder.layer.2", "download"],
    ),
    "a word as a size": (
        configure(hidden_size="many"),
        ["bert", "hidden_size", "expected 1 or more"],
    ),
    "a configuration that ends early": (
        edit("bert/config.json", lambda text: text[:20]),
        ["bert", "config file"],
    ),
    "a configuration that is a list": (
        edit("bert/config.json", lambda text: b"[]"),
        ["bert", "'unknown'"],
    ),
    "a vocabulary of a larger BERT": (
        edit("bert/vocab.txt", lambda text: text + b"xxx\nyyy\nzzz\n"),
        ["bert", "has 214 entries", "at most 211", "copy or download"],
    ),
    "a vocabulary without [CLS]": (
        edit("bert/vocab.txt", lambda text: text.replace(b"[CLS]", b"cls")),
        ["[CLS]"],
    ),
    "a vocabulary in another order": (
        edit("bert/vocab.txt", lambda text: b"\n".join(reversed(text.split()))),
        ["[PAD] is not its first entry"],
    ),
    "a vocabulary of bytes": (
        edit("bert/vocab.txt", lambda text: b"\xff\xfe" * 50),
        ["bert", "UTF-8", "--bert_path"],
    ),
    "truncated weights": (
        edit(WEIGHTS, lambda content: content[:9000]),
        ["bert", "does not load", "--bert_path"],
    ),
    "empty weights": (edit(WEIGHTS, lambda content: b""), ["bert", "does not load", "--bert_path"]),
    "junk as weights": (weights_as_pickle(b"junk" * 50), ["bert", "does not load", "--bert_path"]),
    "an empty pickle as weights": (
        weights_as_pickle(b""),
        ["bert", "does not load", "--bert_path"],
    ),
}


@pytest.mark.parametrize("damage, expected", DAMAGED_FOLDERS.values(), ids=DAMAGED_FOLDERS)
def test_a_damaged_data_folder_is_refused_before_a_run_folder_is_made(
    data, tmp_path, refusal, damage, expected
):
    damage(data / "demo_precomp")
    refusal(
        train.main,
        *OPTIONS,
        "--data_path",
        data,
        "--logger_name",
        tmp_path / "run",
        expected=expected,
    )
    assert not (tmp_path / "run").exists()


POISONED = {
    "NaN in train": ("train", 17, [np.nan], False),
    "Inf in train": ("train", 39, [np.inf], False),
    "both infinities in train": ("train", 0, [np.inf, -np.inf], False),
    "NaN in dev": ("dev", 9, [np.nan], False),
    "minus Inf in dev": ("dev", 3, [-np.inf], False),
    "NaN in test": ("test", 4, [np.nan], True),  # met after the last epoch
}


@pytest.mark.parametrize("split, image, values, is_trained", POISONED.values(), ids=POISONED)
def test_an_image_that_is_not_finite_is_named(
    data, tmp_path, refusal, split, image, values, is_trained
):
    poison(split, image, *values)(data / "demo_precomp")
    expected = [
        f"{split}_ims.npy: image {image} (row {image}, from 0)",
        "NaN or Inf",
        "finite",
        "extract",
    ]
    refusal(
        train.main,
        *OPTIONS,
        "--data_path",
        data,
        "--logger_name",
        tmp_path / "run",
        expected=expected,
    )
    assert (tmp_path / "run" / "model_best.pth").exists() == is_trained
    assert not (tmp_path / "run" / "test.md").exists()


def test_an_image_that_is_not_finite_is_named_by_its_row_where_rows_repeat(data, tmp_path, refusal):
    regions("train", lambda array: array.repeat(5, axis=0))(data / "demo_precomp")
    poison("train", 85, np.nan)(data / "demo_precomp")
    expected = ["train_ims.npy: image 17 (row 85, from 0)"]
    refusal(
        train.main,
        *OPTIONS,
        "--data_path",
        data,
        "--logger_name",
        tmp_path / "run",
        expected=expected,
    )


def test_an_evaluated_image_that_is_not_finite_is_named(data, finished, refusal):
    poison("test", 6, np.nan)(data / "demo_precomp")
    before = contents(finished)
    expected = ["test_ims.npy: image 6 (row 6, from 0)"]
    refusal(evaluation.main, "--model_path", finished, "--data_path", data, expected=expected)
    assert contents(finished) == before


def test_blank_captions_are_kept_and_warned_about(data, tmp_path, capsys):
    path = data / "demo_precomp" / CAPTIONS
    lines = path.read_text().split("\n")
    lines[2], lines[49] = "", " \t"
    path.write_text("\n".join(lines))
    train.main([*OPTIONS, "--data_path", str(data), "--logger_name", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert (
        f"{CAPTIONS}: 2 blank captions are kept, because every line counts (lines 3, 50)" in printed
    )
    assert (
        "40 images x 36 regions x 128, 200 captions" in (tmp_path / "run" / "train.txt").read_text()
    )
    assert (tmp_path / "run" / "test.md").exists()


@pytest.mark.parametrize("more", [[], ["--text_encoder", "bigru"]], ids=["bert", "bigru"])
def test_captions_of_words_that_are_not_in_the_vocabulary_are_warned_about(
    data, tmp_path, capsys, more
):
    path = data / "demo_precomp" / "dev_caps.txt"
    path.write_text("狗 a red ball\n" + "狗 a 球 on 山\n" * 49)
    train.main([*OPTIONS, *more, "--data_path", str(data), "--logger_name", str(tmp_path / "run")])
    (warning,) = [
        line for line in capsys.readouterr().out.splitlines() if "in the vocabulary. Give" in line
    ]
    assert re.match(
        r"warning: dev: (59|6\d|79)% of the words or word pieces of the captions are not in",
        warning,
    )


def test_of_many_blank_captions_ten_are_named(data, tmp_path, capsys):
    edit("dev_caps.txt", lambda text: b"\n" * 50)(data / "demo_precomp")
    train.main([*OPTIONS, "--data_path", str(data), "--logger_name", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "dev_caps.txt: 50 blank captions" in printed
    assert "(lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 40 more)" in printed
