"""Which image a caption belongs to: in numbers against loops, and as the files of a split say."""

import itertools

import numpy as np
import pytest
import torch

from lib.data import demo, pairing, sampling
from lib.data.batches import TrainingPairs, batches, training_loader
from lib.data.dataset import RetrievalDataset
from lib.data.pairing import Pairing, find_repeats, ids_of_images
from lib.evaluation import bootstrap, metrics, tiles
from lib.evaluation.similarity import Similarity, ensemble
from lib.model import bert
from lib.results.search import build_index
from lib.system.errors import InputError


def random_map(num_images, seed, is_sorted):
    """1 to 7 captions an image."""
    draw = np.random.default_rng(seed)
    images = np.repeat(np.arange(num_images), draw.integers(1, 8, num_images))
    return images if is_sorted else draw.permutation(images)


def random_matrix(images, seed, decimals):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((images.max() + 1, len(images))).round(decimals).astype(np.float32)


def naive_ranks(matrix, images):
    """Sort the candidates of every query, equal ones in the file's order,
    and look where the true ones stand."""
    num_images, num_captions = matrix.shape
    image_to_text, text_to_image = [], []
    for image in range(num_images):
        order = sorted(range(num_captions), key=lambda caption: (-matrix[image, caption], caption))
        image_to_text.append(
            min(rank for rank, caption in enumerate(order) if images[caption] == image)
        )
    for caption in range(num_captions):
        order = sorted(range(num_images), key=lambda image: (-matrix[image, caption], image))
        text_to_image.append(order.index(images[caption]))
    return image_to_text, text_to_image


MAPS = [
    (n, seed, is_sorted)
    for n, seed in ((1, 0), (2, 1), (9, 2), (14, 3))
    for is_sorted in (True, False)
]


@pytest.mark.parametrize("tile_images", [1, 3, 250])
@pytest.mark.parametrize("decimals", [7, 1, 0])
@pytest.mark.parametrize("num_images, seed, is_sorted", MAPS)
def test_ranks_of_any_map_are_the_loop(
    monkeypatch, num_images, seed, is_sorted, decimals, tile_images
):
    monkeypatch.setattr(tiles, "TILE_IMAGES", tile_images)
    images = random_map(num_images, seed, is_sorted)
    matrix = random_matrix(images, seed, decimals)
    found = metrics.ranks(matrix, images)
    assert (found.image_to_text.tolist(), found.text_to_image.tolist()) == naive_ranks(
        matrix, images
    )


def test_an_image_of_very_many_captions_ranks_by_the_loop():
    images = np.repeat([0, 1, 2], [40_000, 2, 3])  # more than a 16-bit number counts
    matrix = np.zeros((3, len(images)), np.float32)
    matrix[1] = images == 0
    matrix[0] = images != 0
    found = metrics.ranks(matrix, images)
    assert found.image_to_text.tolist() == [5, 40_000, 40_002]
    assert found.text_to_image[[0, 40_000, 40_002]].tolist() == [1, 1, 2]


@pytest.mark.parametrize("per_image", [1, 2, 3, 7])
def test_without_a_map_captions_are_in_order(per_image):
    images = np.repeat(np.arange(6), per_image)
    matrix = random_matrix(images, per_image, 1)
    for ours, theirs in zip(metrics.ranks(matrix), naive_ranks(matrix, images)):
        assert ours.tolist() == theirs


@pytest.mark.parametrize("num_images, seed, is_sorted", MAPS)
def test_a_similarity_carries_its_map(num_images, seed, is_sorted):
    images = random_map(num_images, seed, is_sorted)
    torch.manual_seed(seed)
    similarity = Similarity(torch.randn(num_images, 4), torch.randn(len(images), 4), images)
    for found in (similarity, ensemble([similarity, similarity])):
        assert [one.tolist() for one in metrics.ranks(found)] == [
            *naive_ranks(similarity[:, :], images)
        ]


def test_an_ensemble_of_other_pairs_is_refused():
    one, other = (
        Similarity(torch.eye(2), torch.eye(2)[[0, 1, 1]], images)
        for images in ([0, 1, 1], [1, 0, 0])
    )
    with pytest.raises(ValueError, match="same pairs"):
        ensemble([one, other])


@pytest.mark.parametrize("images", [[0, 1], [0, 0, 0], [0, 1, 2], [0, -1, 1], [[0, 1, 1]]])
def test_a_map_that_does_not_fit_is_refused(images):
    with pytest.raises(
        ValueError, match="each of the 3 captions, and .* each of the 2 images, found"
    ):
        metrics.ranks(np.zeros((2, 3), np.float32), images)


@pytest.mark.parametrize("is_sorted", [True, False])
def test_folds_are_consecutive_images_with_their_captions(is_sorted):
    images = random_map(12, 5, is_sorted)
    matrix, tables = random_matrix(images, 5, 1), []
    for start in range(0, 12, 3):
        columns = [caption for caption, image in enumerate(images) if start <= image < start + 3]
        ranks = naive_ranks(
            matrix[start : start + 3, columns], [images[caption] - start for caption in columns]
        )
        tables.append(
            [[100 * np.mean([rank < k for rank in one]) for k in (1, 5, 10)] for one in ranks]
        )
    found = metrics.fold_scores(matrix, 4, images)
    np.testing.assert_allclose([one[:3] for one in found], np.mean(tables, axis=0))


@pytest.mark.parametrize("num_images, seed, is_sorted", MAPS)
def test_pairs_and_hardest_negatives_of_any_map_by_loops(monkeypatch, num_images, seed, is_sorted):
    monkeypatch.setattr(tiles, "TILE_IMAGES", 3)
    images = random_map(num_images, seed, is_sorted)
    matrix = random_matrix(images, seed, 7)
    found = metrics.pair_similarities(matrix, images)
    is_true = np.arange(num_images)[:, None] == images
    wrong = np.where(is_true, -np.inf, matrix)
    np.testing.assert_array_equal(found.true, matrix.T[is_true.T])
    np.testing.assert_array_equal(found.hardest_captions, wrong.max(1))
    np.testing.assert_array_equal(found.hardest_images, wrong.max(0))


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_intervals_weigh_images_by_their_captions(is_sorted, folds):
    images = random_map(12, 7, is_sorted)
    similarity = Similarity(
        torch.from_numpy(random_matrix(images, 7, 7)), torch.eye(len(images)), images
    )
    table = metrics.fold_scores(similarity, folds)
    found = bootstrap.compare([similarity], similarity, {"12": folds}, 40)["12"]
    expected = [*table.image_to_text[:3], *table.text_to_image[:3], table.rsum]
    np.testing.assert_allclose([one.value for one in found.values()], expected)
    assert all(0 <= one.low <= one.high <= 100 + 1e-9 for one in list(found.values())[:6])


def test_intervals_of_a_map_are_the_loop_over_samples():
    images = random_map(9, 8, is_sorted=False)
    matrix = random_matrix(images, 8, 7)
    ranks, generator, tables = naive_ranks(matrix, images), np.random.default_rng(3), []
    for _ in range(60):
        drawn = np.arange(9).repeat(generator.multinomial(9, [1 / 9] * 9))
        captions = [caption for image in drawn for caption in np.flatnonzero(images == image)]
        chosen = [ranks[0][image] for image in drawn], [ranks[1][caption] for caption in captions]
        row = [100 * np.mean([rank < k for rank in one]) for one in chosen for k in (1, 5, 10)]
        tables.append([*row, sum(row)])
    weights = bootstrap.image_weights(matrix, 1, images)
    found = bootstrap.intervals(bootstrap.hits(matrix, 1, images), 60, seed=3, weights=weights)
    np.testing.assert_allclose(
        [one.low for one in found.values()], np.percentile(tables, 2.5, axis=0)
    )
    np.testing.assert_allclose(
        [one.high for one in found.values()], np.percentile(tables, 97.5, axis=0)
    )


def test_neighbour_batches_of_any_map():
    images = random_map(40, 9, is_sorted=False)
    clusters = np.random.default_rng(0).integers(0, 4, 40)
    sampler = sampling.NeighbourSampler(images, clusters, 12, 3, seed=0)
    found = [which for _, which in sampler]
    assert len(found) == len(sampler) > 3 and {len(which) for which in found} == {12}
    assert len(set(np.concatenate(found).tolist())) == 12 * len(found)


# files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo_precomp"
    demo.build(folder, sizes={"train": 12, "dev": 12, "test": 12})
    return folder


@pytest.fixture
def opened(folder, tmp_path):
    """Write a split of the demo's images and captions, changed, and open it."""

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
        split.pairing.count_text() == "1 to 8 captions an image"
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
        InputError, match="every image 6 times in a row, and 24 captions, 2 of every row; .*once$"
    ):
        opened(rows=np.arange(2).repeat(6), captions=slice(24))
    assert opened(rows=[0, 0, *range(2, 12)]).num_images == 12  # an image that is there twice


def test_fewer_captions_than_rows_are_refused(opened):
    with pytest.raises(
        InputError, match="found 12 captions for the 60 rows .* a caption of every row at least"
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


class InMemory:
    """Stands for a `RegionFile`."""

    def __init__(self, rows):
        self.rows, self.shape = rows, rows.shape

    def __len__(self):
        return len(self.rows)

    def read(self, row, start, stop):
        return self.rows[row, start:stop]


class Named:
    name = "x_caps_images.txt"


SHAPES = [(1, 1), (1, 5), (12, 1), (500, 1), (12, 2), (12, 3), (100, 5), (5000, 5), (2, 7)]


@pytest.mark.parametrize("num_images, times", SHAPES)
def test_rows_that_repeat_equally_often_are_found(num_images, times):
    rows = np.arange(num_images).repeat(times)
    found, notes = find_repeats(
        "x_ims.npy", InMemory(rows.astype(np.float32)[:, None, None]), Named
    )
    assert found == times and len(notes) == (times != 5 and num_images > 1)


@pytest.mark.parametrize(
    "rows, expected",
    [
        (
            np.tile(np.arange(100), 5),
            "rows 0 and 100 (from 0) are the same: 100 rows stand there 5 times",
        ),
        (
            np.tile(np.arange(50).repeat(5), 2),
            "rows 0 and 250 (from 0) are the same: 250 rows stand there 2 times",
        ),
        (np.zeros(40), "rows 0 to 39 (from 0) are all the same"),
        (np.zeros(5000), "are all the same, expected different images"),
        (
            [*np.arange(50).repeat(5), *range(50, 300)],
            "rows 0 and 4 (from 0) are the same and rows",
        ),
        ([*range(40), *np.arange(40, 60).repeat(3)], "are the same and rows 0 and 1 differ"),
        (
            [*np.arange(10).repeat(5), *np.arange(10, 20).repeat(3)],
            "rows 0 and 4 (from 0) are the same and rows 52 and 53",
        ),
        (
            np.random.default_rng(0).permutation(np.arange(1000).repeat(5)),
            "are the same, and so are rows",
        ),
        (
            [image for start in range(0, 900, 10) for image in [*range(start, start + 10)] * 5],
            "and so are rows",
        ),
        ([*range(900), *[*range(900, 1000)] * 5], "and so are rows"),
        (
            [*np.arange(9).repeat(5), 9, 9, 10, 9, 9],
            "rows 0 and 4 (from 0) are the same and rows 46 and 47 differ",
        ),
    ],
)
def test_other_repetitions_are_refused_with_two_rows(rows, expected):
    rows = np.asarray(rows, np.float32)[:, None, None]
    with pytest.raises(InputError) as error:
        find_repeats("x_ims.npy", InMemory(rows), Named)
    assert expected in str(error.value) and "store every image once" in str(error.value)
    assert "into x_caps_images.txt" in str(error.value)


def test_images_that_a_data_set_holds_twice_are_told_of():
    rows = np.arange(200)
    rows[101] = rows[100]  # between two places that are looked at
    assert (
        find_repeats("x_ims.npy", InMemory(rows.astype(np.float32)[:, None, None]), Named)[0] == 1
    )
    apart = [0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 10, 11]
    found, (note,) = find_repeats(
        "x_ims.npy", InMemory(np.array(apart, np.float32)[:, None, None]), Named
    )
    assert found == 1 and "rows 2 and 9 (from 0) are the same image" in note
    rows[1] = rows[0]
    found, (note,) = find_repeats(
        "x_ims.npy", InMemory(rows.astype(np.float32)[:, None, None]), Named
    )
    assert (
        found == 1
        and "rows 0 and 1 (from 0) are the same image" in note
        and "x_caps_images.txt" in note
    )
    repeated = rows.repeat(5)  # and so are images that follow each other in a file of repeated rows
    assert find_repeats(
        "x_ims.npy", InMemory(repeated.astype(np.float32)[:, None, None]), Named
    ) == (5, [])


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
        "the first 14 of 36 captions are used, as published: 5 of 12 images, 1 of them with a part"
        in split.notes[0]
    )
    images = [11, 3, 7, 3, 11, 9, 0, 3, 3, 7, 11, 11, 9, 9, *range(12)]
    split = opened(
        "dev", captions=slice(len(images)), images=images, ids=[f"id{image}" for image in range(12)]
    )
    assert split.stored_images.tolist() == [0, 3, 7, 9, 11]
    assert split.stored_images[split.caption_images].tolist() == images[:14]
    assert "5 of 12 images, 5 of them with a part" in split.notes[0]
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
    # a blank line an image
    apart = [line for start in range(0, 36, 3) for line in (*texts[start : start + 3], "")]
    with pytest.raises(
        InputError, match="found 48 .* the last of every 4 blank; expected 36 captions"
    ):
        opened(caps=apart)
    with pytest.raises(
        InputError, match="found 2 blank lines at the end, which may be captions or none"
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


def test_opening_compares_few_rows(monkeypatch):
    """How many rows are compared grows with the root of the number of images."""
    read, content = [], pairing._Rows._content
    monkeypatch.setattr(
        pairing._Rows, "_content", lambda rows, row: read.append(row) or content(rows, row)
    )
    for num_images in (100, 5000):
        read.clear()
        rows = np.arange(num_images, dtype=np.float32).repeat(5)[:, None, None]
        assert find_repeats("x_ims.npy", InMemory(rows), Named) == (5, [])
        assert len(set(read)) < 300 + pairing.COPY_SAMPLE_FACTOR * num_images**0.5


def test_maps_of_all_small_shapes_rank_by_the_loop():
    for images in itertools.product(range(3), repeat=4):
        if len(set(images)) == 3:
            matrix = random_matrix(np.array(images), sum(images), 0)
            found = metrics.ranks(matrix, images)
            assert (found.image_to_text.tolist(), found.text_to_image.tolist()) == naive_ranks(
                matrix, images
            )
