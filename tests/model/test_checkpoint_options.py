"""Options in a checkpoint: plain values, and refused values."""

import pathlib
import shutil

import numpy as np
import pytest
import torch
from test_state import BEST

import eval as evaluation
from lib.model import checkpoint
from lib.system.errors import InputError


def test_options_that_numpy_and_pathlib_made_are_plain_values(whole, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    content = torch.load(folder / BEST, weights_only=True)
    numbers = dict(
        embed_size=np.int64(16), nhead=np.uint8(2), dropout=np.float32(0.5),
        residual_weight=np.float64(0.8), no_imgnorm=np.bool_(False), margin=np.float16(0.25),
        val_split=np.str_("dev"), data_path=pathlib.Path(whole), big=np.array([7], dtype=">i4")[0],
        nested=[np.int32(-1), pathlib.PurePath("a/b")],
        elsewhere=pathlib.PureWindowsPath("C:\\runs"),
    )  # fmt: skip
    torch.save(
        content | dict(options=content["options"] | numbers, epoch=np.int64(1)), folder / BEST
    )
    found = checkpoint.load(folder / BEST).options
    assert {name: found[name] for name in numbers} == dict(
        embed_size=16, nhead=2, dropout=0.5, residual_weight=0.8, no_imgnorm=False, margin=0.25,
        val_split="dev", data_path=str(whole), big=7, nested=[-1, "a/b"], elsewhere="C:\\runs",
    )  # fmt: skip
    assert all(type(found[name]) in (int, float, bool, str, list) for name in numbers)
    evaluation.main(["--model_path", str(folder)])


OPTIONS_OF_STRANGERS = {
    "a pooling of no name": (dict(pooling="sum"), "pooling 'sum', expected one of maxk+relation"),
    "no text encoder": (
        dict(text_encoder="lstm"),
        "text_encoder 'lstm', expected one of bert, bigru",
    ),
    "normalisation in words": (
        dict(no_imgnorm="False"),
        "no_imgnorm 'False', expected one of 0, 1",
    ),
    "masks of 2": (dict(mask_padding=2), "mask_padding 2, expected the number 0 or 1"),
    "features of 10**12": (
        dict(img_dim=10**12),
        "img_dim 1000000000000, expected a whole number from 1 to",
    ),
    "features of another size": (dict(img_dim=7), "with 128 columns, expected img_dim 7"),
    "words of 10**12": (dict(word_dim=10**12), "word_dim 1000000000000"),
    "a NUL in a path": (
        dict(data_path="a\0b"),
        "data_path 'a\\x00b', expected at most 4096 characters and no NUL",
    ),
    "a path without end": (
        dict(data_path="a" * 10**6),
        "expected at most 4096 characters and no NUL",
    ),
    "a distance in words": (
        dict(longest_distance="x"),
        "longest_distance 'x', expected a number from 0",
    ),
    "a list of lists of lists": (dict(x=[[[[[[1]]]]]]), "x a list, expected a plain value"),
    "a number of 1001 bits": (dict(x=1 << 1000), "x a number of 1001 bits"),
    "a key that is a number": ({3: 4}, "expected a dict of values by name"),
}


@pytest.mark.parametrize(
    "changes, expected", OPTIONS_OF_STRANGERS.values(), ids=OPTIONS_OF_STRANGERS
)
def test_options_that_describe_no_model_are_refused(finished, tmp_path, changes, expected):
    content = torch.load(finished / BEST, weights_only=True)
    torch.save(content | dict(options=content["options"] | changes), tmp_path / "file.pth")
    with pytest.raises(InputError) as met:
        checkpoint.load(tmp_path / "file.pth")
    assert expected in str(met.value) and "file.pth" in str(met.value)
