"""Search in a split: the best images for a caption, the best captions for an image.

Embeddings are cached in the run folder, with a hash of what they depend on: weights and options of
the model, features, region counts, captions. If the hash differs or the file is damaged, the
embeddings are computed again and the file is replaced.
"""

# N images, C captions, E embedding

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data import fingerprint
from ..data.captions import Tokeniser, split_words
from ..data.dataset import RetrievalDataset
from ..data.layout import read_lines
from ..data.pairing import ids_of_images
from ..evaluation import encoding
from ..evaluation.similarity import Similarity, top_indices
from ..model.network import HREM
from ..system import cache
from ..system.console import markdown_cell
from ..system.errors import InputError
from ..system.run_folder import RunFolder
from .trained import Trained


class SearchResult(NamedTuple):
    """A result: the number of the image or caption from 0, its rank from 1, its similarity.

    kind: "hit", "miss", or "truth" for the best true match if it ranks below the results shown.
    """

    number: int
    rank: int
    score: float
    kind: str


class SplitIndex(NamedTuple):
    """Captions (C) and image ids (N) of a split. If the data have no ids, the ids are the numbers
    of the images.

    caption_images: (C,) image of each caption.
    """

    captions: list[str]
    ids: list[str]
    has_ids: bool
    caption_images: np.ndarray

    def first_caption(self, image: int) -> str:
        """The first caption of an image."""
        return self.captions[np.argmax(self.caption_images == image)]

    def captions_of(self, image: int) -> list[int]:
        """The numbers of the captions of an image."""
        return np.flatnonzero(self.caption_images == image).tolist()

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
                f"--query_image {which}: no such image (found {len(self.ids)} images, expected 0 "
                f"to {len(self.ids) - 1}, or id:ID, such as id:{self.ids[0]}). Name another image"
            )
        return number


def build_index(data: RetrievalDataset) -> SplitIndex:
    """Read the captions and ids of a split. Raises InputError if the number of ids is wrong."""
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
            f"{path}: wrong number of ids (found {len(ids)} ids for {data.pairing.num_images} "
            "images, expected one id per image or per caption). Copy the file again, or remove it"
        )
    ids = [ids[image] for image in data.stored_images]
    return SplitIndex(captions[: data.num_captions], ids, has_ids, data.caption_images)


def _numbers(count):
    return list(map(str, range(count)))


def best(scores: np.ndarray, count: int, true: Collection[int] = ()) -> list[SearchResult]:
    """The `count` best of (n,) scores. true: numbers of the true matches, which are hits."""
    return [
        SearchResult(number, rank, float(scores[number]), "hit" if number in true else "miss")
        for rank, number in enumerate(top_indices(scores, count).tolist(), 1)
    ]


def best_and_truth(scores: np.ndarray, count: int, true: Collection[int]) -> list[SearchResult]:
    """Like `best`, with the best true match at the end if none of the results is true."""
    found = best(scores, count, true)
    if true and not any(one.kind == "hit" for one in found):
        order = top_indices(scores, len(scores)).tolist()
        rank, number = next(place for place in enumerate(order, 1) if place[1] in true)
        found.append(SearchResult(number, rank, float(scores[number]), "truth"))
    return found


def text_scores(
    trained: Trained, data: RetrievalDataset, embedded: Similarity | None, text: str
) -> np.ndarray:
    """Similarities (N,) of a text with the images of a split. embedded: the split, or None for a
    model with cross-attention."""
    if embedded is None:
        return trained.scores_of_text(text, data)
    return embedded.images.numpy() @ trained.encode_captions([text])[0]


def region_scores(
    trained: Trained, data: RetrievalDataset, embedded: Similarity | None, regions: np.ndarray
) -> np.ndarray:
    """Similarities (C,) of the regions of one image, (1, R, D), with the captions of a split.
    embedded: as for `text_scores`."""
    if embedded is None:
        return trained.scores_of_regions(regions, data)
    return embedded.captions.numpy() @ trained.encode_images(regions)[0]


def unknown_words(text: str, tokeniser: Tokeniser) -> list[str]:
    """The words of a text that the model does not know, each once: those that become <unk> (a
    vocabulary) or contain a piece [UNK] (BERT)."""
    model = tokeniser.backend_tokenizer.model
    words = dict.fromkeys(split_words(text, tokeniser))
    return [
        word for word in words if model.unk_token in (piece.value for piece in model.tokenize(word))
    ]


def images_as_text(found: Sequence[SearchResult], data: RetrievalDataset, index: SplitIndex) -> str:
    """Format the results for a caption as a table: rank, similarity, image, its id, its first
    caption. If the features repeat the rows of images, the table also has the rows."""
    with_rows = data.rows_per_image > 1
    rows = [
        (
            f"| {one.rank} | {one.score:.4f} | {one.number} "
            f"|{f' {data.row_of(one.number)} |' * with_rows} "
            f"{markdown_cell(index.ids[one.number])} | "
            f"{markdown_cell(index.first_caption(one.number))} |"
        )
        for one in found
    ]
    head = f"| rank | similarity | image |{' row |' * with_rows} id | its first caption |"
    return "\n".join([head, f"|---|---|---|{'---|' * with_rows}---|---|", *rows])


def captions_as_text(found: Sequence[SearchResult], index: SplitIndex) -> str:
    """Format the results for an image as a table: rank, similarity, caption number, the id of its
    image, whether it is a hit, the caption."""
    rows = [
        (
            f"| {one.rank} | {one.score:.4f} | {one.number} | "
            f"{markdown_cell(index.ids[index.caption_images[one.number]])} | "
            f"{'hit' if one.kind == 'hit' else ''} | {markdown_cell(index.captions[one.number])} |"
        )
        for one in found
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
    """The similarities of a split for a model with embeddings, from the embeddings cached in a run
    folder if these belong to this model and these data.

    name: of the cache file; model_options: options that the model was built with. If the folder
    cannot be written, or the file is not ours, nothing is cached.
    """
    hashes = fingerprint.of_model(model, model_options), sorted(fingerprint.of_split(data).items())
    # `opened` identifies the file that was read, even if another one has its name now
    key = cache.digest(*hashes, data.regions.opened)
    cached = _read(folder.path / name, key, data)
    if cached is None:
        cached = encoding.similarities(model, data, device)
        assert isinstance(cached, Similarity)
        with contextlib.suppress(OSError, InputError), folder.atomic_write(name) as file:
            cache.write(file, key, images=cached.images.numpy(), captions=cached.captions.numpy())
    return cached


def _read(path, key, data):
    """The cached similarities, or None if they are missing, damaged, or belong to something
    else."""
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
