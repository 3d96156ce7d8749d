"""Batches of image-caption pairs for training, their random augmentation, and their loader
(docs/method.md, section 2)."""

# B pairs, R regions, D region feature size, L pieces

import contextlib
import math
import mmap
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..system import distributed
from ..system.errors import InputError, first_sentence
from ..system.interrupt import ignore_group_signals
from .dataset import RetrievalDataset, pad_ids
from .sampling import EpochSampler, NeighbourSampler, cluster_images

REGION_KEEP_PROBABILITY = 0.8
NO_VIEWS = torch.zeros(0, 2, 0, dtype=torch.bool)


class Batch(NamedTuple):
    """B image-caption pairs, sorted by caption length, longest first.

    regions (B, R, D) float32, zeros beyond region_lengths (B,); pieces (B, L) ids, 0 beyond
    piece_lengths (B,); image_ids (B,), equal for captions of the same image; views (B, 2, R) bool,
    the regions that each of two random views of an image sees, or NO_VIEWS. If there are N
    processes, each has every N-th pair, padded like the whole batch, and the image ids of the whole
    batch.
    """

    regions: torch.Tensor
    region_lengths: torch.Tensor
    pieces: torch.Tensor
    piece_lengths: torch.Tensor
    image_ids: torch.Tensor
    views: torch.Tensor = NO_VIEWS

    def to(self, device: torch.device) -> "Batch":
        """The same batch with regions and pieces on `device`.

        Lengths, image ids and views stay on the CPU, where they determine the shapes of the
        computation.
        """
        return self._replace(
            regions=self.regions.to(device, non_blocking=True),
            pieces=self.pieces.to(device, non_blocking=True),
        )


@dataclass
class Draw:
    """The fields of a `Batch`, with the numbers of the kept regions, (B, R), in place of regions.

    The fields are arrays and not tensors, because a worker transfers so few bytes faster than
    handles of shared memory.
    """

    kept: np.ndarray
    region_lengths: np.ndarray
    pieces: np.ndarray
    piece_lengths: np.ndarray
    image_ids: np.ndarray
    views: np.ndarray


class TrainingPairs:
    """The pairs of a split, one per caption. Item (epoch, captions) is a `Batch`.

    Augmentation depends only on (seed, epoch, caption), so the number of workers and their order
    change nothing. Each of several processes reads the regions of its own shard.
    """

    def __init__(
        self,
        split: RetrievalDataset,
        seed: int,
        drop_regions: bool = True,
        augment_words: bool = True,
        views: int = 1,
    ) -> None:
        """views: 2: all regions are read, and two views of each image drop their own."""
        self.split, self.seed, self.views = split, seed, views
        self.drop_regions, self.augment_words = drop_regions, augment_words
        self.shard = distributed.shard()  # here, because workers belong to no process group

    def __getitem__(self, item: tuple[int, np.ndarray]) -> Batch:
        return self.fill(self.draw(*item))

    def draw(self, epoch: int, which: np.ndarray) -> Draw:
        """The `Draw` of the captions `which`. Raises InputError if the features of an image are
        invalid.

        All images are read for this check, so they are in the page cache when `fill` copies them.
        """
        generators = [np.random.default_rng((self.seed, epoch, int(caption))) for caption in which]
        sequences = [
            self.split.captions.ids(caption, generator if self.augment_words else None)
            for caption, generator in zip(which, generators)
        ]
        order = np.argsort([-len(sequence) for sequence in sequences], kind="stable")
        image_ids = self.split.caption_images[which[order]]
        pieces, piece_lengths = pad_ids([sequences[index] for index in order])
        kept, region_lengths, views = self._draw_regions(
            image_ids, [generators[index] for index in order]
        )
        own = self.shard
        self.split.check_unchanged()
        for image in image_ids[own]:
            self.split.image_regions(image)
        return Draw(
            kept[own], region_lengths[own], pieces[own], piece_lengths[own], image_ids, views[own]
        )

    def fill(self, draw: Draw, pin_memory: bool = False) -> Batch:
        """The `Batch` of a `Draw`. pin_memory: whether regions and pieces are in pinned memory."""
        self.split.check_unchanged()
        regions = _empty((*draw.kept.shape, self.split.region_dim), pin_memory)
        images = draw.image_ids[self.shard]
        for row, image, kept, length in zip(
            regions.numpy(), images, draw.kept, draw.region_lengths
        ):
            stored = self.split.unchecked_regions(image)
            # copies without holding the GIL
            np.take(stored, kept[:length], axis=0, out=row[:length], mode="clip")
            row[length:] = 0
        others = draw.region_lengths, draw.pieces, draw.piece_lengths, draw.image_ids, draw.views
        batch = Batch(regions, *map(torch.from_numpy, others))
        return batch._replace(pieces=batch.pieces.pin_memory()) if pin_memory else batch

    def _draw_regions(self, images, generators):
        """The numbers of the regions of each image that are read, padded; how many these are; and
        which of them each view sees."""
        drawn = [
            [self._kept_regions(image, generator) for _ in range(self.views)]
            for image, generator in zip(images, generators)
        ]
        if self.views == 1:
            return *pad_ids([kept for (kept,) in drawn]), NO_VIEWS.numpy()
        counts = self.split.num_regions[self.split.stored_images[images]]
        kept, region_lengths = pad_ids([np.arange(count) for count in counts])
        views = np.zeros((len(images), self.views, kept.shape[1]), dtype=bool)
        for image, numbers in zip(views, drawn):
            for view, seen in zip(image, numbers):
                view[seen] = True
        return kept, region_lengths, views

    def _kept_regions(self, image: int, generator: np.random.Generator) -> np.ndarray:
        num_regions = self.split.num_regions[self.split.stored_images[image]]
        if not self.drop_regions:
            return np.arange(num_regions)
        kept = np.flatnonzero(generator.random(num_regions) < REGION_KEEP_PROBABILITY)
        return kept if len(kept) else generator.integers(num_regions, size=1)


def _empty(shape: tuple[int, ...], pin_memory: bool) -> torch.Tensor:
    """An uninitialised float32 tensor.

    Unless it is pinned, it uses huge pages if the system has them (Linux): the allocation of 4 KB
    pages takes several times as long as copying the regions of a batch into them.
    """
    if pin_memory or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, pin_memory=pin_memory)
    memory = mmap.mmap(-1, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)


class _Draws(Dataset):
    """The `Draw`s that workers compute. Regions are too large to transfer between processes."""

    def __init__(self, pairs: TrainingPairs) -> None:
        self.pairs = pairs

    def __getitem__(self, item: tuple[int, np.ndarray]) -> Draw | InputError:
        try:
            return self.pairs.draw(*item)
        except InputError as error:
            # raised by `batches`, because an exception in a worker arrives as a traceback
            return error


def training_loader(
    pairs: TrainingPairs, batch_size: int, workers: int, batch_clusters: int | None = None
) -> DataLoader:
    """A loader for `batches`. Set `epoch` and `first` of its sampler, then iterate over `batches`.

    batch_clusters: P of a `NeighbourSampler`, or None for random batches. Raises InputError if
    there are fewer than batch_size pairs, or fewer images than clusters.
    """
    sampler = EpochSampler(len(pairs.split.captions), batch_size, pairs.seed)
    if not len(sampler):
        raise InputError(
            f"{pairs.split.folder}: the {pairs.split.split} split has {sampler.num_pairs} pairs, "
            f"expected at least one batch of {batch_size}; give a smaller --batch_size"
        )
    if batch_clusters:
        images = pairs.split.caption_images
        clusters = distributed.broadcast_from_main(
            lambda: cluster_images(pairs.split, batch_size, batch_clusters, pairs.seed)
        )
        sampler = NeighbourSampler(images, clusters, batch_size, batch_clusters, pairs.seed)
    return DataLoader(
        _Draws(pairs),
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_group_signals,
    )


def batches(loader: DataLoader, pin_memory: bool = False) -> Iterator[Batch]:
    """Yield the `Batch`es of one epoch. A thread fills each while the previous one is in use.

    pin_memory: see `TrainingPairs.fill`. An InputError in a worker is raised in place of its batch.
    """
    pairs = loader.dataset.pairs
    ahead: deque[Future[Batch]] = deque()

    def fill(draw: Draw | InputError) -> Batch:
        if isinstance(draw, InputError):
            # not `draw` itself: in a reference cycle with this frame, it would keep workers alive
            raise InputError(str(draw))
        return pairs.fill(draw, pin_memory)

    with ThreadPoolExecutor(1) as thread:
        for draw in _from_workers(loader):
            ahead.append(thread.submit(fill, draw))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        yield from (last.result() for last in ahead)


def _from_workers(loader: DataLoader) -> Iterator[Draw | InputError]:
    """Iterate over a loader. Raises InputError if the system killed one of its workers."""
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(
            f"{loader.dataset.pairs.split.folder}: a loader process was killed (found "
            f"{first_sentence(error)}, expected it to run until the end of training), perhaps "
            "because the memory is full. Give fewer --workers, and repeat the command with "
            "--resume auto"
        ) from error
