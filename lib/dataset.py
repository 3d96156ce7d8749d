"""A split of a data set: memory-mapped regions, captions, batches and loaders (SPEC sections 1 and 2).

python -m lib.dataset data/f30k_precomp     reports on every split of a folder
"""

# N images, C captions, B pairs, R regions, D region feature size, L pieces

import math
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lib.captions import PADDING_ID, tokenise_once
from lib.errors import InputError, command_line, first_sentence
from lib.metrics import CAPTIONS_PER_IMAGE
from lib.sampling import EpochSampler, NeighbourSampler, cluster_images

DEV_CAPTIONS = 5000  # `dev` is cut to these, as SCAN does
REGION_KEPT = 0.8
TOKENS = ".tokens"  # folder of captions cut into pieces, beside the captions
SPLITS = ("train", "dev", "test", "testall")


class Batch(NamedTuple):
    """B image-caption pairs, sorted by caption length, longest first.

    regions (B, R, D) float32, zero rows beyond region_lengths (B,); pieces (B, L) ids, 0 beyond piece_lengths (B,);
    image_ids (B,), equal where two captions are of one image.
    """

    regions: torch.Tensor
    region_lengths: torch.Tensor
    pieces: torch.Tensor
    piece_lengths: torch.Tensor
    image_ids: torch.Tensor

    def to(self, device):
        """The same batch, regions and pieces on `device`; lengths and ids stay, for the host cuts the work by them."""
        return self._replace(
            regions=self.regions.to(device, non_blocking=True), pieces=self.pieces.to(device, non_blocking=True)
        )


def folder_of(data_path, dataset):
    """`{data_path}/{dataset}_precomp`. Raises InputError that lists the data sets found where it is missing."""
    folder = Path(data_path) / f"{dataset}_precomp"
    if not folder.is_dir():
        there = sorted(path.name.removesuffix("_precomp") for path in Path(data_path).glob("*_precomp"))
        raise InputError(
            f"{folder}: no such folder; data sets in {data_path}: {', '.join(there) or 'none'}; expected --data_path "
            "and --dataset to name a folder DATASET_precomp (data/README.md says what belongs there; --dataset demo "
            "needs no download)"
        )
    return folder


def is_coco(dataset):
    """COCO has a split and a sampling distance of its own, under any name that starts so (coco, coco_butd)."""
    return dataset.startswith("coco")


def test_split(dataset):
    """The split that results are reported on: testall for COCO, test elsewhere."""
    return "testall" if is_coco(dataset) else "test"


def open_regions(path):
    """Memory-map a file of region features, (rows, R, D) float32 or float16; nothing is read. Raises InputError."""
    if not path.is_file():
        splits = sorted(file.name.removesuffix("_ims.npy") for file in path.parent.glob("*_ims.npy"))
        raise InputError(
            f"{path}: no such file; splits in {path.parent}: {', '.join(splits) or 'none'}; expected the region "
            "features of this split: copy the file there, or name another split"
        )
    try:
        regions = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError) as error:  # the last: damaged headers
        raise InputError(
            f"{path}: cannot be read as a .npy array: found {path.stat().st_size} bytes ({first_sentence(error)}), "
            "expected a whole float32 array of rows x regions x features: copy or download it again"
        ) from error
    if not isinstance(regions, np.ndarray) or regions.dtype.newbyteorder("=") not in (np.float32, np.float16):
        raise InputError(
            f"{path}: found values of type {getattr(regions, 'dtype', 'unknown')}, expected float32; convert it with "
            "numpy: np.save(path, array.astype(np.float32))"
        )
    if regions.ndim != 3 or 0 in regions.shape:
        raise InputError(
            f"{path}: found an array of shape {regions.shape}, expected rows x regions x features, such as (1000, 36, "
            "2048); save it again in this shape"
        )
    return regions


def read_lines(path):
    """Lines of a UTF-8 file, white space at their ends dropped, blank lines kept. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a caption a line, in UTF-8: copy the file there")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise InputError(
            f"{path}: line {line} is not UTF-8 (byte 0x{byte:02x}), expected UTF-8 text; convert it, "
            f"for instance: iconv -f latin1 -t utf-8 {path.name}"
        ) from error
    lines = text.split("\n")
    return [line.strip() for line in (lines if lines[-1] else lines[:-1])]


class RetrievalDataset:
    """One split: its images, each once, and its captions in the file's order, cut into pieces.

    folder: a `*_precomp` folder; split: train, dev, test, ...; tokeniser: of `lib.bert`; longest_caption: most ids
    that BERT has positions for. Raises InputError naming the file that does not fit.
    """

    def __init__(self, folder, split, tokeniser, longest_caption=512):
        self.folder, self.split = Path(folder), split
        self.regions_path = self.folder / f"{split}_ims.npy"
        captions_path = self.folder / f"{split}_caps.txt"
        self.regions = open_regions(self.regions_path)
        texts = read_lines(captions_path)
        self.rows_per_image = self._rows_per_image(len(texts), captions_path)
        if split == "dev":
            texts = texts[:DEV_CAPTIONS]
        self.blank_lines = [number for number, text in enumerate(texts, 1) if not text]
        self.captions = tokenise_once(texts, tokeniser, longest_caption, self.folder / TOKENS)

    def _rows_per_image(self, num_captions, captions_path):
        num_rows = len(self.regions)
        if num_captions and num_captions % CAPTIONS_PER_IMAGE == 0:
            if num_captions == CAPTIONS_PER_IMAGE * num_rows:
                return 1
            if num_captions == num_rows:
                return CAPTIONS_PER_IMAGE
        raise InputError(
            f"{captions_path}: found {num_captions} captions for the {num_rows} rows of {self.regions_path.name}, "
            f"expected {CAPTIONS_PER_IMAGE} captions an image ({CAPTIONS_PER_IMAGE * num_rows}), or as many as rows "
            "where each image is repeated five times; the two files are not of one split: copy both again"
        )

    def __getstate__(self):
        return self.__dict__ | {"regions": None}  # a worker that is started afresh maps the file itself

    def __setstate__(self, state):
        self.__dict__ |= state | {"regions": open_regions(state["regions_path"])}

    @property
    def num_images(self):
        return len(self.captions) // CAPTIONS_PER_IMAGE

    @property
    def num_captions(self):
        return len(self.captions)

    @property
    def region_dim(self):
        return self.regions.shape[2]

    def image_regions(self, image):
        """(R, D) regions of one image. Raises InputError naming an image that holds NaN or Inf."""
        regions = self.regions[image * self.rows_per_image].astype(np.float32, copy=False)
        with np.errstate(all="ignore"):
            is_finite = np.isfinite(np.add.reduce(regions, axis=None))  # not so if any value is NaN or Inf
        if not is_finite and not np.isfinite(regions).all():
            raise InputError(
                f"{self.regions_path}: image {image} (row {image * self.rows_per_image}, from 0) holds NaN or Inf, "
                "expected finite features; extract this image again"
            )
        return regions

    def image_block(self, start, stop):
        """Regions and lengths of images start..stop - 1, whole: tensors (n, R, D) and (n,)."""
        regions = np.stack([self.image_regions(image) for image in range(start, stop)])
        return torch.from_numpy(regions), torch.full((stop - start,), regions.shape[1])

    def caption_block(self, which):
        """Ids and lengths of the captions with these numbers: tensors (n, L), padded with 0, and (n,)."""
        return pad_pieces([self.captions.ids(caption) for caption in which])


def pad_pieces(sequences):
    """Pad id arrays with 0 to the longest. Returns tensors (n, L) and (n,)."""
    lengths = np.array([len(sequence) for sequence in sequences])
    padded = np.full((len(sequences), lengths.max()), PADDING_ID)
    for row, sequence in zip(padded, sequences):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded), torch.from_numpy(lengths)


class TrainingPairs(Dataset):
    """The pairs of a split, a pair a caption, by the batch: item (epoch, captions) is the `Batch` of these captions.

    What is dropped, masked and replaced depends on (seed, epoch, caption) alone, so that neither the number of
    workers nor their order changes anything.
    """

    def __init__(self, split, seed, drop_regions=True, alter_words=True):
        self.split, self.seed = split, seed
        self.drop_regions, self.alter_words = drop_regions, alter_words

    def __getitem__(self, item):
        epoch, which = item
        try:
            return self._batch(epoch, which)
        except InputError as error:
            return error  # raised by `batches`: an exception that crosses from a worker arrives as a traceback

    def _batch(self, epoch, which):
        generators = [np.random.default_rng((self.seed, epoch, int(caption))) for caption in which]
        sequences = [
            self.split.captions.ids(caption, generator if self.alter_words else None)
            for caption, generator in zip(which, generators)
        ]
        order = np.argsort([-len(sequence) for sequence in sequences], kind="stable")
        pieces, piece_lengths = pad_pieces([sequences[index] for index in order])
        image_ids = which[order] // CAPTIONS_PER_IMAGE
        kept = [self._kept_regions(generators[index]) for index in order]
        region_lengths = np.array([len(regions) for regions in kept])
        regions = _empty_to_hand_over((len(order), int(region_lengths.max()), self.split.region_dim))
        for row, image, found in zip(regions.numpy(), image_ids, kept):
            np.take(self.split.image_regions(image), found, axis=0, out=row[: len(found)], mode="clip")
            row[len(found) :] = 0
        return Batch(regions, torch.from_numpy(region_lengths), pieces, piece_lengths, torch.from_numpy(image_ids))

    def _kept_regions(self, generator):
        num_regions = self.split.regions.shape[1]
        if not self.drop_regions:
            return np.arange(num_regions)
        kept = np.flatnonzero(generator.random(num_regions) < REGION_KEPT)
        return kept if len(kept) else generator.integers(num_regions, size=1)


def _empty_to_hand_over(shape):
    """A float32 tensor, not filled; in a worker, in the shared memory that takes it to the main process uncopied."""
    if get_worker_info() is None:
        return torch.empty(shape)
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))  # as PyTorch's own collating does it
    return torch.empty(0).set_(storage, 0, shape)


def training_loader(pairs, batch_size, workers, pin_memory=False, batch_clusters=None):
    """A loader of `Batch`es; set `loader.sampler.epoch`, then iterate through `batches`. Raises InputError.

    batch_clusters: P of a `NeighbourSampler`, or None to draw batches at random.
    """
    sampler = EpochSampler(len(pairs.split.captions), batch_size, pairs.seed)
    if not len(sampler):
        raise InputError(
            f"{pairs.split.folder}: the {pairs.split.split} split has {sampler.num_pairs} pairs, expected at least one "
            f"batch of {batch_size}; give a smaller --batch_size"
        )
    if batch_clusters:
        images = np.arange(sampler.num_pairs) // CAPTIONS_PER_IMAGE
        clusters = cluster_images(pairs.split, batch_size, batch_clusters, pairs.seed)
        sampler = NeighbourSampler(images, clusters, batch_size, batch_clusters, pairs.seed)
    return DataLoader(
        pairs, sampler=sampler, batch_size=None, num_workers=workers, pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )  # fmt: skip


def batches(loader):
    """The batches of one epoch. Raises the InputError that a worker met."""
    for item in loader:
        if isinstance(item, InputError):
            raise InputError(str(item))  # not `item`: in a cycle with this frame it would keep the workers alive
        yield item


def report(folder):
    """A text about every split of a folder: counts, shapes, repeated images, captions. Raises InputError."""
    folder = Path(folder)
    found = [
        split for split in SPLITS if (folder / f"{split}_ims.npy").exists() or (folder / f"{split}_caps.txt").exists()
    ]
    if not found:
        raise InputError(
            f"{folder}: found no split, expected files such as train_ims.npy and train_caps.txt; data/README.md lists "
            "them"
        )
    return "\n".join(_report_split(folder, split) for split in found)


def _report_split(folder, split):
    regions = open_regions(folder / f"{split}_ims.npy")
    texts = read_lines(folder / f"{split}_caps.txt")
    rows, num_regions, dim = regions.shape
    if len(texts) not in (rows, CAPTIONS_PER_IMAGE * rows) or len(texts) % CAPTIONS_PER_IMAGE or not texts:
        fit = f"DO NOT FIT: expected {CAPTIONS_PER_IMAGE * rows} captions (or {rows}, each image repeated five times)"
    else:
        fit = "each image repeated five times" if len(texts) == rows else "one row an image"
    sample = np.asarray(regions[:: max(rows // 50, 1)], dtype=np.float32)
    finite = "finite" if np.isfinite(sample).all() else "NaN or Inf FOUND"
    words = [len(text.split()) for text in texts] or [0]
    blank = [str(number) for number, text in enumerate(texts, 1) if not text]
    ids = folder / f"{split}_ids.txt"
    num_ids = f"{len(read_lines(ids))} ids" if ids.exists() else "no ids (optional)"
    return (
        f"{split}: {rows} rows x {num_regions} regions x {dim} features ({regions.dtype}, "
        f"{regions.nbytes / 1e9:.1f} GB), {len(texts)} captions: {fit}; {num_ids}\n"
        f"  values of {len(sample)} rows sampled: {np.nanmin(sample):.3g} to {np.nanmax(sample):.3g}, {finite}; "
        f"words a caption: {min(words)} to {max(words)}, mean {sum(words) / len(words):.1f}; "
        f"blank captions: {len(blank)}" + (f" (lines {', '.join(blank[:10])})" if blank else "")
    )


def main():
    if len(sys.argv) != 2:
        raise InputError("usage: python -m lib.dataset data/f30k_precomp")
    print(report(sys.argv[1]))


if __name__ == "__main__":
    command_line(main)
