"""Files of a data folder, damaged in many ways, are refused in one line."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from damage import CAPTIONS, OPTIONS, TRAIN, WEIGHTS, configure, edit, regions
from safetensors.torch import load_file, save_file
from test_no_files import IN_PLACE, in_place_of

import train
from lib.data import check

HEADER = 128  # bytes of the header of a .npy file


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
