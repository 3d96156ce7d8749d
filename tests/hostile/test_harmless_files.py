"""Files that are stored in another way, with the same contents, are read as the same."""

import json

import numpy as np
import pytest
import torch
from damage import CAPTIONS, OPTIONS, TRAIN, WEIGHTS, edit, regions, remove
from safetensors.torch import load_file
from test_damaged_files import weights

import train
from lib.data.batches import TrainingPairs
from lib.data.captions import tokenise
from lib.data.dataset import RetrievalDataset
from lib.model import bert

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
