"""Regions and captions of a split."""

import os
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from helpers import make_data
from published import make_model
from test_batches import epoch_of, same_batches
from transformers import BertConfig, BertModel

from lib.data import dataset, demo
from lib.data.batches import TrainingPairs
from lib.data.dataset import RetrievalDataset
from lib.data.layout import read_lines
from lib.data.region_file import RegionFile
from lib.evaluation import encoding, metrics
from lib.model import bert
from lib.system.errors import InputError

SIZES = {"train": 30, "dev": 8, "test": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A demo data folder, which tests do not change."""
    return make_data(tmp_path_factory, **SIZES) / "demo_precomp"


@pytest.fixture(scope="module")
def tokeniser(folder):
    return bert.tokeniser(folder / "bert")


@pytest.fixture(scope="module")
def train(folder, tokeniser):
    return RetrievalDataset(folder, "train", tokeniser)


@pytest.fixture(scope="module")
def model(tokeniser):
    torch.manual_seed(0)
    settings = dict(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    small = BertModel(BertConfig(vocab_size=len(tokeniser), **settings), add_pooling_layer=False)
    return make_model(small, demo.FEATURES, embed_size=16, nhead=2).eval()


@pytest.fixture
def written(folder, tokeniser, tmp_path):
    """Write a split from an array and captions, by default those of the demo data, and open it."""

    def write(split="test", array=None, captions=None):
        # a new folder, because the file of an open split must not change
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        place.mkdir()
        np.save(place / f"{split}_ims.npy", images(folder, split) if array is None else array)
        content = (folder / f"{split}_caps.txt").read_bytes() if captions is None else captions
        (place / f"{split}_caps.txt").write_bytes(content)
        return RetrievalDataset(place, split, tokeniser)

    return write


def images(folder, split="test"):
    return np.load(folder / f"{split}_ims.npy")


def same_captions(left, right):
    return len(left) == len(right) and all(
        np.array_equal(left.ids(i), right.ids(i)) for i in range(len(left))
    )


def table(model, split):
    found = encoding.similarities(model, split, torch.device("cpu"))
    return found[:, :], metrics.scores(metrics.ranks(found))


def test_repeated_rows_and_single_rows_evaluate_alike(folder, model, written):
    single, repeated = written(), written(array=images(folder).repeat(5, axis=0))
    assert (single.num_images, single.rows_per_image) == (8, 1)
    assert (repeated.num_images, repeated.rows_per_image) == (8, 5)
    similarities, scores = table(model, single)
    again, scores_again = table(model, repeated)
    np.testing.assert_array_equal(similarities, again)
    assert similarities.shape == (8, 40) and scores == scores_again


def test_repeated_rows_and_single_rows_train_alike(folder, written):
    single = written("train")
    expected = epoch_of(TrainingPairs(single, seed=3))
    repeated = written("train", array=images(folder, "train").repeat(5, axis=0))
    assert same_batches(epoch_of(TrainingPairs(repeated, seed=3)), expected)


def test_of_repeated_rows_the_first_is_read(folder, written):
    array = images(folder).repeat(5, axis=0)
    # in a region that is not compared when the file is opened
    array[np.arange(40) % 5 > 0, 1] = np.nan
    np.testing.assert_array_equal(written(array=array).image_block(2, 5)[0], images(folder)[2:5])


def test_features_that_are_cut_between_the_check_and_the_read_are_an_error_and_no_signal(
    folder, written
):
    split = written(array=images(folder))
    with open(split.regions_path, "r+b") as file:
        file.truncate(split.regions_path.stat().st_size // 2)
    assert split.unchecked_regions(0).shape == (36, images(folder).shape[2])
    with pytest.raises(
        InputError, match=r"changed while it was in use \(found \d+ bytes, \d+ when it was opened"
    ):
        split.unchecked_regions(split.num_images - 1)


@pytest.mark.parametrize("convert", [
    lambda array: array.astype(np.float16), lambda array: array.astype(">f4"),
    lambda array: array.astype(">f2"), np.asfortranarray,
    lambda array: np.asfortranarray(array.astype(">f4")),
], ids=[
    "float16", "big-endian", "big-endian float16", "Fortran order", "big-endian in Fortran order"
])  # fmt: skip
def test_other_layouts_of_the_same_values_read_alike(folder, model, written, convert):
    array = images(folder).astype(np.float16).astype(np.float32)
    plain = written(array=array)
    batch, evaluated = TrainingPairs(plain, seed=0)[0, np.arange(40)], table(model, plain)[0]
    split = written(array=convert(array))
    assert split.image_block(1, 4)[0].dtype == torch.float32
    assert same_batches([TrainingPairs(split, seed=0)[0, np.arange(40)]], [batch])
    np.testing.assert_array_equal(table(model, split)[0], evaluated)


@pytest.mark.parametrize("repeats", [1, 5])
def test_dev_alone_is_cut(folder, written, monkeypatch, repeats):
    monkeypatch.setattr(dataset, "DEV_CAPTIONS", 20)
    dev = written("dev", array=images(folder, "dev").repeat(repeats, axis=0))
    assert (dev.num_images, dev.num_captions) == (4, 20)
    np.testing.assert_array_equal(dev.image_block(0, 4)[0], images(folder, "dev")[:4])
    assert written("test").num_captions == 40


def test_dev_is_cut_to_the_captions_that_scan_takes():
    assert dataset.DEV_CAPTIONS == 5000


@pytest.mark.parametrize("change", [
    lambda text: text.replace(b"\n", b"\r\n"), lambda text: b"\xef\xbb\xbf" + text,
    lambda text: text.rstrip(b"\n"), lambda text: text.replace(b"\n", b" \t\n"),
    lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
], ids=["CRLF", "BOM", "no last line end", "white space at the end", "BOM and CRLF"])  # fmt: skip
def test_captions_read_alike(folder, written, change):
    plain = written()
    text = (folder / "test_caps.txt").read_bytes()
    assert change(text) != text
    changed = written(captions=change(text))
    assert same_captions(plain.captions, changed.captions) and not changed.blank_lines
    assert read_lines(changed.folder / "test_caps.txt") == read_lines(
        plain.folder / "test_caps.txt"
    )


def test_blank_captions_hold_their_place(folder, written):
    lines = (folder / "test_caps.txt").read_bytes().split(b"\n")
    plain = written().captions
    lines[0], lines[12], lines[39] = b"", b" \t\r", b""
    split = written(captions=b"\n".join(lines))
    assert split.blank_lines == [1, 13, 40] and split.num_captions == 40
    for caption in range(40):
        is_blank = caption in (0, 12, 39)
        expected = (
            [split.captions.special.start, split.captions.special.end]
            if is_blank
            else plain.ids(caption)
        )
        np.testing.assert_array_equal(split.captions.ids(caption), expected)
    assert TrainingPairs(split, seed=0)[0, np.array([12, 0])].piece_lengths.tolist() == [2, 2]


@pytest.mark.parametrize(
    "separator", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x85", "\r"]
)
def test_only_a_line_feed_ends_a_caption(tmp_path, separator):
    path = tmp_path / "test_caps.txt"
    path.write_bytes(f"a red{separator}ball\na cube\n".encode())
    assert read_lines(path) == [f"a red{separator}ball", "a cube"]


@pytest.mark.parametrize(
    "content, line, byte",
    [
        (b"a\nb\ncaf\xe9\n", 3, "e9"),
        (b"\xef\xbb\xbfa\nb\n\xff", 3, "ff"),
        (b"\xef\xbb\xbf\xfe", 1, "fe"),
        (b"a\nb\xe2\x82\n", 2, "e2"),
    ],
)
def test_a_caption_that_is_not_utf8_is_named_by_its_line(tmp_path, content, line, byte):
    path = tmp_path / "test_caps.txt"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=rf"test_caps.txt: line {line} is not UTF-8 \(byte 0x{byte}\)"
    ):
        read_lines(path)


def test_a_caption_longer_than_bert_is_cut(folder, tokeniser):
    split = RetrievalDataset(folder, "test", tokeniser, longest_caption=8)
    assert split.captions.lengths.max() <= 8 and split.captions.num_shortened > 0


@pytest.mark.parametrize("values", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]], ids=str)
def test_an_image_that_is_not_finite_is_named(folder, model, written, values):
    array = images(folder)
    array[5, 35, : len(values)] = values
    split = written(array=array)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            InputError, match=r"test_ims.npy: image 5 \(row 5, from 0\) contains NaN or Inf"
        ):
            encoding.encode_images(model, split, torch.device("cpu"))
        split.image_block(0, 5)


@pytest.mark.parametrize("value", [9.9e11, -9.9e11, 2e12, -2e12, 3e38])
def test_values_whose_squares_leave_float32_are_refused(folder, written, value):
    array = images(folder)
    array[0, 7, 9] = value
    split = written(array=array)
    if abs(value) < 1e12:
        assert torch.equal(split.image_block(0, 1)[0], torch.from_numpy(array[:1]))
    else:
        with pytest.raises(
            InputError, match=r"image 0 .* contains values of .*e\+\d+, expected .* at most 1e\+12"
        ):
            split.image_block(0, 1)


def test_captions_are_tokenised_once(folder, tokeniser, monkeypatch):
    calls, tokenise = [], dataset.tokenise_cached
    monkeypatch.setattr(
        dataset, "tokenise_cached", lambda *arguments: calls.append(1) or tokenise(*arguments)
    )
    pairs = TrainingPairs(RetrievalDataset(folder, "train", tokeniser), seed=0)
    assert calls == [1]
    monkeypatch.setattr("lib.data.captions.split_words", None)  # no text is tokenised from here on
    assert len(epoch_of(pairs, 0) + epoch_of(pairs, 1)) == 8 and calls == [1]


def test_a_split_travels_to_a_process_without_its_regions(train):
    packed = pickle.dumps(train)
    assert len(packed) < train.regions.nbytes / 10
    assert same_batches(
        epoch_of(TrainingPairs(pickle.loads(packed), seed=0)),
        epoch_of(TrainingPairs(train, seed=0)),
    )


def sparse(path, shape):
    """Write a sparse .npy file of zeros; skip the test if the file system does not support it."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, dict(descr="<f4", fortran_order=False, shape=shape)
        )
        file.truncate(file.tell() + 4 * int(np.prod(shape)))
    if path.stat().st_blocks * 512 > 1e6:
        path.unlink()
        pytest.skip("this file system does not keep files sparse: 33 GB of zeros would be written")


def resident():
    """Resident memory of this process in bytes; None if /proc does not exist."""
    if not os.path.exists("/proc/self/statm"):
        return None
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_33_gb_open_at_once_and_are_not_read(tmp_path, tokeniser):
    images_of_coco = 113287
    sparse(tmp_path / "train_ims.npy", (images_of_coco, 36, 2048))
    (tmp_path / "train_caps.txt").write_bytes(b"\n" * images_of_coco * 5)
    RegionFile(tmp_path / "train_ims.npy")
    before, started = resident(), time.perf_counter()
    regions = RegionFile(tmp_path / "train_ims.npy")
    assert time.perf_counter() - started < 3 and regions.nbytes > 33e9
    split = RetrievalDataset(tmp_path, "train", tokeniser)
    batch = TrainingPairs(split, seed=0)[0, np.array([0, 5 * images_of_coco - 1])]
    assert batch.image_ids.tolist() == [0, images_of_coco - 1] and batch.regions.shape[2] == 2048
    assert before is None or resident() - before < 100e6
