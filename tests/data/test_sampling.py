"""Batches of neighbours: k-means against loops, what meets in a batch,
and every pair at most once an epoch."""

import numpy as np
import pytest
import torch

from lib.data import demo, sampling
from lib.data.batches import TrainingPairs, batches, training_loader
from lib.data.dataset import RetrievalDataset
from lib.data.sampling import (
    EpochSampler,
    NeighbourSampler,
    cluster_images,
    k_means,
    mean_regions,
    nearest,
    occurrence,
)
from lib.model import bert
from lib.system.errors import InputError


def sampler(sizes, batch_size=12, num_groups=3, captions=5, seed=0):
    """A sampler for clusters of these sizes; images are in mixed order."""
    clusters = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = np.repeat(np.arange(len(clusters)), captions)
    return NeighbourSampler(images, clusters, batch_size, num_groups, seed)


def epoch_of(made, epoch=0):
    made.epoch = epoch
    found = list(made)
    assert all(number == epoch for number, _ in found)
    return np.array([pairs for _, pairs in found])


SIZES = {
    "groups that come out even": [8] * 12,
    "one too many in each": [9] * 10,
    "of all sizes": [1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 16, 17, 23],
    "smaller than a group": [2] * 30,
    "one large among small": [60, 1, 1, 2, 3, 5],
    "one alone": [30],
    "an empty one": [7, 0, 9, 5, 0, 6],
    "a single batch": [1, 1, 1],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_pair_comes_at_most_once_and_batches_are_as_many_as_at_random(sizes):
    made = sampler(sizes)
    found = epoch_of(made)
    assert len(found) == len(made) == len(EpochSampler(5 * sum(sizes), 12, seed=0)) > 0
    assert found.shape[1] == 12 and len(np.unique(found)) == found.size
    assert found.min() >= 0 and found.max() < 5 * sum(sizes)


def clusters_of(made, batch):
    return made.clusters[made.images[batch]]


def test_where_all_comes_out_even_a_batch_is_p_clusters_of_k_images():
    made = sampler([8] * 12)
    for epoch in range(3):
        found = epoch_of(made, epoch)
        assert sorted(found.reshape(-1)) == list(range(480))
        for batch in found:
            assert sorted(np.unique(clusters_of(made, batch), return_counts=True)[1]) == [4, 4, 4]
            assert len(np.unique(made.images[batch])) == 12


def test_a_round_that_ends_within_a_group_wastes_nothing():
    made = sampler([9] * 12)  # 45 pairs a cluster: 11 groups of 4 and a rest of 1
    found = epoch_of(made)
    is_full = [
        sorted(np.unique(clusters_of(made, batch), return_counts=True)[1]) == [4, 4, 4]
        for batch in found
    ]
    assert sum(is_full) == 12 * 11 // 3 and len(found) == 45  # the rest of 12 is the other one
    assert all(len(np.unique(made.images[batch])) == 12 for batch in found)


def test_clusters_of_all_sizes_give_all_the_full_batches_they_can():
    made = sampler(SIZES["of all sizes"])
    expected = sum(5 * size // 4 for size in SIZES["of all sizes"] if size >= 4) // 3
    for epoch in range(5):
        full = [
            batch
            for batch in epoch_of(made, epoch)
            if sorted(np.unique(clusters_of(made, batch), return_counts=True)[1]) == [4, 4, 4]
        ]
        assert len(full) >= expected == 45
        assert all(len(np.unique(made.images[batch])) == 12 for batch in full)


def test_what_is_left_of_small_clusters_holds_an_image_twice_only_after_every_other():
    made = sampler([2] * 30)  # 60 images, no group: batches of the rest alone
    found = epoch_of(made)
    assert len(found) == 25 and all(len(np.unique(made.images[batch])) == 12 for batch in found)
    # neighbours stay together
    assert all(len(np.unique(clusters_of(made, batch))) == 6 for batch in found)
    # 15 pairs of 3 images in a batch of 12: nothing else is there
    few = epoch_of(sampler([1, 1, 1]))
    assert sorted(np.unique(few // 5, return_counts=True)[1]) == [4, 4, 4]


def test_groups_are_of_different_images_and_differ_from_round_to_round():
    made = sampler([8] * 12)
    groups, rest = made._groups(np.random.default_rng(0))
    assert groups.shape == (120, 4) and len(rest) == 0
    assert all(
        len({*made.images[group]}) == 4 and len({*clusters_of(made, group)}) == 1
        for group in groups
    )
    # of 24 if every round repeated the first
    assert len({frozenset(made.images[group]) for group in groups}) > 100


def test_a_round_has_every_image_once_with_any_of_its_captions():
    made = sampler([8] * 12)
    groups, _ = made._groups(np.random.default_rng(0))
    for start in range(0, 40, 8):
        pairs = groups.reshape(12, 40)[:, start : start + 8].reshape(-1)
        assert sorted(made.images[pairs]) == list(range(96))
        assert np.bincount(pairs % 5, minlength=5).min() > 8  # 19 on average


def test_one_seed_and_epoch_give_one_order_and_others_another():
    made = sampler(SIZES["of all sizes"])
    first = epoch_of(made)
    assert np.array_equal(epoch_of(sampler(SIZES["of all sizes"])), first)
    other = epoch_of(made, 1)
    assert not np.array_equal(other, first) and not np.array_equal(
        epoch_of(sampler(SIZES["of all sizes"], seed=1)), first
    )
    assert {frozenset(batch) for batch in other}.isdisjoint(frozenset(batch) for batch in first)
    assert np.array_equal(epoch_of(made, 0), first)


def test_batches_come_in_no_order_of_clusters_or_fullness():
    made = sampler([9] * 12)
    places = []
    for epoch in range(40):
        is_full = [len(np.unique(clusters_of(made, batch))) == 3 for batch in epoch_of(made, epoch)]
        places.append(is_full.index(False))
    assert min(places) < 10 and max(places) > 34


def test_any_number_of_captions_an_image():
    for captions in (1, 2, 7):
        made = sampler(SIZES["of all sizes"], captions=captions)
        found = epoch_of(made)
        assert len(found) == captions * 117 // 12 and len(np.unique(found)) == found.size


def test_occurrence_counts_what_came_before():
    values = np.random.default_rng(0).integers(0, 9, size=60)
    expected = [list(values[:place]).count(value) for place, value in enumerate(values)]
    assert occurrence(values).tolist() == expected
    assert occurrence(np.array([], dtype=int)).tolist() == []


def k_means_by_loops(points, num_clusters, seed, iterations):
    """The same in double precision, a point at a time."""
    points = points.double().numpy()
    centres = points[
        np.random.default_rng((seed, num_clusters)).choice(len(points), num_clusters, replace=False)
    ]

    def owners():
        return [
            min(range(num_clusters), key=lambda c: ((point - centres[c]) ** 2).sum())
            for point in points
        ]

    for _ in range(iterations):
        owner = owners()
        for cluster in range(num_clusters):
            mine = [point for point, its in zip(points, owner) if its == cluster]
            if mine:
                centres[cluster] = sum(mine) / len(mine)
    return owners()


@pytest.mark.parametrize(
    "seed, num_clusters, iterations", [(0, 7, 10), (1, 7, 3), (2, 1, 2), (3, 40, 4), (4, 9, 0)]
)
@pytest.mark.parametrize("block", [16, 4096])
def test_k_means_is_that_of_a_loop(monkeypatch, seed, num_clusters, iterations, block):
    monkeypatch.setattr(sampling, "BLOCK_POINTS", block)
    points = torch.randn(90, 5, generator=torch.Generator().manual_seed(seed)) + 3
    found = k_means(points, num_clusters, seed, iterations)
    assert found.tolist() == k_means_by_loops(points, num_clusters, seed, iterations)


def test_k_means_keeps_a_centre_that_has_lost_its_points():
    points = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    assert k_means(points, 4, seed=0).tolist() == k_means_by_loops(points, 4, 0, 10)
    assert k_means(torch.zeros(5, 2), 5, seed=0).tolist() == [0] * 5  # the first of equals


def test_k_means_finds_clusters_that_lie_apart():
    centres = 100 * torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    true = torch.arange(60) % 3
    points = centres[true] + torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    best = min(
        (k_means(points, 3, seed) for seed in range(5)), key=lambda owner: spread(points, owner)
    )
    assert len({(int(one), int(other)) for one, other in zip(true, best)}) == 3


def spread(points, owner):
    return sum(
        ((points[owner == c] - points[owner == c].mean(0)) ** 2).sum() for c in np.unique(owner)
    )


def test_nearest_centres_are_those_of_plain_distances():
    generator = torch.Generator().manual_seed(0)
    points, centres = (
        torch.rand(50, 30, generator=generator),
        torch.rand(9, 30, generator=generator),
    )
    expected = torch.cdist(
        points.double(), centres.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).argmin(1)
    assert torch.equal(nearest(points, centres), expected)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo_precomp"
    demo.build(folder, sizes={"train": 40})
    return RetrievalDataset(folder, "train", bert.tokeniser(folder / "bert"))


@pytest.mark.parametrize("block", [1, 7, 40, 128])  # with 128, the data are smaller than a block
def test_mean_regions_are_those_of_the_file(split, monkeypatch, block):
    monkeypatch.setattr(sampling, "BLOCK_IMAGES", block)
    expected = np.load(split.regions_path).astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(mean_regions(split).numpy(), expected, rtol=1e-5)


def test_there_are_as_many_clusters_as_give_them_four_groups(split):
    # 40 images in clusters of 4 x 2
    assert cluster_images(split, batch_size=10, num_groups=5, seed=0).max() < 5
    assert len(np.unique(cluster_images(split, batch_size=4, num_groups=4, seed=0))) > 5  # of 4 x 1
    # at least P
    assert len(np.unique(cluster_images(split, batch_size=80, num_groups=40, seed=0))) == 40


def test_more_clusters_than_images_are_refused_before_a_region_is_read(split, monkeypatch):
    monkeypatch.setattr(sampling, "mean_regions", None)
    with pytest.raises(
        InputError, match="--batch_clusters 41: .* has 40 images in its train split.*fewer clusters"
    ):
        training_loader(TrainingPairs(split, seed=0), 82, workers=0, batch_clusters=41)


class Blobs:
    """The part of a split that clustering needs: 60 images of one region, in ten distant groups."""

    num_images, region_dim = 60, 6
    places = 100 * torch.randn(10, 6, generator=torch.Generator().manual_seed(0)).repeat(6, 1)
    regions = (places + torch.randn(60, 6, generator=torch.Generator().manual_seed(1))).unsqueeze(1)

    def image_block(self, start, stop):
        return self.regions[start:stop], torch.ones(stop - start, dtype=torch.int64)


def test_neighbours_in_a_batch_are_nearer_than_at_random():
    images = np.repeat(np.arange(60), 5)
    clusters = cluster_images(Blobs(), batch_size=6, num_groups=3, seed=0)

    def distance(made):
        chosen = [Blobs.regions[images[batch], 0] for _, batch in made]
        return np.mean(
            [
                torch.cdist(batch, batch).topk(2, largest=False).values[:, 1].mean()
                for batch in chosen
            ]
        )

    assert distance(NeighbourSampler(images, clusters, 6, 3, seed=0)) < 0.6 * distance(
        EpochSampler(300, 6, seed=0)
    )


def test_workers_change_nothing(split):
    def epoch(workers):
        loader = training_loader(TrainingPairs(split, seed=3), 20, workers, batch_clusters=5)
        loader.sampler.epoch = 2
        return [[tensor.clone() for tensor in batch] for batch in batches(loader)]

    for ours, theirs in zip(epoch(0), epoch(2), strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_what_the_log_says_of_a_sampler():
    assert EpochSampler(100, 20, seed=0).describe() == "of 20 pairs drawn at random"
    expected = "of 3 clusters x 4 images; k-means found 3 clusters of 2 to 9 images"
    assert sampler([9, 2, 4]).describe() == expected


def test_neighbour_batches_of_any_map():
    images = np.random.default_rng(9).permutation(np.repeat(np.arange(40), np.arange(40) % 7 + 1))
    clusters = np.random.default_rng(0).integers(0, 4, 40)
    sampler = sampling.NeighbourSampler(images, clusters, 12, 3, seed=0)
    found = [which for _, which in sampler]
    assert len(found) == len(sampler) > 3 and {len(which) for which in found} == {12}
    assert len(set(np.concatenate(found).tolist())) == 12 * len(found)


def test_an_epoch_has_every_caption_at_most_once_and_no_incomplete_batch():
    sampler = EpochSampler(150, 32, seed=0)
    found = [captions for _, captions in sampler]
    assert len(sampler) == len(found) == 4 and {len(captions) for captions in found} == {32}
    assert len(set(np.concatenate(found))) == 128 and set(np.concatenate(found)) <= set(range(150))
    sampler.epoch = 1
    assert set(np.concatenate([captions for _, captions in sampler])) != set(np.concatenate(found))
    whole = np.concatenate([captions for _, captions in EpochSampler(150, 30, seed=0)])
    assert sorted(whole) == list(range(150))
