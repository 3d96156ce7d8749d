"""Batches of training pairs, and their loader."""

import itertools
import mmap
import multiprocessing
import pickle
import threading

import numpy as np
import pytest
import torch
from helpers import PROCESS_TIMEOUT, make_data

from lib.data import demo
from lib.data.batches import TrainingPairs, batches, training_loader
from lib.data.dataset import RetrievalDataset
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


def epoch_of(pairs, epoch=0, batch_size=32, workers=0):
    loader = training_loader(pairs, batch_size, workers)
    loader.sampler.epoch = epoch
    return [type(batch)(*(tensor.clone() for tensor in batch)) for batch in batches(loader)]


def same_batches(left, right):
    return len(left) == len(right) and all(
        torch.equal(*tensors) for batches_ in zip(left, right) for tensors in zip(*batches_)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(train, workers):
    pairs = TrainingPairs(train, seed=1)
    for epoch in (0, 1):
        assert same_batches(epoch_of(pairs, epoch, workers=workers), epoch_of(pairs, epoch))


def test_the_epochs_before_change_nothing(train):
    pairs = TrainingPairs(train, seed=1)
    loader = training_loader(pairs, 32, workers=2)
    for epoch in (0, 1, 0):
        loader.sampler.epoch = epoch
        assert same_batches(list(batches(loader)), epoch_of(pairs, epoch))


def test_a_caption_is_altered_alike_in_any_batch(train):
    pairs = TrainingPairs(train, seed=1)
    alone = pairs[2, np.array([7])]
    together = pairs[2, np.array([90, 7, 31])]
    row = together.image_ids.tolist().index(1)
    assert torch.equal(together.pieces[row, : together.piece_lengths[row]], alone.pieces[0])
    assert torch.equal(together.regions[row, : together.region_lengths[row]], alone.regions[0])


def test_epochs_and_seeds_differ(train):
    first = epoch_of(TrainingPairs(train, seed=1))
    for other in (
        epoch_of(TrainingPairs(train, seed=1), epoch=1),
        epoch_of(TrainingPairs(train, seed=2)),
    ):
        assert not same_batches(first, other)
        assert any(not torch.equal(a.image_ids, b.image_ids) for a, b in zip(first, other))
    which, pairs = np.arange(40), TrainingPairs(train, seed=1)
    assert not torch.equal(pairs[0, which].region_lengths, pairs[1, which].region_lengths)
    assert not torch.equal(pairs[0, which].pieces, pairs[1, which].pieces)


def test_a_batch_is_sorted_by_length_and_padded_with_zeros(train):
    for batch in epoch_of(TrainingPairs(train, seed=0)):
        lengths = batch.piece_lengths.tolist()
        assert lengths == sorted(lengths, reverse=True) and batch.pieces.shape == (32, lengths[0])
        assert batch.regions.shape == (32, batch.region_lengths.max(), demo.FEATURES)
        assert batch.regions.dtype == torch.float32
        for pieces, length in zip(batch.pieces, lengths):
            assert (pieces[:length] > 0).all() and (pieces[length:] == 0).all()
        for regions, length in zip(batch.regions, batch.region_lengths):
            assert (regions[length:] == 0).all() and regions[:length].any(dim=1).all()
    assert batch.region_lengths.unique().numel() > 1  # i.e. there was padding


def test_regions_are_kept_in_order_four_of_five(folder, train):
    array, kept = images(folder, "train"), []
    for batch in epoch_of(TrainingPairs(train, seed=0), batch_size=150):
        for regions, length, image in zip(
            batch.regions.numpy(), batch.region_lengths, batch.image_ids
        ):
            is_same = (regions[:length, None] == array[image][None]).all(axis=2)
            assert (is_same.sum(axis=1) == 1).all() and (np.diff(is_same.argmax(axis=1)) > 0).all()
            kept.append(int(length) / 36)
    assert (
        np.mean(kept) == pytest.approx(0.8, abs=4 * 0.4 / np.sqrt(150 * 36)) and np.std(kept) > 0.03
    )


def test_one_region_is_kept_at_least(folder, train, monkeypatch):
    monkeypatch.setattr("lib.data.batches.REGION_KEEP_PROBABILITY", 0)
    batch = TrainingPairs(train, seed=0)[0, np.arange(100)]
    assert set(batch.region_lengths.tolist()) == {1}
    places = [
        int((images(folder, "train")[image] == regions).all(axis=1).argmax())
        for image, regions in zip(batch.image_ids, batch.regions.numpy())
    ]
    assert len(set(places)) > 10


def test_two_views_drop_their_own_regions_of_a_whole_image(folder, train):
    whole, which = images(folder, "train"), np.arange(60)
    batch = TrainingPairs(train, seed=0, views=2)[0, which]
    np.testing.assert_array_equal(batch.regions, whole[batch.image_ids])
    assert batch.views.shape == (60, 2, 36) and (batch.region_lengths == 36).all()
    assert batch.views.float().mean().item() == pytest.approx(0.8, abs=0.03)
    is_equal = (batch.views[:, 0] == batch.views[:, 1]).float().mean().item()
    assert is_equal == pytest.approx(0.8**2 + 0.2**2, abs=0.03)  # drawn independently
    assert torch.equal(TrainingPairs(train, seed=0, views=2)[0, which].views, batch.views)
    one = TrainingPairs(train, seed=0)[0, which]
    # the first view is what one view would be
    for regions, seen, kept, length in zip(
        batch.regions, batch.views[:, 0], one.regions, one.region_lengths
    ):
        assert torch.equal(regions[seen], kept[:length])
    assert torch.equal(one.pieces, batch.pieces) and not len(one.views)


def test_a_view_has_no_padding(written, monkeypatch):
    monkeypatch.setattr("lib.data.batches.REGION_KEEP_PROBABILITY", 1)
    array = np.random.default_rng(0).random((8, 5, 128), dtype=np.float32)
    split = written(array=array)
    split.num_regions = np.where(np.arange(8) == 3, 2, 5)
    batch = TrainingPairs(split, seed=0, views=2)[0, np.arange(40)]
    expected = torch.arange(5) < batch.region_lengths.unsqueeze(1)
    assert set(batch.region_lengths.tolist()) == {2, 5}
    assert torch.equal(batch.views, expected.unsqueeze(1).expand(-1, 2, -1))


def test_without_augmentation_a_pair_is_whole(folder, train):
    which = np.array([149, 3, 77, 4])
    batch = TrainingPairs(train, seed=0, drop_regions=False, augment_words=False)[0, which]
    assert sorted(batch.image_ids.tolist()) == [0, 0, 15, 29]
    np.testing.assert_array_equal(batch.regions, images(folder, "train")[batch.image_ids])
    expected = sorted(
        (train.captions.ids(caption).tolist() for caption in which), key=len, reverse=True
    )
    found = [row[:length].tolist() for row, length in zip(batch.pieces, batch.piece_lengths)]
    assert sorted(found) == sorted(expected) and list(map(len, found)) == list(map(len, expected))


def test_image_ids_are_those_of_the_captions(train):
    pairs = TrainingPairs(train, seed=0, augment_words=False)
    loader = training_loader(pairs, 32, workers=0)
    for (_, which), batch in zip(loader.sampler, batches(loader)):
        captions = {(train.captions.ids(caption).tobytes(), caption // 5) for caption in which}
        found = {
            (pieces[:length].numpy().tobytes(), int(image))
            for pieces, length, image in zip(batch.pieces, batch.piece_lengths, batch.image_ids)
        }
        assert found == captions


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_bad_data_met_by_a_worker_end_in_the_main_process(folder, written, monkeypatch, workers):
    array = images(folder, "train")
    array[11, 0, 0] = np.nan
    loader = training_loader(TrainingPairs(written("train", array=array), seed=0), 50, workers)
    with pytest.raises(InputError, match=r"train_ims.npy: image 11 \(row 11, from 0\)"):
        list(batches(loader))
    killed = []
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "terminate", killed.append)
    del loader
    assert not multiprocessing.active_children() and not killed


@pytest.mark.parametrize("workers", [0, 1])
def test_the_batches_before_bad_data_come(folder, written, workers):
    array = images(folder, "train")
    expected = epoch_of(TrainingPairs(written("train", array=array), seed=0), batch_size=10)
    bad = next(
        image
        for batch in expected
        for image in batch.image_ids
        if image not in expected[0].image_ids
    )
    before = list(itertools.takewhile(lambda batch: bad not in batch.image_ids, expected))
    array[bad, 35, 1] = np.nan
    found = []
    loader = training_loader(TrainingPairs(written("train", array=array), seed=0), 10, workers)
    with pytest.raises(InputError, match=f"image {bad} "):
        for batch in batches(loader):
            found.append(batch)
    assert same_batches(found, before)


def test_regions_do_not_pass_between_processes(train):
    pairs, which = TrainingPairs(train, seed=0), np.arange(100)
    assert len(pickle.dumps(pairs.draw(0, which))) < pairs[0, which].regions.nbytes / 10


def test_an_epoch_left_early_leaves_no_thread_and_no_worker(train):
    before = threading.enumerate()
    loader = training_loader(TrainingPairs(train, seed=0), 10, workers=1)
    found = batches(loader)
    next(found)
    assert threading.active_count() > len(before)
    found.close()
    del loader, found
    assert not multiprocessing.active_children()
    for thread in threading.enumerate():
        if thread not in before:
            thread.join(PROCESS_TIMEOUT)  # the thread of a queue ends shortly after its worker
    assert threading.enumerate() == before


def test_batches_are_the_same_where_there_are_no_huge_pages(train, monkeypatch):
    pairs, which = TrainingPairs(train, seed=0), np.arange(50)
    expected = pairs[0, which]
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert same_batches([pairs[0, which]], [expected])


def test_a_batch_larger_than_the_split_is_refused(train):
    with pytest.raises(
        InputError, match="train split has 150 pairs, expected at least one batch of 151"
    ):
        training_loader(TrainingPairs(train, seed=0), 151, workers=0)
    assert len(training_loader(TrainingPairs(train, seed=0), 150, workers=0)) == 1
