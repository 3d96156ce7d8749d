"""Which pairs meet in a batch: drawn at random, or groups of neighbours
(`--batch_sampling neighbour`).

The relations among instances act inside a batch, so it matters who is in it. The paper clusters the
images by k-means and makes a batch of P clusters with K images of each; the published code has
random batches only, the default here.
"""

# N images, C captions (a pair each), B pairs of a batch, P groups of K pairs: B = PK; D region
# feature size

import numpy as np
import torch
from tqdm import tqdm

from ..system.errors import InputError

# a cluster has 4K images on average: most fill whole groups, with other company every time
GROUPS_OF_A_CLUSTER = 4
ITERATIONS = 10  # of Lloyd
BLOCK_IMAGES, BLOCK_POINTS = 128, 4096  # read at once, compared with every centre at once


class EpochSampler:
    """Batches of caption numbers in an order drawn from (seed, epoch);
    the last incomplete batch is dropped.

    epoch: whose batches come next; first: how many of them are left out, because they were trained
    on before.
    """

    def __init__(self, num_pairs, batch_size, seed):
        self.num_pairs, self.batch_size, self.seed = num_pairs, batch_size, seed
        self.epoch, self.first = 0, 0

    def __len__(self):
        return self.num_pairs // self.batch_size

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_pairs)
        for start in range(
            self.first * self.batch_size, len(self) * self.batch_size, self.batch_size
        ):
            yield self.epoch, order[start : start + self.batch_size]

    def describe(self):
        """What the log says of it."""
        return f"of {self.batch_size} pairs drawn at random"


class NeighbourSampler(EpochSampler):
    """Batches of P groups, each of K images of one cluster: as many batches as `EpochSampler`,
    no pair twice an epoch.

    images: (C,) image of every caption; clusters: (N,) cluster of every image; num_groups: P, a
    divisor of batch_size.

    An epoch, all of it drawn from (seed, epoch):
    1. Groups. A cluster's images come in random order, each with one of its captions; then in
       another order with a second caption, and so on. This sequence is cut into groups of K
       different images.
    2. Batches. Groups are dealt out as cards are, cluster by cluster, to as many batches as they
       fill. So the groups of a batch are of P clusters, and no image is in it twice, unless a
       cluster has more groups than there are batches.
    3. The rest: what filled no group (the end of a sequence, clusters of fewer than K images), and
       groups that are fewer than P. It is cut into batches cluster by cluster, no image's second
       pair before every image's first. Fewer than B pairs are left in the end and dropped.
    4. Batches come in random order.
    """

    def __init__(self, images, clusters, batch_size, num_groups, seed):
        super().__init__(len(images), batch_size, seed)
        self.images, self.clusters, self.num_groups = images, clusters, num_groups
        self.group_size = batch_size // num_groups

    def __iter__(self):
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

    def describe(self):
        """What the log says of it."""
        sizes = np.bincount(self.clusters)
        return (
            f"of {self.num_groups} clusters x {self.group_size} images; k-means found "
            f"{len(sizes)} clusters of {sizes.min()} to {sizes.max()} images"
        )

    def _groups(self, generator):
        """Groups (n, K) and the other pairs, both cluster by cluster,
        the clusters in random order."""
        shuffled = generator.permutation(self.num_pairs)
        # of an image's pairs: which comes first, second, ...
        turn = occurrence(self.images[shuffled])
        rank = generator.permutation(self.clusters.max() + 1)[self.clusters[self.images[shuffled]]]
        order = np.lexsort((turn, rank))
        starts = np.flatnonzero(np.diff(rank[order], prepend=-1))[1:]
        groups, rest = [], []
        for pairs, turns in zip(np.split(shuffled[order], starts), np.split(turn[order], starts)):
            sequence = self._sequence(np.split(pairs, np.flatnonzero(np.diff(turns)) + 1))
            whole, end = np.split(sequence, [len(sequence) // self.group_size * self.group_size])
            whole = whole.reshape(-1, self.group_size)
            # of different images
            is_group = (np.diff(np.sort(self.images[whole], axis=1), axis=1) > 0).all(axis=1)
            groups.append(whole[is_group])
            rest += [whole[~is_group].reshape(-1), end]
        return np.concatenate(groups), np.concatenate(rest)

    def _sequence(self, rounds):
        """The pairs of a cluster, round by round;
        the images of a group begun in one round come last in the next."""
        sequence = rounds[0]
        for pairs in rounds[1:]:
            begun = sequence[len(sequence) // self.group_size * self.group_size :]
            is_begun = np.isin(self.images[pairs], self.images[begun])
            sequence = np.concatenate([sequence, pairs[~is_begun], pairs[is_begun]])
        return sequence


def occurrence(values):
    """How often each of n whole numbers stands before it in the array: (n,),
    0 at its first place."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-1))
    counts = np.diff(starts, append=len(values))
    found = np.empty_like(order)
    found[order] = np.arange(len(values)) - np.repeat(starts, counts)
    return found


def cluster_images(split, batch_size, num_groups, seed):
    """The cluster of every image of a `lib.data.dataset.RetrievalDataset`, (N,),
    for batches of `num_groups` groups.

    As many clusters as give 4K images to each, and at least P. Raises InputError where there are
    fewer images.
    """
    if num_groups > split.num_images:
        raise InputError(
            f"--batch_clusters {num_groups}: {split.folder} has {split.num_images} images in its "
            f"{split.split} split, expected at least one a cluster; give fewer clusters"
        )
    images_of_a_cluster = GROUPS_OF_A_CLUSTER * batch_size // num_groups
    return k_means(
        mean_regions(split), max(num_groups, split.num_images // images_of_a_cluster), seed
    )


def mean_regions(split):
    """The mean region feature of every image of a split, (N, D), read block by block.
    Raises InputError."""
    means = torch.empty(split.num_images, split.region_dim)
    starts = range(0, split.num_images, BLOCK_IMAGES)
    for start in tqdm(starts, "mean regions", leave=False, disable=None, delay=2):
        regions, lengths = split.image_block(start, min(start + BLOCK_IMAGES, split.num_images))
        means[start : start + BLOCK_IMAGES] = regions.sum(1) / lengths.unsqueeze(1)
    return means


def k_means(points, num_clusters, seed, iterations=ITERATIONS):
    """Lloyd's algorithm from different points drawn at random;
    a centre that loses all its points stays.

    points: (n, D) float32, n at least num_clusters. Returns the nearest centre of every point, a
    numpy array (n,); between equally near ones the first.
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


def nearest(points, centres):
    """The nearest of the centres (m, D) to each of the points (n, D): (n,) int64."""
    squares = centres.square().sum(1)  # |x - c|^2 without the |x|^2 that all centres share
    return torch.cat(
        [
            torch.addmm(squares, block, centres.T, alpha=-2).argmin(1)
            for block in points.split(BLOCK_POINTS)
        ]
    )
