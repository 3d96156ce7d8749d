"""Every file that the programs read, damaged in every way that files are: refused in one line,
or harmless."""

import argparse
import builtins
import contextlib
import errno
import io
import json
import os
import shutil
import tempfile
import zipfile
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
    regions,
    remove,
    saved_with,
)
from safetensors.torch import load_file, save_file

import eval as evaluation
import train
from lib.data import check, dataset
from lib.data.batches import TrainingPairs
from lib.data.captions import tokenise
from lib.data.dataset import LARGEST_FEATURE, RetrievalDataset
from lib.data.region_file import RegionFile
from lib.model import bert
from lib.system import files
from lib.system.errors import InputError
from lib.system.run_folder import RunFolder
from lib.training import run_start

HEADER = 128  # bytes of the header of a .npy file


@pytest.fixture
def untouched(tmp_path):
    """The folder of a run that was interrupted; it must be afterwards as it was."""
    folder = tmp_path / "run"
    folder.mkdir()
    with files.lock(folder / run_start.LOCK), RunFolder(folder).update() as manifest:
        run = dict(id="1", log="1", saved=False, resumed_from=None, replaces=[])
        manifest.update(files=["metrics.json", "train.txt"], run=run, log="1")
    (folder / "train.txt").write_text("of an earlier run\n")
    (folder / "metrics.json").write_text("{}\n")
    before = contents(folder)
    yield folder
    assert contents(folder) == before


# What stands where a file should be


def as_folder(path):
    path.mkdir()


def as_pipe(path):
    os.mkfifo(path)


def as_dangling_link(path):
    path.symlink_to(path.with_name("nowhere"))


def as_link_to_itself(path):
    path.symlink_to(path)


def as_device(path):
    path.symlink_to("/dev/zero")


def as_link_to_a_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


IN_PLACE = {
    "a folder": (as_folder, "a folder, not a file"),
    "a pipe": (as_pipe, "a pipe, socket or device, not a file"),
    "a dangling link": (as_dangling_link, "a link to a file that is not there"),
    "a link to itself": (as_link_to_itself, "too many levels of symbolic links"),
    "a device": (as_device, "a pipe, socket or device, not a file"),
    "a link to a pipe": (as_link_to_a_pipe, "a pipe, socket or device, not a file"),
}
DATA_FILES = {  # file of a data folder -> what its refusal says is expected
    TRAIN: "region features",
    CAPTIONS: "a caption per line",
    "dev_ims.npy": "region features",
    "test_caps.txt": "a caption per line",
    "bert/config.json": "a file of a BERT folder",
    "bert/vocab.txt": "a file of a BERT folder",
    "bert/tokenizer_config.json": "a file of a BERT folder",
    WEIGHTS: "a file of a BERT folder",
}


def in_place_of(path, put):
    path.unlink()
    put(path)


@pytest.mark.parametrize("put, found", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("name", DATA_FILES)
def test_what_is_no_file_is_refused_at_once(data, untouched, refusal, name, put, found):
    path = data / "demo_precomp" / name
    in_place_of(path, put)
    expected = [path, found, DATA_FILES[name], "expected"]
    refusal(
        train.main, *OPTIONS, "--data_path", data, "--logger_name", untouched, expected=expected
    )


@pytest.mark.parametrize("put, found", IN_PLACE.values(), ids=IN_PLACE)
def test_a_checkpoint_that_is_no_file_is_refused_at_once(finished, tmp_path, refusal, put, found):
    path = shutil.copytree(finished, tmp_path / "run") / "model_best.pth"
    in_place_of(path, put)
    refusal(
        evaluation.main, "--model_path", tmp_path / "run", expected=[path, found, "--model_path"]
    )
    if put is not as_folder:  # a folder is searched for the best model in it
        refusal(evaluation.main, "--model_path", path, expected=[path, found, "--model_path"])


def deny(monkeypatch, name):
    """Opening files of that name is not permitted; nor to root,
    whom permission bits do not bind."""

    def opened(path, *arguments, **settings):
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return builtins.open(path, *arguments, **settings)

    monkeypatch.setattr(files, "open", opened, raising=False)


@pytest.mark.parametrize("name", DATA_FILES)
def test_a_file_that_may_not_be_read_is_refused(data, untouched, refusal, monkeypatch, name):
    path = data / "demo_precomp" / name
    deny(monkeypatch, path.name)
    expected = [path, "not to be opened (permission denied)", DATA_FILES[name]]
    refusal(
        train.main, *OPTIONS, "--data_path", data, "--logger_name", untouched, expected=expected
    )


def test_a_checkpoint_that_may_not_be_read_is_refused(finished, refusal, monkeypatch):
    deny(monkeypatch, "model_best.pth")
    expected = [finished / "model_best.pth", "not to be opened (permission denied)"]
    refusal(evaluation.main, "--model_path", finished, expected=expected)


@contextlib.contextmanager
def as_nobody():
    """Inside, permission bits bind."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_permission_bits_are_such_an_obstacle():
    # not below tmp_path, which only its owner may enter
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path, closed = Path(folder, "file"), Path(folder, "closed")
        path.write_text("x")
        path.chmod(0)
        closed.mkdir()
        (closed / "file").write_text("x")
        closed.chmod(0)
        with as_nobody():
            for file in (path, closed / "file"):
                assert files.why_unreadable(file) == "not to be opened (permission denied)"
            for read in (RegionFile, dataset.read_lines):
                with pytest.raises(
                    InputError, match="file: not to be opened .permission denied.; "
                ):
                    read(path)
        closed.chmod(0o755)


def test_a_file_below_a_file_and_a_name_too_long_are_obstacles(tmp_path):
    (tmp_path / "file").write_text("x")
    assert files.why_unreadable(tmp_path / "file") is None
    assert files.why_unreadable(tmp_path / "file" / "below") == "not to be opened (not a directory)"
    assert files.why_unreadable(tmp_path / ("x" * 300)) == "not to be opened (file name too long)"
    assert files.why_unreadable(tmp_path / "other") == "no such file"


# Contents


def cut(name, at):
    return edit(name, lambda content: content[:at])


def header(**changes):
    """Damage: write another header before the same values."""

    def change(content):
        fields = dict(descr="<f4", fortran_order=False, shape=(40, 36, 128)) | changes
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, fields)
        return file.getvalue() + content[HEADER:]

    return edit(TRAIN, change)


def zipped(folder):
    array = np.load(folder / TRAIN)
    np.savez(folder / "x.npz", array)
    shutil.move(folder / "x.npz", folder / TRAIN)


def weights(change):
    """Damage: replace BERT's weights by change(state dict)."""

    def damage(folder):
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def spoilt(value):
    def change(state):
        state["encoder.layer.1.output.dense.weight"][3, 5] = value
        return state

    return weights(change)


def tokeniser_with(**settings):
    return edit(
        "bert/tokenizer_config.json", lambda text: json.dumps(json.loads(text) | settings).encode()
    )


ARRAY = "rows x regions x features"
DAMAGED = {  # what is done to a good folder -> what the refusal must say
    **{
        f"{TRAIN} cut after {at} bytes": (
            cut(TRAIN, at),
            [TRAIN, f"{at} bytes", ARRAY, "download it again"],
        )
        for at in (1, 3, 6, 7, 8, 9, 10, 64, HEADER - 1, HEADER, HEADER + 2)
    },
    f"{TRAIN} without its last byte": (
        cut(TRAIN, -1),
        [TRAIN, "cannot be read", "download it again"],
    ),
    f"{TRAIN} without its last image": (
        cut(TRAIN, -36 * 128 * 4),
        [TRAIN, "cannot be read", "download it again"],
    ),
    "another magic": (
        edit(TRAIN, lambda content: b"\x93NUMPX" + content[6:]),
        [TRAIN, "cannot be read"],
    ),
    "another version": (
        edit(TRAIN, lambda content: b"\x93NUMPY\x09" + content[7:]),
        [TRAIN, "cannot be read"],
    ),
    "a picture": (
        edit(TRAIN, lambda content: b"\xff\xd8\xff\xe0JFIF" + content),
        [TRAIN, "cannot be read"],
    ),
    "a web page": (
        edit(TRAIN, lambda content: b"<!doctype html>\n<p>Not found"),
        [TRAIN, "28 bytes", "expected"],
    ),
    "zeros": (
        edit(TRAIN, lambda content: bytes(len(content))),
        [TRAIN, "cannot be read", "download it again"],
    ),
    "an archive of arrays": (zipped, [TRAIN, "expected float32", "np.save"]),
    "a zip cut short": (
        edit(TRAIN, lambda content: b"PK\x03\x04" + content[4:]),
        [TRAIN, "cannot be read"],
    ),
    "more rows than bytes": (header(shape=(41, 36, 128)), [TRAIN, "cannot be read"]),
    "more rows than there are numbers": (header(shape=(2**62, 36, 128)), [TRAIN, "cannot be read"]),
    "rows beyond 64 bits": (header(shape=(2**70, 36, 128)), [TRAIN, "cannot be read"]),
    "fewer than no rows": (header(shape=(-1, 36, 128)), [TRAIN]),
    "a shape of words": (header(shape="many"), [TRAIN, "cannot be read"]),
    "a shape of fractions": (header(shape=(1.5, 36, 128)), [TRAIN, "cannot be read"]),
    "an order of words": (header(fortran_order="yes"), [TRAIN, "cannot be read"]),
    "a type of no numbers": (header(descr="nothing"), [TRAIN, "cannot be read"]),
    "a type of objects": (header(descr="|O"), [TRAIN, "cannot be read"]),
    "no shape": (regions("train", lambda array: array[0, 0, 0]), [TRAIN, "shape ()", ARRAY]),
    "one row for all": (
        regions("train", lambda array: array.ravel()),
        [TRAIN, "shape (184320,)", ARRAY],
    ),
    "four dimensions": (
        regions("train", lambda array: array[None]),
        [TRAIN, "(1, 40, 36, 128)", ARRAY],
    ),
    "no region": (regions("train", lambda array: array[:, :0]), [TRAIN, "(40, 0, 128)", ARRAY]),
    "no feature": (regions("train", lambda array: array[:, :, :0]), [TRAIN, "(40, 36, 0)", ARRAY]),
    **{
        f"values of {kind}": (
            regions("train", lambda array, kind=kind: array.astype(kind)),
            [TRAIN, "float32", "astype"],
        )
        for kind in ("f8", ">f8", "i1", "u2", "i8", "?", "c8", "S4", "U4", "M8[s]", "f4,f4")
    },
    "an image too many": (
        regions("train", lambda array: np.concatenate([array, array[:1]])),
        [CAPTIONS, "200 captions", "41 rows", "205"],
    ),
    "images and captions of other splits": (
        lambda folder: (
            shutil.copy(folder / "dev_ims.npy", folder / "test_ims.npy")
            and cut("test_caps.txt", 200)(folder)
        ),
        ["test_caps.txt", "10 rows", "copy both files again"],
    ),
    "captions cut in half": (
        edit(CAPTIONS, lambda text: text[: len(text) // 2]),
        [CAPTIONS, "captions", "40 rows"],
    ),
    "captions cut inside a letter": (
        edit(CAPTIONS, lambda text: text.replace(b"\n", "\ncafé".encode()[:-1] + b"\n", 1)),
        [CAPTIONS, "line 2", "0xc3", "iconv"],
    ),
    "a NUL in a caption": (
        edit(CAPTIONS, lambda text: text.replace(b"\n", b"\n\0", 3)),
        [f"{CAPTIONS}: line 2 contains a NUL", "UTF-8", "copy the file again"],
    ),
    "zeros for captions": (
        edit(CAPTIONS, lambda text: bytes(len(text))),
        [f"{CAPTIONS}: line 1 contains a NUL"],
    ),
    "UTF-16 without its mark": (
        edit(CAPTIONS, lambda text: text.decode().encode("utf-16-le")),
        [f"{CAPTIONS}: line 1 contains a NUL", "UTF-8", "iconv -f utf-16"],
    ),
    "UTF-32": (
        edit(CAPTIONS, lambda text: text.decode().encode("utf-32")),
        [CAPTIONS, "line 1", "UTF-8"],
    ),
    "captions ended by a carriage return": (
        edit(CAPTIONS, lambda text: text.replace(b"\n", b"\r")),
        [CAPTIONS, "found 1 captions", "40 rows"],
    ),
    "captions between blank lines": (
        edit(CAPTIONS, lambda text: text.replace(b"\n", b"\n\n")),
        [CAPTIONS, "400 captions", "40 rows", "200"],
    ),
    "a picture for captions": (
        edit(CAPTIONS, lambda text: b"\x89PNG\r\n\x1a\n" + text),
        [CAPTIONS, "line 1", "0x89"],
    ),
    "NaN in BERT": (
        spoilt(np.nan),
        ["bert", "NaN or Inf in encoder.layer.1.output.dense.weight", "download"],
    ),
    "Inf in BERT": (
        spoilt(-np.inf),
        ["bert", "NaN or Inf in encoder.layer.1.output.dense.weight", "download"],
    ),
    "a BERT of no weights": (
        weights(lambda state: {"x": torch.ones(1)}),
        ["bert", "weights lack", "download"],
    ),
    "a BERT of another vocabulary": (
        weights(lambda state: state | {"embeddings.word_embeddings.weight": torch.ones(3, 128)}),
        ["bert", "(3, 128)", "expected (211, 128)"],
    ),
    "weights cut in their header": (cut(WEIGHTS, 7), ["bert", "does not load"]),
    "weights cut in their last entry": (cut(WEIGHTS, -4), ["bert", "does not load"]),
    "weights with a header of 2**60 bytes": (
        edit(WEIGHTS, lambda content: (2**60).to_bytes(8, "little") + content[8:]),
        ["bert", "does not load"],
    ),
    "weights that are a web page": (
        edit(WEIGHTS, lambda content: b"<!doctype html>"),
        ["bert", "does not load"],
    ),
    "no attention head": (
        configure(num_attention_heads=0),
        ["bert", "num_attention_heads 0", "expected 1 or more"],
    ),
    "heads in words": (configure(num_attention_heads="two"), ["bert", "num_attention_heads 'two'"]),
    "no hidden feature": (
        configure(hidden_size=0),
        ["bert", "hidden_size 0", "expected 1 or more"],
    ),
    "no layer": (
        configure(num_hidden_layers=0),
        ["bert", "num_hidden_layers 0", "expected 1 or more"],
    ),
    "fewer than no layers": (configure(num_hidden_layers=-1), ["bert", "num_hidden_layers -1"]),
    "a negative vocabulary": (configure(vocab_size=-1), ["bert"]),
    "padding beyond the vocabulary": (configure(pad_token_id=9999), ["bert", "does not load"]),
    "an unknown activation": (configure(hidden_act="os.system"), ["bert", "does not load"]),
    "a dropout of 7": (configure(hidden_dropout_prob=7), ["bert", "does not load"]),
    "a layer too wide": (configure(intermediate_size=100), ["bert", "expected (100"]),
    "positions that the weights lack": (
        configure(max_position_embeddings=512),
        ["bert", "expected (512, 128)"],
    ),
    "weights to be decompressed": (
        configure(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ["bert"],
    ),
    "a vocabulary cut short": (
        edit("bert/vocab.txt", lambda text: text[:3]),
        ["bert", "[PAD] is not its first entry"],
    ),
    "an empty vocabulary": (edit("bert/vocab.txt", lambda text: b""), ["bert", "expected a BERT"]),
    "an empty configuration": (
        edit("bert/config.json", lambda text: b""),
        ["bert", "expected a BERT"],
    ),
    "a configuration of nothing": (
        edit("bert/config.json", lambda text: b"{}"),
        ["bert", "'unknown'"],
    ),
    "a configuration in Latin-1": (
        edit("bert/config.json", lambda text: b'{"\xe9": 1}'),
        ["bert", "expected a BERT"],
    ),
    "a damaged tokenizer.json": (
        lambda folder: (folder / "bert" / "tokenizer.json").write_text("{"),
        ["bert", "expected a BERT"],
    ),
    "a damaged tokenizer_config.json": (
        edit("bert/tokenizer_config.json", lambda text: b"{"),
        ["bert", "does not load"],
    ),
    "a tokeniser without [CLS]": (tokeniser_with(cls_token=None), ["bert", "lacks [CLS]"]),
    "a tokeniser without [MASK]": (tokeniser_with(mask_token=None), ["bert", "[MASK]"]),
    "a tokeniser of another kind": (
        tokeniser_with(tokenizer_class="GPT2Tokenizer"),
        ["bert", "lacks [CLS]"],
    ),
    "a tokeniser that nobody has": (
        tokeniser_with(tokenizer_class="Evil"),
        ["bert", "does not load"],
    ),
    "a special token too many": (
        tokeniser_with(cls_token="[BEGIN]"),
        ["bert", "212 entries", "at most 211"],
    ),
}


@pytest.mark.parametrize("damage, expected", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_and_the_run_folder_is_left(
    data, untouched, refusal, damage, expected
):
    damage(data / "demo_precomp")
    refusal(
        train.main,
        *OPTIONS,
        "--data_path",
        data,
        "--logger_name",
        untouched,
        expected=[*expected, "expected"],
    )


VALUES = {  # put into a test image -> what the refusal says of it
    "1e38": (lambda array: array * 0 + 1e38, "values of 1e+38"),
    "-1e38": (lambda array: array * 0 - 1e38, "values of 1e+38"),
    "one of 2e12": (
        lambda array: np.where(np.arange(array.size).reshape(array.shape) == 77, 2e12, array),
        "2e+12",
    ),
    "all NaN": (lambda array: array * np.nan, "NaN or Inf"),
    "NaN beside 1e38": (lambda array: np.where(array > array.mean(), 1e38, np.nan), "NaN or Inf"),
    "both infinities": (
        lambda array: np.where(array > array.mean(), np.inf, -np.inf),
        "NaN or Inf",
    ),
}


@pytest.mark.parametrize("change, found", VALUES.values(), ids=VALUES)
def test_values_that_are_no_features_are_refused(data, finished, refusal, change, found):
    def changed(array):
        array[7] = change(array[7])
        return array

    regions("test", changed)(data / "demo_precomp")
    before = contents(finished)
    expected = [
        "test_ims.npy: image 7 (row 7, from 0)",
        found,
        "finite features of at most 1e+12",
        "extract",
    ]
    refusal(evaluation.main, "--model_path", finished, "--data_path", data, expected=expected)
    assert contents(finished) == before


def test_a_step_of_training_refuses_them_too(data, tmp_path, refusal):
    regions("train", lambda array: array * np.float32(1e30))(data / "demo_precomp")
    expected = [f"{TRAIN}: image ", "values of ", "at most 1e+12", "extract"]
    refusal(
        train.main,
        *OPTIONS,
        "--data_path",
        data,
        "--logger_name",
        tmp_path / "run",
        expected=expected,
    )
    assert not (tmp_path / "run" / "model_best.pth").exists()


def test_the_largest_values_that_are_let_in_train(data, tmp_path):
    for split in ("train", "dev", "test"):
        regions(split, lambda array: array / np.abs(array).max() * np.float32(LARGEST_FEATURE))(
            data / "demo_precomp"
        )
    train.main([*OPTIONS, "--data_path", str(data), "--logger_name", str(tmp_path / "run")])
    assert "skipped" not in (tmp_path / "run" / "train.txt").read_text()
    assert (tmp_path / "run" / "test.md").exists()


def test_a_training_that_diverges_ends_in_one_line(whole, tmp_path, refusal):
    argv = [
        *OPTIONS,
        "--learning_rate",
        "1e30",
        "--data_path",
        whole,
        "--logger_name",
        tmp_path / "run",
    ]
    expected = [
        "demo_precomp",
        "NaN or Inf in the embeddings of the dev split",
        "expected finite embeddings",
        "smaller --learning_rate",
    ]
    refusal(train.main, *argv, expected=expected)


IDS = {
    "an id too few": (b"".join(b"%d\n" % i for i in range(9)), ["found 9 ids for 10 images"]),
    "an id too many": (b"".join(b"%d\n" % i for i in range(51)), ["found 51 ids for 10 images"]),
    "no id": (b"", ["found 0 ids for 10 images", "optional"]),
    "ids in Latin-1": (b"1\n\xe9\n", ["line 2", "UTF-8"]),
    "a NUL among the ids": (b"1\n2\0\n", ["line 2", "NUL"]),
}


def first_fix(folder):
    """The first fix that the check of a folder asks for;
    ids that are wrong are in other splits too."""
    return check.check(folder).fixes[0]


@pytest.mark.parametrize("content, expected", IDS.values(), ids=IDS)
def test_ids_that_do_not_fit_are_to_be_mended(data, content, expected):
    (data / "demo_precomp" / "test_ids.txt").write_bytes(content)
    fix = first_fix(data / "demo_precomp")
    assert "test_ids.txt" in fix and all(text in fix for text in expected)


@pytest.mark.parametrize("put, found", IN_PLACE.values(), ids=IN_PLACE)
def test_ids_that_are_no_file_are_to_be_mended(data, put, found):
    in_place_of(data / "demo_precomp" / "dev_ids.txt", put)
    fix = first_fix(data / "demo_precomp")
    assert "dev_ids.txt" in fix and found in fix and "an image id per line" in fix


# Checkpoints and run folders


def options_with(**changes):
    def damage(path):
        saved_with(path, options=torch.load(path, weights_only=True)["options"] | changes)

    return damage


def model_with(change):
    """Damage: one weight replaced by change(weight)."""

    def damage(path):
        state = torch.load(path, weights_only=True)["model"]
        name = "text_encoder.projection.weight"
        saved_with(path, model=state | {name: change(state[name])})

    return damage


def entries(**changes):
    return lambda path: saved_with(path, **changes)


def cut_to(share):
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def without_member(name):
    """Damage: a zip file that lacks a member."""

    def damage(path):
        content = {}
        with zipfile.ZipFile(path) as file:
            content = {
                member: file.read(member) for member in file.namelist() if not member.endswith(name)
            }
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            for member, data in content.items():
                file.writestr(member, data)

    return damage


def published(path, **changes):
    content = {
        "model": [{}, {}],
        "opt": argparse.Namespace(embed_size=16),
        "epoch": 1,
        "best_rsum": 1.0,
    }
    torch.save(content | changes, path)


def nan_at(weight):
    weight[1, 1] = np.nan
    return weight


NO_MODEL = ["not a checkpoint of this model", "expected a file written by train.py"]
CHECKPOINTS = {
    **{
        f"cut to {share:.0%}": (cut_to(share), ["expected", "again"])
        for share in (0.001, 0.1, 0.6, 0.9, 0.999)
    },
    "without its pickle": (without_member("data.pkl"), ["cannot be read", "expected"]),
    "without a record": (without_member("data/3"), ["cannot be read", "expected"]),
    "a zip of something else": (
        lambda path: zipfile.ZipFile(path, "w").writestr("x", "y"),
        ["cannot be read"],
    ),
    "a zip of nothing": (lambda path: zipfile.ZipFile(path, "w").close(), ["expected"]),
    "a web page": (lambda path: path.write_text("<!doctype html>\n"), ["expected", "again"]),
    "zeros": (lambda path: path.write_bytes(bytes(1000)), ["expected", "again"]),
    "an array": (
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'"),
        ["expected", "again"],
    ),
    "a list": (lambda path: torch.save([1], path), [*NO_MODEL, "a list"]),
    "nothing": (lambda path: torch.save(None, path), [*NO_MODEL, "a NoneType"]),
    "an epoch in words": (entries(epoch="last"), NO_MODEL),
    "an infinite epoch": (entries(epoch=float("inf")), NO_MODEL),
    "an epoch of many numbers": (entries(epoch=torch.ones(3)), NO_MODEL),
    "an rsum in words": (entries(best_rsum="high"), NO_MODEL),
    "a model that is a list": (entries(model=[1, 2]), NO_MODEL),
    "options that are a list": (entries(options=["nhead"]), NO_MODEL),
    "an embedding in words": (options_with(embed_size="many"), [*NO_MODEL, "embed_size 'many'"]),
    "an embedding of nothing": (options_with(embed_size=0), [*NO_MODEL, "embed_size 0"]),
    "a negative embedding": (options_with(embed_size=-16), [*NO_MODEL, "embed_size -16"]),
    "an embedding of 10**12": (
        options_with(embed_size=10**12),
        [*NO_MODEL, "embed_size 1000000000000"],
    ),
    "no head": (options_with(nhead=0), [*NO_MODEL, "nhead 0"]),
    "heads that do not divide": (options_with(nhead=3), [*NO_MODEL, "nhead 3"]),
    "a dropout of 7": (options_with(dropout=7.0), [*NO_MODEL, "dropout 7.0"]),
    "a dropout in words": (options_with(dropout="x"), [*NO_MODEL, "dropout 'x'"]),
    "a residual weight that is NaN": (
        options_with(residual_weight=float("nan")),
        [*NO_MODEL, "residual_weight nan"],
    ),
    "a data set that is a number": (options_with(dataset=5), [*NO_MODEL, "dataset 5"]),
    "a BERT that is a number": (options_with(bert_path=5), [*NO_MODEL, "bert_path 5"]),
    "a seed that is a tensor": (options_with(seed=torch.ones(2)), [*NO_MODEL, "seed"]),
    "a split of selection that is a list": (
        options_with(val_split=[1]),
        [*NO_MODEL, "val_split [1]"],
    ),
    "a weight that is a word": (
        model_with(lambda weight: "x"),
        ["projection.weight is not a plain tensor"],
    ),
    "a weight of another shape": (
        model_with(lambda weight: weight[:, :3]),
        ["projection.weight is (16, 3)"],
    ),
    "a sparse weight": (
        model_with(torch.Tensor.to_sparse),
        ["projection.weight is not a plain tensor"],
    ),
    "a complex weight": (
        model_with(lambda weight: weight + 1j),
        ["projection.weight is not a plain tensor"],
    ),
    "a weight without memory": (
        model_with(lambda weight: weight.to("meta")),
        ["text_encoder.projection.weight"],
    ),
    "a weight of NaN": (
        model_with(nan_at),
        ["text_encoder.projection.weight contains NaN or Inf", "another checkpoint"],
    ),
    "weights that overflow": (
        model_with(lambda weight: weight * 0 + 3e38),
        ["NaN or Inf in the embeddings of the test split", "another checkpoint"],
    ),
    "a weight too many": (
        lambda path: saved_with(
            path, model=torch.load(path, weights_only=True)["model"] | {"x": torch.ones(1)}
        ),
        ["found x, which the model does not have", "--bert_path"],
    ),
    "published, without sizes": (published, [*NO_MODEL, "nhead"]),
    "published, of one encoder": (lambda path: published(path, model=[{}]), NO_MODEL),
    "published, options in a list": (lambda path: published(path, opt=[1]), NO_MODEL),
    "published, of other names": (
        lambda path: published(path, model=[{"conv1.weight": torch.ones(1)}, {}]),
        [*NO_MODEL, "conv1.weight"],
    ),
}


@pytest.mark.parametrize("damage, expected", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused_and_the_run_folder_is_left(
    finished, tmp_path, refusal, damage, expected
):
    copied = shutil.copytree(finished, tmp_path / "run")
    damage(copied / "model_best.pth")
    before = contents(copied)
    error = refusal(evaluation.main, "--model_path", copied, expected=expected)
    assert str(copied / "model_best.pth") in error or "demo_precomp" in error
    assert contents(copied) == before


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "null", "\0"])
def test_metrics_that_are_not_ours_are_left_alone(finished, tmp_path, refusal, content):
    copied = shutil.copytree(finished, tmp_path / "run")
    (copied / "metrics.json").write_text(content)
    before = contents(copied)
    expected = [copied / "metrics.json", "not JSON of ours", "expected the metrics", "move it away"]
    refusal(evaluation.main, "--model_path", copied, expected=expected)
    assert contents(copied) == before


def fail_to(monkeypatch, name, code):
    """Let a call of lib.system.files.os fail as the file system makes it fail."""

    def failing(*arguments):
        raise OSError(
            code, os.strerror(code), *(str(arguments[0]),) if isinstance(arguments[0], Path) else ()
        )

    monkeypatch.setattr(files.os, name, failing)


@pytest.mark.parametrize(
    "name, code, found",
    [
        ("fsync", errno.ENOSPC, "found no space left on device"),
        ("replace", errno.EROFS, "found read-only file system"),
        ("replace", errno.EACCES, "found permission denied"),
        ("fsync", errno.EDQUOT, "found disk quota exceeded"),
    ],
    ids=str,
)
def test_a_disk_that_takes_nothing_leaves_the_run_folder_as_it_was(
    finished, refusal, monkeypatch, name, code, found
):
    before = contents(finished)
    fail_to(monkeypatch, name, code)
    refusal(
        evaluation.main,
        "--model_path",
        finished,
        expected=[found, "expected to write there", "make room"],
    )
    monkeypatch.undo()
    assert contents(finished) == before


@pytest.mark.parametrize("name", ["train.txt", "Parameters.txt"])
def test_a_folder_in_the_way_of_a_log_is_named(whole, tmp_path, refusal, name):
    (tmp_path / "run" / name / "kept").mkdir(parents=True)
    argv = [*OPTIONS, "--data_path", whole, "--logger_name", tmp_path / "run", "--overwrite", "1"]
    refusal(train.main, *argv, expected=[name, "found a folder", "move the folder away"])
    assert (tmp_path / "run" / name / "kept").is_dir()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("test.md", ["found a folder", "move the folder away"]),
        ("metrics.json", ["a folder, not a file", "move it away"]),
    ],
)
def test_a_folder_in_the_way_of_a_table_is_named(finished, tmp_path, refusal, name, expected):
    copied = shutil.copytree(finished, tmp_path / "run")
    in_place_of(copied / name, as_folder)
    before = contents(copied)
    refusal(evaluation.main, "--model_path", copied, expected=[name, *expected])
    assert {
        name: content for name, content in contents(copied).items() if name.suffix != ".md"
    } == {name: content for name, content in before.items() if name.suffix != ".md"}


@pytest.mark.parametrize("option", ["--logger_name", "--model_name"])
def test_a_run_folder_that_cannot_be_is_refused(whole, tmp_path, refusal, option):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("not-there")
    for name in ("loop", "nowhere", "loop/run", "x" * 300):
        argv = [
            *OPTIONS,
            "--data_path",
            whole,
            "--logger_name",
            tmp_path / "run",
            option,
            tmp_path / name,
        ]
        refusal(train.main, *argv, expected=[tmp_path / name, "expected", "name another"])
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


NO_NAME, EMPTY = "cannot be part of a file's name", "found an empty text"
TEXTS = {
    "no data set": (["--dataset", ""], ["--dataset", EMPTY]),
    "a data set of two lines": (["--dataset", "a\nb"], ["--dataset", NO_NAME]),
    "a data set with a long name": (["--dataset", "x" * 300], ["--dataset", NO_NAME]),
    "a data set that is not there": (
        ["--dataset", "x" * 80],
        ["x_precomp", "no such folder", "--dataset"],
    ),
    "no split": (["--val_split", ""], ["--val_split", EMPTY]),
    "a split elsewhere": (["--val_split", "../../x"], ["--val_split", NO_NAME]),
    "a split that is not there": (
        ["--val_split", "x"],
        ["x_ims.npy", "no such file", "dev, test, train"],
    ),
    "no BERT": (["--bert_path", ""], ["--bert_path", EMPTY]),
    "a BERT that is a file": (
        ["--bert_path", __file__],
        ["test_damaged_files.py", "expected a BERT", "--bert_path"],
    ),
    "a BERT that is a folder of code": (
        ["--bert_path", str(Path(__file__).parent)],
        ["tests", "config.json"],
    ),
    "no device": (["--device", ""], ["--device", EMPTY]),
    "a data folder that is a file": (
        ["--data_path", __file__],
        ["test_damaged_files.py", "name another place"],
    ),
}


@pytest.mark.parametrize("more, expected", TEXTS.values(), ids=TEXTS)
def test_a_text_that_names_nothing_is_refused(
    whole, untouched, refusal, monkeypatch, tmp_path, more, expected
):
    monkeypatch.chdir(tmp_path)
    refusal(
        train.main,
        *OPTIONS,
        "--data_path",
        whole,
        "--logger_name",
        untouched,
        *more,
        expected=expected,
    )


# What is harmless


HARMLESS_CAPTIONS = {
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "no last line end": lambda text: text.removesuffix(b"\n"),
    "spaces around": lambda text: b"  " + text.replace(b"\n", b" \t\n"),
    "capital letters": bytes.upper,
}
HARMLESS_ARRAYS = {
    "Fortran order": np.asfortranarray,
    "big-endian": lambda array: array.astype(">f4"),
    "big-endian in Fortran order": lambda array: np.asfortranarray(array.astype(">f4")),
    "repeated rows": lambda array: array.repeat(5, axis=0),
}


def pairs_of(folder):
    split = RetrievalDataset(folder, "train", bert.tokeniser(folder / "bert"))
    return TrainingPairs(split, seed=3)[1, np.arange(0, 200, 7)], split.image_block(0, 40)[0]


def check_alike(folder, whole):
    (found, images), (expected, images_expected) = (
        pairs_of(folder),
        pairs_of(whole / "demo_precomp"),
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected)) and torch.equal(
        images, images_expected
    )


@pytest.mark.parametrize("change", HARMLESS_CAPTIONS.values(), ids=HARMLESS_CAPTIONS)
def test_captions_that_are_written_otherwise_are_the_same(whole, data, change):
    text = (data / "demo_precomp" / CAPTIONS).read_bytes()
    edit(CAPTIONS, change)(data / "demo_precomp")
    assert (data / "demo_precomp" / CAPTIONS).read_bytes() != text
    check_alike(data / "demo_precomp", whole)


@pytest.mark.parametrize("change", HARMLESS_ARRAYS.values(), ids=HARMLESS_ARRAYS)
def test_regions_that_are_laid_out_otherwise_are_the_same(whole, data, change):
    regions("train", change)(data / "demo_precomp")
    check_alike(data / "demo_precomp", whole)


@pytest.mark.parametrize("kind", ["<f2", ">f2"])
def test_half_precision_is_read_as_the_values_that_it_holds(data, kind):
    folder = data / "demo_precomp"
    array = np.load(folder / TRAIN).astype(kind)
    np.save(folder / TRAIN, array)
    np.testing.assert_array_equal(pairs_of(folder)[1].numpy(), array.astype(np.float32))


def half(state):
    return {name: value.half() for name, value in state.items()}


HARMLESS_BERTS = {
    "a vocabulary with CRLF": edit("bert/vocab.txt", lambda text: text.replace(b"\n", b"\r\n")),
    "a vocabulary without last line end": edit(
        "bert/vocab.txt", lambda text: text.removesuffix(b"\n")
    ),
    "other files beside": lambda folder: (folder / "bert" / "README.md").symlink_to("nowhere"),
    "a folder beside": lambda folder: (folder / "bert" / "onnx").mkdir(),
    "weights of a pooler": weights(lambda state: state | {"pooler.dense.weight": torch.ones(3)}),
    "weights under a prefix": weights(
        lambda state: {f"bert.{name}": value for name, value in state.items()}
    ),
    "weights in a pickle": lambda folder: (
        torch.save(load_file(folder / WEIGHTS), folder / "bert" / "pytorch_model.bin"),
        (folder / WEIGHTS).unlink(),
    ),
}


@pytest.mark.parametrize("change", HARMLESS_BERTS.values(), ids=HARMLESS_BERTS)
def test_a_bert_that_is_kept_otherwise_is_the_same(whole, data, change):
    change(data / "demo_precomp")
    ours, theirs = (folder / "demo_precomp" / "bert" for folder in (data, whole))
    found, expected = bert.model(ours).state_dict(), bert.model(theirs).state_dict()
    assert found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )
    texts = ["Two red dogs, running!", "Café 狗 zebra"]
    captions, captions_expected = (
        tokenise(texts, bert.tokeniser(folder)) for folder in (ours, theirs)
    )
    assert [captions.ids(i).tolist() for i in (0, 1)] == [
        captions_expected.ids(i).tolist() for i in (0, 1)
    ]


def test_weights_of_bert_in_half_precision_are_read_as_the_values_that_they_hold(data):
    folder = data / "demo_precomp"
    weights(half)(folder)
    expected = load_file(folder / WEIGHTS)
    for name, value in bert.model(folder / "bert").state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name].float())


def test_a_run_on_files_that_are_written_otherwise_is_the_same(whole, data, finished, tmp_path):
    folder = data / "demo_precomp"
    for split in ("train", "dev", "test"):
        regions(split, HARMLESS_ARRAYS["big-endian in Fortran order"])(folder)
        for name in ("a byte order mark", "CRLF", "no last line end"):
            edit(f"{split}_caps.txt", HARMLESS_CAPTIONS[name])(folder)
        remove(f"{split}_ids.txt")(folder)
    train.main([*OPTIONS, "--data_path", str(data), "--logger_name", str(tmp_path / "run")])
    ours, theirs = (
        torch.load(run / "model_best.pth", weights_only=True)
        for run in (tmp_path / "run", finished)
    )
    assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in theirs["model"])
    assert (tmp_path / "run" / "results_demo.npy").read_bytes() == (
        finished / "results_demo.npy"
    ).read_bytes()
    scores = [
        json.loads((run / "metrics.json").read_text())["test"]["scores"]
        for run in (tmp_path / "run", finished)
    ]
    assert scores[0] == scores[1]
