"""Search in a split: the best images of a caption, the best captions of an image;
embeddings kept between searches.

Embeddings are kept in the run folder with a hash of what they depend on: weights and options of the
model, features, region counts, captions. A file of another hash, or one that does not read back
whole, is computed again and replaced.
"""

# N images, C captions, E embedding

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data import fingerprint
from ..data.captions import Tokeniser, split_words
from ..data.dataset import RetrievalDataset
from ..data.layout import read_lines
from ..data.pairing import ids_of_images
from ..evaluation import encoding
from ..evaluation.metrics import Scored, Similarity, resolve_caption_images, top_indices
from ..model.network import HREM
from ..system import cache
from ..system.console import markdown_cell
from ..system.errors import InputError
from ..system.run_folder import RunFolder


class SearchResult(NamedTuple):
    """One result: number of the image or caption, from 0, its similarity,
    and whether it is a true one."""

    number: int
    score: float
    is_hit: bool


class SplitIndex(NamedTuple):
    """Captions (C) and image ids (N) of a split, strings; without ids, the numbers of the images.

    caption_images: (C,) image of every caption.
    """

    captions: list
    ids: list
    has_ids: bool
    caption_images: np.ndarray

    def first_caption(self, image: int) -> str:
        """The first caption of an image."""
        return self.captions[np.argmax(self.caption_images == image)]

    def label(self, image: int) -> str:
        """A name for an image: "id 188 (image 16)", or "image 16" if that is also its id."""
        identity = self.ids[image]
        return f"image {image}" if identity == str(image) else f"id {identity} (image {image})"

    def find(self, which: str) -> int:
        """The number of the image given as "N" or "id:ID". Raises InputError if there is none."""
        identity = which.removeprefix("id:")
        if identity == which:
            number = int(which)
        else:
            number = self.ids.index(identity) if identity in self.ids else -1
        if not 0 <= number < len(self.ids):
            raise InputError(
                f"--query_image {which}: found no such image among {len(self.ids)}, expected 0 to "
                f"{len(self.ids) - 1}, or id:ID, such as id:{self.ids[0]}"
            )
        return number


def build_index(data: RetrievalDataset) -> SplitIndex:
    """Raises InputError if the ids of the split do not fit."""
    captions = read_lines(data.folder / f"{data.split}_caps.txt")
    path = data.folder / f"{data.split}_ids.txt"
    has_ids = path.exists()
    ids = (
        ids_of_images(path, read_lines(path), data.pairing)
        if has_ids
        else _numbers(data.pairing.num_images)
    )
    if len(ids) != data.pairing.num_images:
        raise InputError(
            f"{path}: found {len(ids)} ids for {data.pairing.num_images} images, expected an id "
            "an image, or one a caption; copy the file again, or remove it"
        )
    ids = [ids[image] for image in data.stored_images]
    return SplitIndex(captions[: data.num_captions], ids, has_ids, data.caption_images)


def _numbers(count):
    return list(map(str, range(count)))


def best_captions(similarity: Scored, image: int, count: int) -> list[SearchResult]:
    """The captions most similar to an image of the split."""
    scores, caption_images = similarity[image : image + 1, :][0], resolve_caption_images(similarity)
    return [
        SearchResult(int(n), float(scores[n]), bool(caption_images[n] == image))
        for n in top_indices(scores, count)
    ]


def best_images(
    scores: np.ndarray, count: int, true_image: int | None = None
) -> list[SearchResult]:
    """The images with the largest of (N,) scores. true_image: that of the caption, if any."""
    return [
        SearchResult(int(n), float(scores[n]), n == true_image) for n in top_indices(scores, count)
    ]


def unknown_words(text: str, tokeniser: Tokeniser) -> list[str]:
    """The words of a text that are unknown to the model, each once: <unk> of a vocabulary, pieces
    [UNK] of BERT."""
    model = tokeniser.backend_tokenizer.model
    words = dict.fromkeys(split_words(text, tokeniser))
    return [
        word for word in words if model.unk_token in (piece.value for piece in model.tokenize(word))
    ]


def images_as_text(found: Sequence[SearchResult], data: RetrievalDataset, index: SplitIndex) -> str:
    """Results for a caption as a table: rank, similarity, image, its id, its first caption.

    If images are repeated in the features, their rows are beside their numbers.
    """
    with_rows = data.rows_per_image > 1
    rows = [
        (
            f"| {rank} | {one.score:.4f} | {one.number} "
            f"|{f' {data.row_of(one.number)} |' * with_rows} "
            f"{markdown_cell(index.ids[one.number])} | "
            f"{markdown_cell(index.first_caption(one.number))} |"
        )
        for rank, one in enumerate(found, 1)
    ]
    head = f"| rank | similarity | image |{' row |' * with_rows} id | its first caption |"
    return "\n".join([head, f"|---|---|---|{'---|' * with_rows}---|---|", *rows])


def captions_as_text(found: Sequence[SearchResult], index: SplitIndex) -> str:
    """Results for an image as a table: rank, similarity, caption, the id of its image, hit or not,
    the caption."""
    rows = [
        (
            f"| {rank} | {one.score:.4f} | {one.number} | "
            f"{markdown_cell(index.ids[index.caption_images[one.number]])} | "
            f"{'hit' if one.is_hit else ''} | {markdown_cell(index.captions[one.number])} |"
        )
        for rank, one in enumerate(found, 1)
    ]
    return "\n".join(
        ["| rank | similarity | caption | id | | text |", "|---|---|---|---|---|---|", *rows]
    )


def cached_similarity(
    folder: RunFolder,
    name: str,
    model: HREM,
    model_options: Mapping[str, Any],
    data: RetrievalDataset,
    device: torch.device,
) -> Similarity:
    """The similarities of a split by a model with embeddings, from those cached in a run folder if
    they are of this model and these data.

    name: of the cache file; model_options: of the model. If the folder cannot be written, or the
    file is not ours, nothing is cached.
    """
    hashes = fingerprint.of_model(model, model_options), sorted(fingerprint.of_split(data).items())
    # of the file that was opened, whatever has its name by now
    key = cache.digest(*hashes, data.regions.opened)
    kept = _read(folder.path / name, key, data)
    if kept is None:
        kept = encoding.similarities(model, data, device)
        assert isinstance(kept, Similarity)
        with contextlib.suppress(OSError, InputError), folder.atomic_write(name) as file:
            cache.write(file, key, images=kept.images.numpy(), captions=kept.captions.numpy())
    return kept


def _read(path, key, data):
    """The kept `Similarity`, or None if it is not there, damaged, or of something else."""
    found = cache.read(path, key, ("images", "captions"))
    if found is None:
        return None
    images, captions = found.values()
    fits = images.ndim == captions.ndim == 2 and images.shape[1] == captions.shape[1]
    fits = fits and (len(images), len(captions)) == (data.num_images, data.num_captions)
    if not fits or not images.dtype == captions.dtype == np.float32:
        return None
    if not np.isfinite(images).all() or not np.isfinite(captions).all():
        return None
    return Similarity(torch.from_numpy(images), torch.from_numpy(captions), data.caption_images)
