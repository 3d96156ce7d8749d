"""A split of a data set: regions and captions (docs/method.md, section 1)."""

# N images, C captions, R regions, D region feature size, L pieces

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..system.cache import digest
from ..system.errors import InputError
from . import caption_forms
from .captions import PADDING_ID, Tokeniser, tokenise_cached
from .fingerprint import of_split, of_tokeniser
from .layout import read_lines, read_num_regions
from .pairing import check_ids, drop_blank_end, find_pairing
from .region_file import RegionFile

DEV_CAPTIONS = 5000  # number of captions of `dev` that are used, as in SCAN
LARGEST_FEATURE = 1e12  # sums of squares of larger values, in norms and gradients, exceed float32
TOKENS = ".tokens"  # folder of cached tokenised captions, in the data folder


class Padded(NamedTuple):
    """Padded sequences and their lengths: regions (n, R, D) or ids (n, L), and (n,)."""

    values: torch.Tensor
    lengths: torch.Tensor


class PaddedIds(NamedTuple):
    """Padded sequences of ids, (n, L) int64, and their lengths, (n,) int64."""

    ids: np.ndarray
    lengths: np.ndarray


def data_folder(data_path: Path | str, dataset: str) -> Path:
    """`{data_path}/{dataset}_precomp`.

    Raises InputError, with a list of the data sets found, if it does not exist.
    """
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


class RetrievalDataset:
    """One split: its images, each once, and its tokenised captions in the order of the file.

    folder: a `*_precomp` folder; split: train, dev, test, ...; tokeniser: from `lib.model.bert` or
    `lib.data.vocabulary`; longest_caption: maximum number of ids, i.e. the positions of BERT.
    Raises InputError, with the file, if the files are missing, damaged or do not fit each other.

    caption_images: (C,) int64, image of each caption, from 0; pairing: the `Pairing` of the stored
    split, before `dev` is truncated; stored_images: (N,) the images of the stored split that are
    used; notes: lines to print about the data.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        tokeniser: Tokeniser,
        longest_caption: int | None = 512,
    ) -> None:
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

    def _read_num_regions(self) -> np.ndarray:
        """The number of true regions of each stored image. Raises InputError."""
        path, repeats = self.folder / f"{self.split}_num_regions.npy", self.pairing.rows_per_image
        counts = read_num_regions(path, *self.regions.shape[:2]).reshape(-1, repeats)
        differing = np.flatnonzero(counts.min(1) != counts.max(1))
        if len(differing):
            row = differing[0] * repeats
            raise InputError(
                f"{path}: found {', '.join(map(str, counts[differing[0]]))} regions for rows "
                f"{row} to {row + repeats - 1} (from 0), which are the same image, expected the "
                "same number: make the file again"
            )
        return counts[:, 0]

    def _keep_dev_captions(self) -> None:
        """Keep the first captions of `dev`, and the images to which they belong."""
        stored, num_captions = np.bincount(self.caption_images), len(self.caption_images)
        images = self.caption_images[:DEV_CAPTIONS]
        self.stored_images, self.caption_images = np.unique(images, return_inverse=True)
        kept = np.bincount(images, minlength=len(stored))
        num_part = int(((0 < kept) & (kept < stored)).sum())
        part = f", {num_part} of them with only some of their captions" if num_part else ""
        self.notes.append(
            f"{self.folder / self.split}_caps.txt: the first {DEV_CAPTIONS} of {num_captions} "
            f"captions are used, as published: {len(self.stored_images)} of {len(stored)} "
            f"images{part}"
        )

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.stored_images)

    @property
    def num_captions(self) -> int:
        """C."""
        return len(self.captions)

    @property
    def region_dim(self) -> int:
        """D."""
        return self.regions.shape[2]

    @property
    def rows_per_image(self) -> int:
        """How often each image is repeated in the file of its features."""
        return self.pairing.rows_per_image

    @property
    def first_captions(self) -> np.ndarray:
        """(N,) number of the first caption of each image."""
        return np.unique(self.caption_images, return_index=True)[1]

    def row_of(self, image: int) -> int:
        """The first row of an image in the file of its features."""
        return int(self.stored_images[image]) * self.pairing.rows_per_image

    def image_regions(self, image: int) -> np.ndarray:
        """The true regions of one image, (n, D) float32.

        Raises InputError if they contain NaN, Inf or values larger than LARGEST_FEATURE.
        """
        regions = self.unchecked_regions(image)
        largest = _largest(regions)
        if not largest <= LARGEST_FEATURE:  # comparisons with NaN are false
            row = self.row_of(image)
            found = f"values of {largest:.3g}" if largest < np.inf else "NaN or Inf"
            raise InputError(
                f"{self.regions_path}: image {image} (row {row}, from 0) contains "
                f"{found}, expected finite features of at most {LARGEST_FEATURE:.0e}; extract this "
                "image again"
            )
        return regions

    def unchecked_regions(self, image: int) -> np.ndarray:
        """The true regions of one image, (n, D) float32. Their values are not checked."""
        count = self.num_regions[self.stored_images[image]]
        return self.regions.read(self.row_of(image), 0, count).astype(np.float32, copy=False)

    def check_unchanged(self) -> None:
        """Raise InputError if the file of the regions was changed. Call this for each batch."""
        self.regions.check_unchanged()

    def fingerprint(self) -> dict[str, str]:
        """Hashes and sizes that identify the data (`lib.data.fingerprint.of_split`)."""
        return of_split(self)

    def image_block(self, start: int, stop: int) -> Padded:
        """Regions of the images start..stop - 1, (n, R, D), padded with zeros, and lengths."""
        self.check_unchanged()
        found = [self.image_regions(image) for image in range(start, stop)]
        lengths = np.array([len(regions) for regions in found])
        padded = np.zeros((len(found), lengths.max(), self.region_dim), dtype=np.float32)
        for row, regions in zip(padded, found):
            row[: len(regions)] = regions
        return Padded(torch.from_numpy(padded), torch.from_numpy(lengths))

    def caption_block(self, which: Iterable[int]) -> Padded:
        """Ids of the captions with these numbers, (n, L), padded with 0, and lengths."""
        return pad_pieces([self.captions.ids(caption) for caption in which])


def _largest(features: np.ndarray) -> float:
    """The largest absolute value; NaN if there is one."""
    return max(features.max(), -features.min())


def pad_pieces(sequences: Sequence[np.ndarray]) -> Padded:
    """Pad n sequences of ids with 0 to the longest."""
    padded, lengths = pad_ids(sequences)
    return Padded(torch.from_numpy(padded), torch.from_numpy(lengths))


def pad_ids(sequences: Sequence[np.ndarray]) -> PaddedIds:
    """Like `pad_pieces`, but returns arrays."""
    lengths = np.array([len(sequence) for sequence in sequences])
    padded = np.full((len(sequences), lengths.max()), PADDING_ID)
    for row, sequence in zip(padded, sequences):
        row[: len(sequence)] = sequence
    return PaddedIds(padded, lengths)
