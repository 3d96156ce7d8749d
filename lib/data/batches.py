"""Batches of image-caption pairs for training: what is drawn for each, and their loader
(docs/method.md, section 2)."""

# B pairs, R regions, D region feature size, L pieces

import contextlib
import math
import mmap
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..system import distributed
from ..system.errors import InputError, first_sentence
from ..system.interrupt import ignore_group_signals
from .dataset import RetrievalDataset, pad_ids
from .sampling import EpochSampler, NeighbourSampler, cluster_images

REGION_KEEP_PROBABILITY = 0.8


class Batch(NamedTuple):
    """B image-caption pairs, sorted by caption length, longest first.

    regions (B, R, D) float32, zero rows beyond region_lengths (B,); pieces (B, L) ids, 0 beyond
    piece_lengths (B,); image_ids (B,), equal where two captions are of one image. With N
    processes, a shard has every N-th pair, padded to the size of the whole batch, and the image ids
    of the whole batch.
    """

    regions: torch.Tensor
    region_lengths: torch.Tensor
    pieces: torch.Tensor
    piece_lengths: torch.Tensor
    image_ids: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Move regions and pieces to `device`. Lengths and ids stay on the CPU, because they
        determine how the work is divided."""
        return self._replace(
            regions=self.regions.to(device, non_blocking=True),
            pieces=self.pieces.to(device, non_blocking=True),
        )


@dataclass
class Draw:
    """The random choices for a `Batch`: its fields, except that the regions are replaced by the
    numbers (B, R) of those that are kept.

    Arrays, not tensors: a worker passes small arrays faster than handles of shared memory.
    """

    kept: np.ndarray
    region_lengths: np.ndarray
    pieces: np.ndarray
    piece_lengths: np.ndarray
    image_ids: np.ndarray


class TrainingPairs:
    """The pairs of a split, a pair a caption, by the batch: item
    (epoch, captions) is the `Batch` of these captions.

    What is dropped, masked and replaced depends on (seed, epoch, caption) alone, so that neither
    the number of workers nor their order changes anything. Of several processes each reads the
    regions of its own shard.
    """

    def __init__(
        self,
        split: RetrievalDataset,
        seed: int,
        drop_regions: bool = True,
        augment_words: bool = True,
    ) -> None:
        self.split, self.seed = split, seed
        self.drop_regions, self.augment_words = drop_regions, augment_words
        self.shard = distributed.shard()  # a worker belongs to no group of processes

    def __getitem__(self, item: Any) -> Any:
        return self.fill(self.draw(*item))

    def draw(self, epoch: int, which: np.ndarray) -> Draw:
        """Draw for the captions `which`. Raises InputError that names an invalid image.

        Every image is read to be checked, so it is in memory when `fill` copies its regions.
        """
        generators = [np.random.default_rng((self.seed, epoch, int(caption))) for caption in which]
        sequences = [
            self.split.captions.ids(caption, generator if self.augment_words else None)
            for caption, generator in zip(which, generators)
        ]
        order = np.argsort([-len(sequence) for sequence in sequences], kind="stable")
        image_ids = self.split.caption_images[which[order]]
        pieces, piece_lengths = pad_ids([sequences[index] for index in order])
        kept, region_lengths = pad_ids(
            [self._kept_regions(image, generators[index]) for image, index in zip(image_ids, order)]
        )
        own = self.shard
        self.split.check_unchanged()
        for image in image_ids[own]:
            self.split.image_regions(image)
        return Draw(kept[own], region_lengths[own], pieces[own], piece_lengths[own], image_ids)

    def fill(self, draw: Draw, pin_memory: bool = False) -> Batch:
        """The batch of a `Draw`. pin_memory: put what goes to a GPU into pinned memory."""
        self.split.check_unchanged()
        regions = _empty((*draw.kept.shape, self.split.region_dim), pin_memory)
        images = draw.image_ids[self.shard]
        for row, image, kept, length in zip(
            regions.numpy(), images, draw.kept, draw.region_lengths
        ):
            stored = self.split.unchecked_regions(image)
            # copies without the GIL
            np.take(stored, kept[:length], axis=0, out=row[:length], mode="clip")
            row[length:] = 0
        others = draw.region_lengths, draw.pieces, draw.piece_lengths, draw.image_ids
        batch = Batch(regions, *map(torch.from_numpy, others))
        return batch._replace(pieces=batch.pieces.pin_memory()) if pin_memory else batch

    def _kept_regions(self, image, generator):
        num_regions = self.split.num_regions[self.split.stored_images[image]]
        if not self.drop_regions:
            return np.arange(num_regions)
        kept = np.flatnonzero(generator.random(num_regions) < REGION_KEEP_PROBABILITY)
        return kept if len(kept) else generator.integers(num_regions, size=1)


def _empty(shape, pin_memory):
    """A float32 tensor, not filled. Unless it is pinned, in huge pages where there are any (Linux):
    4 KB pages take the system several times as long to provide as the regions of a batch take to be
    copied into them.
    """
    if pin_memory or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, pin_memory=pin_memory)
    memory = mmap.mmap(-1, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that has none
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)


class _Draws(Dataset):
    """What workers do: all of a batch but its regions,
    which are too large to pass from process to process."""

    def __init__(self, pairs: TrainingPairs) -> None:
        self.pairs = pairs

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.pairs.draw(*item)
        except InputError as error:
            # raised by `batches`: an exception that crosses from a worker arrives as a traceback
            return error


def training_loader(
    pairs: TrainingPairs, batch_size: int, workers: int, batch_clusters: int | None = None
) -> DataLoader:
    """A loader for `batches`. Set the `epoch` and `first` of its sampler before each epoch. Raises
    InputError.

    batch_clusters: P of a `NeighbourSampler`, or None to draw batches at random.
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
    """The batches of one epoch. A thread fills the next batch while one is in use.

    If a worker raises an InputError, it is raised in place of its batch. pin_memory: see
    `TrainingPairs.fill`.
    """
    pairs = loader.dataset.pairs
    ahead: deque = deque()

    def fill(draw):
        if isinstance(draw, InputError):
            # not `draw`: in a cycle with this frame it would keep the workers alive
            raise InputError(str(draw))
        return pairs.fill(draw, pin_memory)

    with ThreadPoolExecutor(1) as thread:
        for draw in _from_workers(loader):
            ahead.append(thread.submit(fill, draw))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        yield from (last.result() for last in ahead)


def _from_workers(loader):
    """What a loader gives. Raises InputError where the system ended one of its workers."""
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(
            f"{loader.dataset.pairs.split.folder}: a loader process was ended "
            f"({first_sentence(error)}), expected it to go on: the system does so without memory; "
            "give fewer --workers, then repeat the command with --resume auto"
        ) from error
