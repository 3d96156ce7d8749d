"""Batch sampling: random pairs, or groups of similar images (`--batch_sampling neighbour`).

Instance-level relations connect the samples of a batch, so its composition matters. The paper
clusters the images by k-means and builds batches from P clusters with K images each. The published
code only draws random batches, which is the default here.
"""

# N images, C captions (a pair each), B pairs of a batch, P groups of K pairs: B = PK; D region
# feature size

from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

from ..evaluation.encoding import Split
from ..system.errors import InputError

# A cluster has 4K images on average. Most of them fill whole groups, which differ in every epoch.
GROUPS_OF_A_CLUSTER = 4
ITERATIONS = 10  # of Lloyd's algorithm
BLOCK_IMAGES, BLOCK_POINTS = (
    128,
    4096,
)  # images read at once; points compared with all centres at once


class EpochSampler:
    """Batches of caption numbers in an order drawn from (seed, epoch);
    the last incomplete batch is dropped.

    epoch: epoch of the next batches; first: number of its batches to skip because training has
    already used them.
    """

    def __init__(self, num_pairs: int, batch_size: int, seed: int) -> None:
        self.num_pairs, self.batch_size, self.seed = num_pairs, batch_size, seed
        self.epoch, self.first = 0, 0

    def __len__(self) -> int:
        return self.num_pairs // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_pairs)
        for start in range(
            self.first * self.batch_size, len(self) * self.batch_size, self.batch_size
        ):
            yield self.epoch, order[start : start + self.batch_size]

    def describe(self) -> str:
        """Description of the batches for the log."""
        return f"of {self.batch_size} pairs drawn at random"


class NeighbourSampler(EpochSampler):
    """Batches of P groups, each with K images of one cluster.

    There are as many batches as in `EpochSampler`, and no pair occurs twice in an epoch. images:
    (C,) image of each caption; clusters: (N,) cluster of each image; num_groups: P, a divisor of
    batch_size.

    Each epoch is drawn from (seed, epoch) in four steps:
    1. Groups. The images of a cluster are shuffled, each with one of its captions, then shuffled
       again with a second caption, and so on. This sequence is split into groups of K different
       images.
    2. Batches. The groups are distributed in turn, cluster by cluster, over as many batches as they
       fill. A batch then has groups of P clusters and no image twice, unless a cluster has more
       groups than there are batches.
    3. Remaining pairs. These are pairs outside any group (the end of a sequence, or clusters of
       fewer than K images) and the last groups, if there are fewer than P. They are split into
       batches, cluster by cluster; the first pairs of all images precede the second pairs. The last
       pairs are dropped if there are fewer than B.
    4. The batches are shuffled.
    """

    def __init__(
        self,
        images: np.ndarray,
        clusters: np.ndarray,
        batch_size: int,
        num_groups: int,
        seed: int,
    ) -> None:
        super().__init__(len(images), batch_size, seed)
        self.images, self.clusters, self.num_groups = images, clusters, num_groups
        self.group_size = batch_size // num_groups

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        groups, rest = self._groups(generator)
        num_full = len(groups) // self.num_groups
        dealt, undealt = np.split(groups, [num_full * self.num_groups])
        full = (
            dealt.reshape(self.num_groups, num_full, self.group_size)
            .swapaxes(0, 1)
            .reshape(-1, self.batch_size)
        )
        rest = np.concatenate([undealt.reshape(-1), rest])
        rest = rest[np.argsort(occurrence(self.images[rest]), kind="stable")]
        rest = rest[: len(rest) // self.batch_size * self.batch_size].reshape(-1, self.batch_size)
        for batch in generator.permutation(np.concatenate([full, rest]))[self.first :]:
            yield self.epoch, batch

    def describe(self) -> str:
        """Description of the batches for the log."""
        sizes = np.bincount(self.clusters)
        return (
            f"of {self.num_groups} clusters x {self.group_size} images; k-means found "
            f"{len(sizes)} clusters of {sizes.min()} to {sizes.max()} images"
        )

    def _groups(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Groups (n, K) and remaining pairs; both by cluster, with clusters in random order."""
        shuffled = generator.permutation(self.num_pairs)
        # position of each pair among the pairs of its image
        turn = occurrence(self.images[shuffled])
        rank = generator.permutation(self.clusters.max() + 1)[self.clusters[self.images[shuffled]]]
        order = np.lexsort((turn, rank))
        starts = np.flatnonzero(np.diff(rank[order], prepend=-1))[1:]
        groups, rest = [], []
        for pairs, turns in zip(np.split(shuffled[order], starts), np.split(turn[order], starts)):
            sequence = self._sequence(np.split(pairs, np.flatnonzero(np.diff(turns)) + 1))
            whole, end = np.split(sequence, [len(sequence) // self.group_size * self.group_size])
            whole = whole.reshape(-1, self.group_size)
            # a group needs K different images
            is_group = (np.diff(np.sort(self.images[whole], axis=1), axis=1) > 0).all(axis=1)
            groups.append(whole[is_group])
            rest += [whole[~is_group].reshape(-1), end]
        return np.concatenate(groups), np.concatenate(rest)

    def _sequence(self, rounds: list[np.ndarray]) -> np.ndarray:
        """Concatenate the rounds of a cluster's pairs.

        Images of an incomplete group at the end of one round are moved to the end of the next.
        """
        sequence = rounds[0]
        for pairs in rounds[1:]:
            begun = sequence[len(sequence) // self.group_size * self.group_size :]
            is_begun = np.isin(self.images[pairs], self.images[begun])
            sequence = np.concatenate([sequence, pairs[~is_begun], pairs[is_begun]])
        return sequence


def occurrence(values: np.ndarray) -> np.ndarray:
    """Count the earlier occurrences of each value: (n,), 0 at the first occurrence."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-1))
    counts = np.diff(starts, append=len(values))
    earlier = np.empty_like(order)
    earlier[order] = np.arange(len(values)) - np.repeat(starts, counts)
    return earlier


def cluster_images(split: Split, batch_size: int, num_groups: int, seed: int) -> np.ndarray:
    """Cluster the images of a split, for batches of P = `num_groups` groups: (N,) clusters.

    Clusters have 4K images on average, and there are at least P. Raises InputError if there are
    fewer than P images.
    """
    if num_groups > split.num_images:
        raise InputError(
            f"--batch_clusters {num_groups}: {split.folder} has {split.num_images} images in its "
            f"{split.split} split, expected at least one per cluster; give fewer clusters"
        )
    images_of_a_cluster = GROUPS_OF_A_CLUSTER * batch_size // num_groups
    return k_means(
        mean_regions(split), max(num_groups, split.num_images // images_of_a_cluster), seed
    )


def mean_regions(split: Split) -> torch.Tensor:
    """Mean region feature of each image of a split, (N, D), read in blocks."""
    means = torch.empty(split.num_images, split.region_dim)
    starts = range(0, split.num_images, BLOCK_IMAGES)
    for start in tqdm(starts, "mean regions", leave=False, disable=None, delay=2):
        regions, lengths = split.image_block(start, min(start + BLOCK_IMAGES, split.num_images))
        means[start : start + BLOCK_IMAGES] = regions.sum(1) / lengths.unsqueeze(1)
    return means


def k_means(
    points: torch.Tensor, num_clusters: int, seed: int, iterations: int = ITERATIONS
) -> np.ndarray:
    """Lloyd's algorithm, initialised with different random points.

    A centre without points keeps its position. points: (n, D) float32, n at least num_clusters.
    Returns the index of the nearest centre of each point, (n,); the first among equally near ones.
    """
    drawn = np.random.default_rng((seed, num_clusters)).choice(
        len(points), num_clusters, replace=False
    )
    centres = points[torch.from_numpy(drawn)]
    for _ in tqdm(range(iterations), "k-means", leave=False, disable=None, delay=2):
        owner = nearest(points, centres)
        counts = torch.bincount(owner, minlength=num_clusters).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        centres = torch.where(counts > 0, sums / counts, centres)
    return nearest(points, centres).numpy()


def nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Index of the nearest centre of each point, (n,) int64. points: (n, D); centres: (m, D)."""
    squares = centres.square().sum(1)  # |x - c|^2 without the |x|^2 that all centres share
    return torch.cat(
        [
            torch.addmm(squares, block, centres.T, alpha=-2).argmin(1)
            for block in points.split(BLOCK_POINTS)
        ]
    )
