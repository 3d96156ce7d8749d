"""The image of each caption, from the files of a split."""

import numpy as np
import pytest

from lib.data import demo
from lib.data.batches import TrainingPairs, batches, training_loader
from lib.data.dataset import RetrievalDataset
from lib.data.pairing import Pairing, ids_of_images
from lib.model import bert
from lib.results.search import build_index
from lib.system.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo_precomp"
    demo.build(folder, sizes={"train": 12, "dev": 12, "test": 12})
    return folder


@pytest.fixture
def opened(folder, tmp_path):
    """Write a split with changed images and captions of the demo data, and open it."""

    def write(split="test", rows=slice(None), captions=slice(None), images=None, **files):
        lines = np.array((folder / f"{split}_caps.txt").read_text().splitlines())[captions]
        np.save(tmp_path / f"{split}_ims.npy", np.load(folder / f"{split}_ims.npy")[rows])
        if images is not None:
            files["caps_images"] = images
        for name, content in {"caps": lines, **files}.items():
            (tmp_path / f"{split}_{name}.txt").write_text("".join(f"{line}\n" for line in content))
        return RetrievalDataset(tmp_path, split, bert.tokeniser(folder / "bert"))

    return write


@pytest.mark.parametrize("per_image", [1, 2, 3, 5])
def test_equally_many_captions_need_no_further_file(opened, per_image):
    split = opened(captions=slice(12 * per_image))
    assert split.num_images == 12 and split.rows_per_image == 1
    assert split.caption_images.tolist() == [image for image in range(12) for _ in range(per_image)]


def test_a_file_maps_captions_to_rows(opened, folder):
    images = np.random.default_rng(0).permutation(
        np.repeat(np.arange(12), [1, 2, 8, 1, 1, 2, 3, 4, 1, 1, 1, 1])
    )
    split = opened(captions=slice(len(images)), images=images)
    assert split.caption_images.tolist() == images.tolist() and split.num_images == 12
    assert split.first_captions.tolist() == [images.tolist().index(image) for image in range(12)]
    assert (
        split.pairing.count_text() == "1 to 8 captions per image"
        and split.pairing.source == "test_caps_images.txt"
    )
    loader = training_loader(
        TrainingPairs(split, seed=0, drop_regions=False, augment_words=False), 13, workers=0
    )
    for (_, which), batch in zip(loader.sampler, batches(loader)):
        assert sorted(batch.image_ids.tolist()) == sorted(images[which])
        expected = np.load(folder / "test_ims.npy")[batch.image_ids]
        np.testing.assert_array_equal(batch.regions, expected)


def test_a_file_wins_over_equal_rows_and_order(opened):
    assert opened(rows=np.arange(12).repeat(5), images=range(60)).num_images == 60
    assert (
        opened(captions=slice(24), images=[*range(12)] * 2).caption_images.tolist()
        == [*range(12)] * 2
    )


def test_rows_that_a_map_counts_as_different_images_are_compared(opened):
    (note,) = opened(rows=np.arange(12).repeat(5), images=range(60)).notes
    assert "rows 0 and 1 (from 0) are the same image" in note and "store every image once" in note
    assert opened(captions=slice(24), images=[*range(12)] * 2).notes == []


def test_repeated_rows_of_several_captions_each_are_refused(opened):
    with pytest.raises(
        InputError,
        match="every image 6 times in consecutive rows, and 24 captions, 2 per row; .*once$",
    ):
        opened(rows=np.arange(2).repeat(6), captions=slice(24))
    assert opened(rows=[0, 0, *range(2, 12)]).num_images == 12  # an image that is stored twice


def test_fewer_captions_than_rows_are_refused(opened):
    with pytest.raises(
        InputError, match="found 12 captions for the 60 rows .* at least one caption per row"
    ):
        opened(rows=np.arange(12).repeat(5), captions=slice(12))


@pytest.mark.parametrize(
    "images, expected",
    [
        (range(59), ["found 59 lines", "60 captions"]),
        ([*range(59), 60], ["line 60 is 60", "0 to 59"]),
        ([*range(59), -1], ["line 60 is '-1'", "whole number"]),
        ([*range(59), 1.0], ["line 60 is '1.0'", "whole number"]),
        (["", *range(59)], ["line 1 is ''", "whole number"]),
        ([*range(59), 10**30], ["line 60 is '1000", "whole number"]),
        ([*range(58), 0, 0], ["2 images have no caption, the first is row 58"]),
    ],
)
def test_a_file_that_contradicts_the_others_is_refused(opened, images, expected):
    with pytest.raises(InputError) as error:
        opened(rows=np.arange(12).repeat(5), images=images)
    assert str(error.value).count("test_caps_images.txt: ") == 1
    assert all(part in str(error.value) for part in expected), error.value


def test_a_blank_line_at_the_end_of_a_map_is_ignored(opened):
    assert opened(rows=np.arange(12).repeat(5), images=[*range(60), "", ""]).num_images == 60


def test_counts_of_regions_of_one_image_agree(opened, folder, tmp_path):
    np.save(tmp_path / "test_num_regions.npy", np.arange(1, 13).repeat(5))
    assert opened(rows=np.arange(12).repeat(5)).num_regions.tolist() == [*range(1, 13)]
    np.save(tmp_path / "test_num_regions.npy", np.arange(1, 61).clip(max=36))
    with pytest.raises(InputError, match="found 1, 2, 3, 4, 5 regions for rows 0 to 4"):
        opened(rows=np.arange(12).repeat(5))


def test_the_first_captions_of_dev_are_kept_and_counted(opened, monkeypatch, folder):
    monkeypatch.setattr("lib.data.dataset.DEV_CAPTIONS", 14)
    split = opened("dev", captions=slice(36))
    assert split.caption_images.tolist() == [image for image in range(5) for _ in range(3)][:14]
    assert (
        "the first 14 of 36 captions are used, as published: 5 of 12 images, 1 of them with "
        "only some" in split.notes[0]
    )
    images = [11, 3, 7, 3, 11, 9, 0, 3, 3, 7, 11, 11, 9, 9, *range(12)]
    split = opened(
        "dev", captions=slice(len(images)), images=images, ids=[f"id{image}" for image in range(12)]
    )
    assert split.stored_images.tolist() == [0, 3, 7, 9, 11]
    assert split.stored_images[split.caption_images].tolist() == images[:14]
    assert "5 of 12 images, 5 of them with only some" in split.notes[0]
    np.testing.assert_array_equal(
        split.image_block(2, 4)[0], np.load(folder / "dev_ims.npy")[[7, 9]]
    )
    assert build_index(split).ids == ["id0", "id3", "id7", "id9", "id11"] and split.row_of(2) == 7


@pytest.mark.parametrize("blank", [1, 3])
def test_blank_lines_at_the_end_are_ignored_and_told_of(opened, tmp_path, blank):
    split = opened(captions=[*range(36)])
    texts = (tmp_path / "test_caps.txt").read_text()
    expected = [split.captions.ids(caption).tolist() for caption in range(36)]
    found = opened(captions=[*range(36)], caps=[*texts.splitlines(), *[" "] * blank])
    assert [found.captions.ids(caption).tolist() for caption in range(36)] == expected
    assert [f"test_caps.txt: {blank} blank line" in note for note in found.notes] == [True]


def test_blank_lines_that_could_be_captions_or_not_are_refused(opened, tmp_path):
    opened(captions=slice(36))
    texts = (tmp_path / "test_caps.txt").read_text().splitlines()
    doubled = [line for text in texts for line in (text, "")]
    with pytest.raises(
        InputError, match="found 72 .* the last of every 2 blank; expected 36 captions"
    ):
        opened(caps=doubled)
    # one blank line per image
    apart = [line for start in range(0, 36, 3) for line in (*texts[start : start + 3], "")]
    with pytest.raises(
        InputError, match="found 48 .* the last of every 4 blank; expected 36 captions"
    ):
        opened(caps=apart)
    with pytest.raises(
        InputError, match="found 2 blank lines at the end, which may or may not be captions"
    ):
        opened(rows=[0, 1], caps=[*texts[:10], "", ""])
    assert opened(caps=["", *texts[1:]]).blank_lines == [1]
    assert opened(caps=doubled, images=[n // 6 for n in range(72)]).num_captions == 72


def test_an_id_of_every_caption_gives_ids_of_images(opened, tmp_path):
    images = [0, 1, 0, 2, 1]
    found = Pairing(np.array(images), 3, 1, "test_caps_images.txt", [])
    path = tmp_path / "test_ids.txt"
    for ids, expected in (
        ("abc", "abc"),
        ("abacb", "abc"),
        (["a", "b", "a", "c", "b", ""], "abc"),
        ("vwxyz", "vwy"),
    ):
        assert ids_of_images(path, list(ids), found) == list(expected)
    assert ids_of_images(path, list("ab"), found) == list("ab")
    with pytest.raises(
        InputError, match=r"line 3 is b, expected a .* image 0 .*into test_caps_images.txt"
    ):
        ids_of_images(path, list("abbcb"), found)


def test_ids_that_contradict_the_order_of_the_captions_are_refused_at_opening(opened):
    with pytest.raises(
        InputError, match="test_ids.txt: line 2 is id1, expected id0 .*test_caps_images.txt.*remove"
    ):
        opened(ids=[f"id{image}" for image in [*range(12)] * 5])
    images = [*range(12)] * 5
    assert opened(images=images, ids=[f"id{image}" for image in images]).notes == []


def test_ids_that_several_images_share_are_told_of(opened):
    ids = [f"id{image // 5}" for image in range(60)]
    split = opened(rows=np.arange(12).repeat(5), images=range(60), ids=ids)
    assert (
        "test_ids.txt: 12 ids stand for several images, such as id0; each of these rows counts"
        in split.notes[-1]
    )
