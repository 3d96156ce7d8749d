"""A split of a data set: regions and captions (docs/method.md, section 1)."""

# N images, C captions, R regions, D region feature size, L pieces

import os
from collections.abc import Sequence
from pathlib import Path

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

DEV_CAPTIONS = 5000  # `dev` is cut to these, as SCAN does
LARGEST_FEATURE = 1e12  # beyond it sums of squares, as norms and gradients take them, leave float32
TOKENS = ".tokens"  # folder of captions cut into pieces, beside the captions


def data_folder(data_path: Path | str, dataset: str) -> Path:
    """`{data_path}/{dataset}_precomp`. If it is missing, the InputError lists the data sets
    found."""
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
    """One split: its images, each once, and its captions in the file's order, cut into pieces.

    folder: a `*_precomp` folder; split: train, dev, test, ...; tokeniser: of `lib.model.bert`;
    longest_caption: most ids that BERT has positions for. Raises InputError naming the file that
    does not fit.

    caption_images: (C,) int64, image of every caption, from 0; pairing: the `Pairing` as stored,
    before `dev` was cut; stored_images: (N,) the images of the stored split that are used; notes:
    what people must be told of the data.
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
    def num_images(self) -> int:
        return len(self.stored_images)

    @property
    def rows_per_image(self) -> int:
        return self.pairing.rows_per_image

    @property
    def first_captions(self) -> np.ndarray:
        """The number of the first caption of every image, (N,)."""
        return np.unique(self.caption_images, return_index=True)[1]

    def row_of(self, image: int) -> int:
        """The row of an image in the file of features."""
        return int(self.stored_images[image]) * self.pairing.rows_per_image

    @property
    def num_captions(self) -> int:
        return len(self.captions)

    @property
    def region_dim(self) -> int:
        return self.regions.shape[2]

    def image_regions(self, image: int) -> np.ndarray:
        """The true regions of one image, (n, D). The InputError names an image with NaN, Inf or
        absurd values."""
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

    def check_unchanged(self) -> None:
        """Raise InputError if the file of features has changed. Call it before a batch is read."""
        self.regions.check_unchanged()

    def fingerprint(self) -> dict[str, str]:
        """Hashes and sizes that identify the data, see `lib.data.fingerprint.of_split`."""
        return of_split(self)

    def unchecked_regions(self, image: int) -> np.ndarray:
        """The true regions of one image, (n, D), without checks."""
        count = self.num_regions[self.stored_images[image]]
        return self.regions.read(self.row_of(image), 0, count).astype(np.float32, copy=False)

    def image_block(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Regions (n, R, D), zero beyond each length, and lengths (n,) of images start..stop -
        1."""
        self.check_unchanged()
        found = [self.image_regions(image) for image in range(start, stop)]
        lengths = np.array([len(regions) for regions in found])
        padded = np.zeros((len(found), lengths.max(), self.region_dim), dtype=np.float32)
        for row, regions in zip(padded, found):
            row[: len(regions)] = regions
        return torch.from_numpy(padded), torch.from_numpy(lengths)

    def caption_block(self, which: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (n, L), padded with 0, and lengths (n,) of the captions with these numbers."""
        return pad_pieces([self.captions.ids(caption) for caption in which])


def _largest(features):
    """The largest absolute value; NaN if there is one."""
    return max(features.max(), -features.min())


def pad_pieces(sequences: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad id arrays with 0 to the longest. Returns tensors (n, L) and (n,)."""
    padded, lengths = pad_ids(sequences)
    return torch.from_numpy(padded), torch.from_numpy(lengths)


def pad_ids(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """`pad_pieces` that returns arrays."""
    lengths = np.array([len(sequence) for sequence in sequences])
    padded = np.full((len(sequences), lengths.max()), PADDING_ID)
    for row, sequence in zip(padded, sequences):
        row[: len(sequence)] = sequence
    return padded, lengths
