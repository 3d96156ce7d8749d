"""A split of a data set: regions, captions, batches and loaders
(docs/method.md, sections 1 and 2)."""

# N images, C captions, B pairs, R regions, D region feature size, L pieces

import contextlib
import math
import mmap
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..system import distributed
from ..system.cache import digest
from ..system.errors import InputError, first_sentence
from ..system.interrupt import ignore_group_signals
from . import caption_forms
from .captions import PADDING_ID, tokenise_cached
from .fingerprint import of_split, of_tokeniser
from .layout import read_lines, read_num_regions
from .pairing import check_ids, drop_blank_end, find_pairing
from .region_file import RegionFile
from .sampling import EpochSampler, NeighbourSampler, cluster_images

DEV_CAPTIONS = 5000  # `dev` is cut to these, as SCAN does
NO_SPLIT = "none"  # in place of the name of a test split
# of negatives that are drawn (docs/method.md, section 5)
LONGEST_DISTANCE, COCO_LONGEST_DISTANCE = 1.7, 1.9
REGION_KEEP_PROBABILITY = 0.8
LARGEST_FEATURE = 1e12  # beyond it sums of squares, as norms and gradients take them, leave float32
TOKENS = ".tokens"  # folder of captions cut into pieces, beside the captions


class Batch(NamedTuple):
    """B image-caption pairs, sorted by caption length, longest first.

    regions (B, R, D) float32, zero rows beyond region_lengths (B,); pieces (B, L) ids, 0 beyond
    piece_lengths (B,); image_ids (B,), equal where two captions are of one image. The share of one
    process among several holds every N-th pair, padded as the whole batch, and the image ids of the
    whole.
    """

    regions: torch.Tensor
    region_lengths: torch.Tensor
    pieces: torch.Tensor
    piece_lengths: torch.Tensor
    image_ids: torch.Tensor

    def to(self, device):
        """The same batch, regions and pieces on `device`; lengths and ids stay,
        for the host cuts the work by them."""
        return self._replace(
            regions=self.regions.to(device, non_blocking=True),
            pieces=self.pieces.to(device, non_blocking=True),
        )


def data_folder(data_path, dataset):
    """`{data_path}/{dataset}_precomp`. Raises InputError that lists the data sets found where it is
    missing."""
    folder = Path(data_path) / f"{dataset}_precomp"
    if not os.path.isdir(folder):
        where = "" if folder.is_absolute() else f" in {os.getcwd()}"
        there = sorted(
            path.name.removesuffix("_precomp") for path in Path(data_path).glob("*_precomp")
        )
        raise InputError(
            f"{folder}: no such folder{where}; data sets in {data_path}: "
            f"{', '.join(there) or 'none'}; expected --data_path and --dataset to name a folder "
            "DATASET_precomp (data/README.md says what belongs there; --dataset demo needs no "
            "download)"
        )
    return folder


class Conventions(NamedTuple):
    """What is usual for a data set: the split that results are reported on, or NO_SPLIT, and where
    distance-weighted sampling stops; note: a line for people where its name and its files do not
    say the same, or None."""

    test_split: str
    longest_distance: float
    note: str | None


def conventions(folder, dataset):
    """The `Conventions` of COCO for a name that starts with coco and for a folder with `testall`,
    else of Flickr30K.

    folder: `{dataset}_precomp`.
    """
    has_testall, has_test = has_split(folder, "testall"), has_split(folder, "test")
    is_named = dataset.lower().startswith("coco")  # coco, coco_butd, COCO, ...
    test_split = "testall" if has_testall else "test" if has_test else NO_SPLIT
    longest_distance = COCO_LONGEST_DISTANCE if is_named or has_testall else LONGEST_DISTANCE
    note = None
    if has_testall and not is_named:
        note = (
            f"{folder}: holds testall, as COCO does, though its name does not begin with coco: by "
            "default results are reported on testall, whole and as the mean of five folds, and "
            f"--longest_distance is {longest_distance}; to change this, give train.py "
            f"--test_split test --longest_distance {LONGEST_DISTANCE}, and eval.py --split test"
        )
    elif is_named and has_test and not has_testall:
        note = (
            f"{folder}: holds no testall, which results of COCO are usually of: by default they "
            "are reported on test"
        )
    return Conventions(test_split, longest_distance, note)


def has_split(folder, split):
    """Whether a data folder has a file of this split."""
    return any(os.path.lexists(Path(folder) / f"{split}_{end}") for end in ("ims.npy", "caps.txt"))


class RetrievalDataset:
    """One split: its images, each once, and its captions in the file's order, cut into pieces.

    folder: a `*_precomp` folder; split: train, dev, test, ...; tokeniser: of `lib.model.bert`;
    longest_caption: most ids that BERT has positions for. Raises InputError naming the file that
    does not fit.

    caption_images: (C,) int64, image of every caption, from 0; pairing: the `Pairing` as stored,
    before `dev` was cut; stored_images: (N,) the images of the stored split that are used; notes:
    what people must be told of the data.
    """

    def __init__(self, folder, split, tokeniser, longest_caption=512):
        self.folder, self.split = Path(folder), split
        self.regions_path = self.folder / f"{split}_ims.npy"
        self.regions = RegionFile(self.regions_path)
        captions_path = self.folder / f"{split}_caps.txt"
        texts, note = drop_blank_end(
            self.folder, split, read_lines(captions_path), len(self.regions)
        )
        self.pairing = find_pairing(self.folder, split, self.regions, len(texts))
        self.num_regions = self._read_num_regions()
        form = caption_forms.warning(captions_path, texts)
        self.notes = [*filter(None, [note, form and f"warning: {form}"]), *self.pairing.notes]
        self.notes += check_ids(self.folder, split, self.pairing)
        self.caption_images, self.stored_images = (
            self.pairing.caption_images,
            np.arange(self.pairing.num_images),
        )
        if split == "dev" and len(texts) > DEV_CAPTIONS:
            texts = texts[:DEV_CAPTIONS]
            self._keep_dev_captions()
        self.blank_lines = [number for number, text in enumerate(texts, 1) if not text]
        self.caption_digest, self.tokeniser_digest = digest(texts), of_tokeniser(tokeniser)
        self.captions = tokenise_cached(texts, tokeniser, longest_caption, self.folder / TOKENS)

    def _read_num_regions(self):
        """How many regions of each stored image are true. Raises InputError."""
        path, repeats = self.folder / f"{self.split}_num_regions.npy", self.pairing.rows_per_image
        counts = read_num_regions(path, *self.regions.shape[:2]).reshape(-1, repeats)
        differing = np.flatnonzero(counts.min(1) != counts.max(1))
        if len(differing):
            row = differing[0] * repeats
            raise InputError(
                f"{path}: found {', '.join(map(str, counts[differing[0]]))} regions for rows "
                f"{row} to {row + repeats - 1} (from 0), which are one image, expected the same "
                "number: make the file again"
            )
        return counts[:, 0]

    def _keep_dev_captions(self):
        """Keep the first captions of `dev`, and the images that these are of."""
        stored, num_captions = np.bincount(self.caption_images), len(self.caption_images)
        images = self.caption_images[:DEV_CAPTIONS]
        self.stored_images, self.caption_images = np.unique(images, return_inverse=True)
        kept = np.bincount(images, minlength=len(stored))
        num_part = int(((0 < kept) & (kept < stored)).sum())
        part = f", {num_part} of them with a part of their captions" if num_part else ""
        self.notes.append(
            f"{self.folder / self.split}_caps.txt: the first {DEV_CAPTIONS} of {num_captions} "
            f"captions are used, as published: {len(self.stored_images)} of {len(stored)} "
            f"images{part}"
        )

    @property
    def num_images(self):
        return len(self.stored_images)

    @property
    def rows_per_image(self):
        return self.pairing.rows_per_image

    @property
    def first_captions(self):
        """(N,) number of every image's first caption."""
        return np.unique(self.caption_images, return_index=True)[1]

    def row_of(self, image):
        """The row of an image in the file of its features."""
        return self.stored_images[image] * self.pairing.rows_per_image

    @property
    def num_captions(self):
        return len(self.captions)

    @property
    def region_dim(self):
        return self.regions.shape[2]

    def image_regions(self, image):
        """(n, D), the true regions of one image. Raises InputError naming an image of NaN,
        Inf or absurd values."""
        regions = self.unchecked_regions(image)
        largest = _largest(regions)
        if not largest <= LARGEST_FEATURE:  # no comparison with NaN is true
            row = self.row_of(image)
            found = f"values of {largest:.3g}" if largest < np.inf else "NaN or Inf"
            raise InputError(
                f"{self.regions_path}: image {image} (row {row}, from 0) holds {found}, expected "
                f"finite features of at most {LARGEST_FEATURE:.0e}; extract this image again"
            )
        return regions

    def check_unchanged(self):
        """Raises InputError where the file of the regions is not what it was:
        to be called before a batch is read."""
        self.regions.check_unchanged()

    def fingerprint(self):
        """A dict of hashes and sizes by which the data are known, see
        `lib.data.fingerprint.of_split`."""
        return of_split(self)

    def unchecked_regions(self, image):
        """(n, D), the true regions of one image, whatever they hold."""
        count = self.num_regions[self.stored_images[image]]
        return self.regions.read(self.row_of(image), 0, count).astype(np.float32, copy=False)

    def image_block(self, start, stop):
        """Regions and lengths of images start..stop - 1: tensors (n, R, D),
        zero beyond each length, and (n,)."""
        self.check_unchanged()
        found = [self.image_regions(image) for image in range(start, stop)]
        lengths = np.array([len(regions) for regions in found])
        padded = np.zeros((len(found), lengths.max(), self.region_dim), dtype=np.float32)
        for row, regions in zip(padded, found):
            row[: len(regions)] = regions
        return torch.from_numpy(padded), torch.from_numpy(lengths)

    def caption_block(self, which):
        """Ids and lengths of the captions with these numbers: tensors (n, L), padded with 0,
        and (n,)."""
        return pad_pieces([self.captions.ids(caption) for caption in which])


def _largest(features):
    """The largest absolute value; NaN if there is one."""
    return max(features.max(), -features.min())


def pad_pieces(sequences):
    """Pad id arrays with 0 to the longest. Returns tensors (n, L) and (n,)."""
    padded, lengths = _pad(sequences)
    return torch.from_numpy(padded), torch.from_numpy(lengths)


def _pad(sequences):
    lengths = np.array([len(sequence) for sequence in sequences])
    padded = np.full((len(sequences), lengths.max()), PADDING_ID)
    for row, sequence in zip(padded, sequences):
        row[: len(sequence)] = sequence
    return padded, lengths


@dataclass
class Draw:
    """What is drawn for a `Batch`: its fields, but in place of the regions the numbers
    (B, R) of those that are kept.

    Arrays and not tensors: a worker hands over so few bytes more quickly than it does handles of
    shared memory.
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

    def __init__(self, split, seed, drop_regions=True, augment_words=True):
        self.split, self.seed = split, seed
        self.drop_regions, self.augment_words = drop_regions, augment_words
        self.shard = distributed.shard()  # a worker belongs to no group of processes

    def __getitem__(self, item):
        return self.fill(self.draw(*item))

    def draw(self, epoch, which):
        """The `Draw` of the captions `which`. Raises InputError naming an image that does not fit.

        To be checked every image is read, and so is in memory by the time that `fill` copies its
        regions.
        """
        generators = [np.random.default_rng((self.seed, epoch, int(caption))) for caption in which]
        sequences = [
            self.split.captions.ids(caption, generator if self.augment_words else None)
            for caption, generator in zip(which, generators)
        ]
        order = np.argsort([-len(sequence) for sequence in sequences], kind="stable")
        image_ids = self.split.caption_images[which[order]]
        pieces, piece_lengths = _pad([sequences[index] for index in order])
        kept, region_lengths = _pad(
            [self._kept_regions(image, generators[index]) for image, index in zip(image_ids, order)]
        )
        own = self.shard
        self.split.check_unchanged()
        for image in image_ids[own]:
            self.split.image_regions(image)
        return Draw(kept[own], region_lengths[own], pieces[own], piece_lengths[own], image_ids)

    def fill(self, draw, pin_memory=False):
        """The `Batch` of a `Draw`; in pinned memory what goes to a GPU, if asked for."""
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

    def __init__(self, pairs):
        self.pairs = pairs

    def __getitem__(self, item):
        try:
            return self.pairs.draw(*item)
        except InputError as error:
            # raised by `batches`: an exception that crosses from a worker arrives as a traceback
            return error


def training_loader(pairs, batch_size, workers, batch_clusters=None):
    """A loader for `batches`; set its sampler's `epoch` and `first`,
    iterate through `batches`. Raises InputError.

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


def batches(loader, pin_memory=False):
    """The `Batch`es of one epoch, each filled by a thread while the one before is in use.

    Raises the InputError that a worker met, where its batch would come. pin_memory: as of
    `TrainingPairs.fill`.
    """
    pairs, ahead = loader.dataset.pairs, deque()

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
