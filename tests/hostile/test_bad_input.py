"""Bad input ends both programs with one line that says what is wrong where,
and nothing trained or written."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
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
    saved_with,
    weights_as_pickle,
)
from helpers import PROCESS_TIMEOUT

import arguments
import eval as evaluation
import train
from lib.model import bert
from lib.system.errors import InputError, command_line

ROOT = Path(__file__).parents[2]
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


LINES = {
    "missing data folder": (
        ["--dataset", "f30k", "--data_path", "nowhere"],
        ["nowhere/f30k_precomp", "data sets in nowhere: none"],
    ),
    "unknown data set": (
        ["--dataset", "f31k"],
        ["f31k_precomp", "data sets in", ": demo;", "--dataset"],
    ),
    "missing split": (
        ["--val_split", "nothere"],
        ["nothere_ims.npy", "dev, test, train", "in training --val_split"],
    ),
    "BERT that is nowhere": (
        ["--bert_path", "no-such/bert"],
        ["no-such/bert", "neither a folder nor", "--bert_path"],
    ),
    "BERT that is no name": (
        ["--bert_path", "/no/such/folder"],
        ["/no/such/folder", "neither a folder nor"],
    ),
    "heads that do not divide": (
        ["--nhead", "3"],
        ["--nhead 3", "--embed_size 16", "expected a divisor"],
    ),
    "odd embedding": (["--embed_size", "7", "--nhead", "1"], ["--embed_size 7", "even"]),
    "several GPUs": (
        ["--multi_gpu", "1"],
        ["--multi_gpu 1", "torchrun --nproc_per_node 1 train.py "],
    ),
    "other features": (
        ["--img_dim", "2048"],
        ["train_ims.npy", "found 128", "expected 2048", "--img_dim"],
    ),
    "more pairs than there are": (
        ["--batch_size", "201"],
        ["train split has 200 pairs", "smaller --batch_size"],
    ),
    "a batch of one": (["--batch_size", "1"], ["--batch_size", "found '1'", "at least 2"]),
    "an unknown device": (
        ["--device", "nonsense"],
        ["--device nonsense", "auto, cpu, cuda or cuda:N"],
    ),
    "a GPU that is not there": (["--device", "cuda:99"], ["--device cuda:99", "CUDA GPUs found"]),
    "a device without values": (
        ["--device", "meta"],
        ["--device meta", "auto, cpu, cuda or cuda:N"],
    ),
    "an unknown option": (
        ["--mask_wieght", "1"],
        ["train.py: --mask_wieght: unknown option. Did you mean --mask_weight?", "--help"],
    ),
    "an abbreviated option": (
        ["--mask_w=1"],
        ["train.py: --mask_w: unknown option. Did you mean --mask_weight?"],
    ),
    "an option like no other": (
        ["--zzz", "1"],
        ["train.py: --zzz: unknown option. train.py --help lists"],
    ),
    "a word too many": (["f30k"], ["unrecognized arguments: f30k"]),
    "an unknown loss": (["--gnn_loss", "triplet"], ["--gnn_loss", "'triplet'", "'trip'", "'vse'"]),
    "an unknown pooling": (
        ["--pooling", "relation"],
        ["--pooling", "'relation'", "'maxk+relation'", "'gpo'"],
    ),
    "an unknown text encoder": (["--text_encoder", "gru"], ["--text_encoder", "'gru'", "'bigru'"]),
    "GloVe for BERT": (
        ["--glove", "glove.txt"],
        ["--glove glove.txt", "BERT", "--text_encoder bigru"],
    ),
    "words that are too rare": (
        ["--text_encoder", "bigru", "--min_word_count", "9999"],
        ["train_caps.txt", "no word that occurs 9999 times", "smaller --min_word_count"],
    ),
    "an unknown precision": (["--precision", "fp8"], ["--precision", "'fp8'", "'bf16'"]),
    "an option without its value": (
        ["--dataset"],
        ["train.py", "--dataset", "expected one argument"],
    ),
    "a path without its value": (
        ["--data_path"],
        ["train.py", "--data_path", "expected one argument"],
    ),
    "a seed too large for torch": (["--seed", str(2**64)], ["--seed", str(2**64), "at most"]),
    "a seed twice": (["--seeds", "1", "2", "1"], ["--seeds 1 2 1", "expected each once"]),
    "a seed beside seeds": (
        ["--seeds", "1", "2", "--seed", "0"],
        ["--seeds 1 2: cannot be combined with --seed", "one of the two"],
    ),
    "no seeds": (["--seeds"], ["--seeds", "expected at least one argument"]),
    "an unknown method": (["--method", "vse++"], ["--method", "'vse++'", "'vsepp'", "'gpo'"]),
    "an unknown sampling": (
        ["--batch_sampling", "near"],
        ["--batch_sampling", "'near'", "'neighbour'"],
    ),
    "clusters that do not divide a batch": (
        ["--batch_sampling", "neighbour", "--batch_clusters", "3"],
        ["--batch_clusters 3", "--batch_size 20", "Try --batch_clusters 2"],
    ),
    "more clusters than a batch": (
        ["--batch_sampling", "neighbour", "--batch_clusters", "40"],
        ["--batch_clusters 40", "--batch_clusters 20"],
    ),
    "more clusters than images": (
        ["--batch_sampling", "neighbour", "--batch_size", "50", "--batch_clusters", "50"],
        ["--batch_clusters 50", "40 images", "fewer clusters"],
    ),
    "a negative decay epoch": (
        ["--lr_schedules", "15", "-3"],
        ["--lr_schedules", "'-3'", "at least 0"],
    ),
}


@pytest.mark.parametrize("more, expected", LINES.values(), ids=LINES)
def test_a_wrong_command_line_is_refused_before_a_run_folder_is_made(
    whole, tmp_path, refusal, more, expected
):
    refusal(
        train.main,
        *OPTIONS,
        "--data_path",
        whole,
        "--logger_name",
        tmp_path / "run",
        *more,
        expected=expected,
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--logger_name", "--model_name"])
@pytest.mark.parametrize("below", ["", "run"], ids=["the file", "below the file"])
def test_a_run_folder_that_is_a_file_is_refused(whole, tmp_path, refusal, option, below):
    (tmp_path / "file").write_text("kept")
    argv = [
        *OPTIONS,
        "--data_path",
        whole,
        "--logger_name",
        tmp_path / "run",
        option,
        tmp_path / "file" / below,
    ]
    refusal(
        train.main,
        *argv,
        expected=[option, tmp_path / "file", "a file, expected a folder", "Name another"],
    )
    assert contents(tmp_path) == {Path("file"): b"kept"}


def test_a_finished_run_is_left_as_it_is(whole, finished, refusal):
    before = contents(finished)
    expected = [
        finished / "last.pth",
        "the folder already contains a run",
        "--resume auto",
        "--overwrite 1",
    ]
    refusal(
        train.main, *OPTIONS, "--data_path", whole, "--logger_name", finished, expected=expected
    )
    assert contents(finished) == before and Path("model_best.pth") in before


def numeric_actions():
    training = arguments.training_parser()
    parsers = [(train.main, training), (evaluation.main, arguments.evaluation_parser())]
    return [
        (main, parser.prog, action)
        for main, parser in parsers
        for action in parser._actions
        if action.type
    ]


NOT_NUMBERS = ["abc", "", "nan", "inf", "1e999", "1,5"]
BELOW_ZERO, ZERO, ABOVE_ONE, BROKEN = (
    ["-1", "-0.001", "-inf"],
    ["0"],
    ["1.001", "2"],
    ["1.5", "1e3"],
)
REFUSED = {
    dest: values  # out of range, or of another kind
    for dests, values in {
        "num_epochs batch_size embed_size img_dim log_step nhead num_layers_enc": BELOW_ZERO
        + ZERO
        + BROKEN,
        "topk batch_clusters word_dim min_word_count": BELOW_ZERO + ZERO + BROKEN,
        "query_image bootstrap gallery": BELOW_ZERO + BROKEN,
        (
            "workers seed seeds val_step save_step gpu_id "
            "vse_mean_warmup_epochs lr_schedules warmup"
        ): BELOW_ZERO + BROKEN,
        "size_augment overwrite deterministic compile word_augment region_mlp": BELOW_ZERO
        + ABOVE_ONE,
        "save_results multi_gpu mask_repeat": BELOW_ZERO + ABOVE_ONE,
        "norm_input cross_loss connection relevance mask_padding strip_accents": BELOW_ZERO
        + ABOVE_ONE,
        "allow_changed_data": BELOW_ZERO + ABOVE_ONE,
        "learning_rate grad_clip longest_distance attention_temperature lse_temperature": BELOW_ZERO
        + ZERO,
        "margin graph_lr_factor mask_weight reg_loss_weight weight_decay": BELOW_ZERO,
        "decay_rate residual_weight threshold": BELOW_ZERO + ABOVE_ONE,
        "dropout": BELOW_ZERO + ABOVE_ONE + ["1"],
    }.items()
    for dest in dests.split()
}


@pytest.mark.parametrize(
    "main, option, dest",
    [
        pytest.param(
            main, action.option_strings[0], action.dest, id=f"{prog} {action.option_strings[0]}"
        )
        for main, prog, action in numeric_actions()
    ],
)
def test_every_number_out_of_range_is_refused(refusal, main, option, dest):
    for value in NOT_NUMBERS + REFUSED[dest]:
        refusal(
            main, f"{option}={value}", expected=[option, f"found {value!r}, expected", "number"]
        )


def test_every_option_that_takes_a_number_knows_its_range():
    training = arguments.training_parser()
    for parser in (training, arguments.evaluation_parser()):
        for action in parser._actions:
            assert (
                action.type or not isinstance(action.default, (int, float)) or action.nargs == 0
            ), action.dest
    assert set(REFUSED) == {action.dest for _, _, action in numeric_actions()}


DAMAGED_CHECKPOINTS = {
    "truncated": (
        lambda path: os.truncate(path, path.stat().st_size // 2),
        ["cannot be read", "download it again"],
    ),
    "empty": (lambda path: os.truncate(path, 0), ["cannot be read", "download it again"]),
    "random bytes": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        ["damaged", "again"],
    ),
    "a pickle cut short": (
        lambda path: path.write_bytes(b"\x80\x02."),
        ["cannot be read", "download it again"],
    ),
    "text": (lambda path: path.write_text("Not found\n"), ["fetch it again"]),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), ["found a Tensor", "train.py"]),
    "another program's": (
        lambda path: torch.save({"net": {}}, path),
        ["a dict with net", "published format"],
    ),
    "without options": (
        lambda path: saved_with(path, options={}),
        ["not a checkpoint", "embed_size"],
    ),
    "without weights": (
        lambda path: saved_with(path, model={}),
        ["is missing, expected", "--bert_path"],
    ),
}


@pytest.mark.parametrize("damage, expected", DAMAGED_CHECKPOINTS.values(), ids=DAMAGED_CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused(finished, tmp_path, refusal, damage, expected):
    copied = shutil.copytree(finished, tmp_path / "run")
    damage(copied / "model_best.pth")
    before = contents(copied)
    refusal(
        evaluation.main, "--model_path", copied, expected=[copied / "model_best.pth", *expected]
    )
    assert contents(copied) == before


def smaller_bert(whole, folder):
    shutil.copytree(whole / "demo_precomp" / "bert", folder)
    settings = json.loads((folder / "config.json").read_text()) | {"hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_a_checkpoint_of_another_size_is_refused(whole, data, finished, tmp_path, refusal):
    path = finished / "model_best.pth"
    expected = [path, "checkpoint and model differ", "text_encoder.bert", "expected", "--bert_path"]
    smaller = smaller_bert(whole, tmp_path / "bert")
    refusal(evaluation.main, "--model_path", path, "--bert_path", smaller, expected=expected)

    regions("test", lambda array: array[:, :, :64])(data / "demo_precomp")
    expected = [path, "checkpoint and model differ", "image_encoder", "128", "64", "data set"]
    refusal(evaluation.main, "--model_path", path, "--data_path", data, expected=expected)

    larger = tmp_path / "larger"
    train.main(
        [*OPTIONS, "--data_path", str(whole), "--logger_name", str(larger), "--embed_size", "32"]
    )
    saved_with(larger / "model_best.pth", model=torch.load(path, weights_only=True)["model"])
    expected = [larger, "another size", "16", "expected", "32"]
    refusal(evaluation.main, "--model_path", larger, expected=expected)


EVALUATIONS = {
    "a run that is not there": (
        ["--model_path", "runs/nowhere"],
        ["runs/nowhere", "no such checkpoint"],
    ),
    "a split that is not there": (
        ["--split", "nothere"],
        ["nothere_ims.npy", "dev, test, train", "--split in eval"],
    ),
    "a data set that is not there": (["--dataset", "f31k"], ["f31k_precomp", ": demo;"]),
    "a BERT that is not there": (
        ["--bert_path", "no-such/bert"],
        ["no-such/bert", "neither a folder nor"],
    ),
    "a GPU that is not there": (["--device", "cuda:99"], ["--device cuda:99", "CUDA GPUs found"]),
    "a second run that is not there": (["runs/nowhere"], ["runs/nowhere", "no such checkpoint"]),
    "an option of training": (
        ["--nhead", "2"],
        ["eval.py: --nhead: unknown option. eval.py --help lists"],
    ),
    "a query of no word": (["--query", " "], ["--query", "found no word"]),
    "an image that is not there": (
        ["--query_image", "10"],
        ["--query_image 10", "expected 0 to 9, or id:ID"],
    ),
    "an id that is not there": (
        ["--query_image", "id:9"],
        ["--query_image id:9", "expected 0 to 9, or id:ID, such as"],
    ),
    "a query without quotes": (
        ["red", "dog", "--query", "a"],
        ["red: not a model", "in quotes: --query 'a red dog'"],
    ),
    "a query and a report": (
        ["--query", "a", "--report"],
        ["--query with --report", "Leave out --query or --report"],
    ),
    "a query and an export": (["--query", "a", "--export", "new"], ["--query with --export"]),
    "a query and intervals": (
        ["--query_image", "1", "--bootstrap", "9"],
        ["--query_image with --bootstrap"],
    ),
    "a query and other sets": (["--query", "a", "--extended"], ["--query with --extended"]),
    "a query and results": (
        ["--query_image", "0", "--save_results", "1"],
        ["--query_image with --save_results"],
    ),
    "two models for one query": (
        ["--model_path", "b", "--query", "dog"],
        ["--query: ", "found 2 models"],
    ),
    "two models for image 0": (
        ["--model_path", "b", "--query_image", "0"],
        ["--query_image: ", "found 2 models"],
    ),
    "two models for one export": (
        ["--model_path", "b", "--export", "new"],
        ["--export: ", "found 2 models"],
    ),
    "pictures without a report": (
        ["--images", "."],
        ["--images .", "found no --report", "Add --report"],
    ),
    "pictures that are nowhere": (
        ["--report", "--images", "nowhere"],
        ["--images nowhere", "found no such folder"],
    ),
    "pictures that are a file": (
        ["--report", "--images", "LICENSE"],
        ["--images LICENSE", "a file, expected a folder"],
    ),
    "an export into a full folder": (
        ["--export", "lib"],
        ["--export lib", "not empty", "Name another"],
    ),
    "an export into a file": (
        ["--export", "README.md"],
        ["--export", "README.md, a file", "Name another"],
    ),
    "other sets than COCO": (["--extended"], ["--extended: "]),
}


@pytest.mark.parametrize("more, expected", EVALUATIONS.values(), ids=EVALUATIONS)
def test_a_wrong_evaluation_is_refused_and_writes_nothing(finished, refusal, more, expected):
    before = contents(finished)
    refusal(evaluation.main, "--model_path", finished, *more, expected=expected)
    assert contents(finished) == before


def test_a_folder_of_runs_is_told_from_a_run(finished, tmp_path, refusal):
    for name in ("b", "a"):
        shutil.copytree(finished, tmp_path / "runs" / name)
    folder = tmp_path / "runs"
    refusal(
        evaluation.main,
        folder,
        expected=[f"{folder}: contains several runs", f"run folders: {folder}/a, {folder}/b;"],
    )
    for number in range(10):
        shutil.copytree(finished, folder / f"c{number}")
    assert "/c7 and 2 more;" in refusal(evaluation.main, folder)


def test_an_ensemble_is_of_one_data_set(whole, data, finished, tmp_path, refusal):
    shutil.copytree(data / "demo_precomp", data / "other_precomp")
    other = tmp_path / "other"
    argv = [*OPTIONS, "--data_path", str(data), "--logger_name", str(other)]
    train.main([*argv, "--dataset", "other", "--bert_path", str(data / "other_precomp" / "bert")])
    expected = ["--model_path", "an ensemble of demo, other", "models of one data set"]
    refusal(evaluation.main, "--model_path", finished, "--model_path", other, expected=expected)


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


@pytest.mark.parametrize(
    "program, more",
    [
        ("train.py", ["--dataset", "f31k", "--logger_name", "run"]),
        ("eval.py", ["--model_path", "run"]),
        ("lib/data/__main__.py", ["missing_precomp"]),
    ],
    ids=["train.py", "eval.py", "lib.data"],
)
def test_a_process_ends_with_status_2_and_one_line(tmp_path, program, more):
    command = ["-m", "lib.data"] if program.startswith("lib") else [str(ROOT / program)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command, *more],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_error_of_several_lines_is_told_in_one(capsys):
    def main():
        raise InputError("file:\n  found\tthis,\n\nexpected that")

    with pytest.raises(SystemExit):
        command_line(main)
    assert capsys.readouterr().err == "error: file: found this, expected that\n"


def test_our_own_mistakes_are_no_damaged_bert(monkeypatch, whole):
    monkeypatch.setattr(bert.AutoTokenizer, "from_pretrained", lambda *arguments, **settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bert.tokeniser(whole / "demo_precomp" / "bert")
