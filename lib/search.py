"""Search in a split: the best images of a caption, the best captions of an image; embeddings kept between searches.

Embeddings are kept in the run folder under a hash of what they depend on: model file, features, captions. A file of
another hash, or one that does not read back whole, is computed again and replaced.
"""

# N images, C captions, E embedding

import contextlib
import hashlib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib import engine
from lib.captions import split_words
from lib.dataset import read_lines
from lib.errors import InputError
from lib.files import atomic_write, why_unreadable
from lib.metrics import CAPTIONS_PER_IMAGE, Similarity


class Found(NamedTuple):
    """One result: number of the image or caption, from 0, its similarity, and whether it is a true one."""

    number: int
    score: float
    is_hit: bool


class Names(NamedTuple):
    """What people know a split by: its C captions and its N image ids, strings; the images' numbers without ids."""

    captions: list
    ids: list
    has_ids: bool

    def label(self, image):
        """What an image of this number is called: "id 188 (image 16)", or "image 16" where that is its id too."""
        identity = self.ids[image]
        return f"image {image}" if identity == str(image) else f"id {identity} (image {image})"

    def find(self, which):
        """The number of the image that "N" or "id:ID" means. Raises InputError where there is none."""
        identity = which.removeprefix("id:")
        if identity == which:
            number = int(which)
        else:
            number = self.ids.index(identity) if identity in self.ids else -1
        if not 0 <= number < len(self.ids):
            raise InputError(
                f"--query_image {which}: found no such image among {len(self.ids)}, expected 0 to {len(self.ids) - 1}, "
                f"or id:ID, such as id:{self.ids[0]}"
            )
        return number


def names(data):
    """The `Names` of a `lib.dataset.RetrievalDataset`. Raises InputError where the ids are of another split."""
    captions = read_lines(data.folder / f"{data.split}_caps.txt")
    path = data.folder / f"{data.split}_ids.txt"
    has_ids, images = path.exists(), len(captions) // CAPTIONS_PER_IMAGE
    ids = read_lines(path) if has_ids else list(map(str, range(images)))
    if len(ids) not in (images, len(captions)):
        raise InputError(
            f"{path}: found {len(ids)} ids for {images} images, expected an id an image, or one a caption; "
            "copy the file again, or remove it"
        )
    return Names(captions[: data.num_captions], ids[:: len(ids) // images][: data.num_images], has_ids)


def best(scores, count):
    """Numbers of the `count` largest of (n,) scores, largest first, equal ones in the file's order."""
    return np.argsort(-scores, kind="stable")[:count]


def best_captions(similarity, image, count):
    """The captions most similar to an image of the split: a list of `Found`."""
    scores = similarity[image : image + 1, :][0]
    return [Found(int(n), float(scores[n]), n // CAPTIONS_PER_IMAGE == image) for n in best(scores, count)]


def best_images(scores, count, true_image=None):
    """The images of the largest of (N,) scores: a list of `Found`; true_image: the caption's, if any."""
    return [Found(int(n), float(scores[n]), n == true_image) for n in best(scores, count)]


def unknown_words(text, tokeniser):
    """The words of a text that a model cannot tell apart, each once: <unk> of a vocabulary, pieces [UNK] of BERT."""
    model = tokeniser.backend_tokenizer.model
    words = dict.fromkeys(split_words(text, tokeniser))
    return [word for word in words if model.unk_token in (piece.value for piece in model.tokenize(word))]


def images_as_text(found, data, known):
    """Results of a caption as a table: rank, similarity, image, its id, its first caption.

    Where images are repeated for their captions, their rows in the features stand beside their numbers.
    """
    with_rows = data.rows_per_image > 1
    rows = [
        f"| {rank} | {one.score:.4f} | {one.number} |{f' {one.number * data.rows_per_image} |' * with_rows} "
        f"{known.ids[one.number]} | {known.captions[CAPTIONS_PER_IMAGE * one.number]} |"
        for rank, one in enumerate(found, 1)
    ]
    head = f"| rank | similarity | image |{' row |' * with_rows} id | its first caption |"
    return "\n".join([head, f"|---|---|---|{'---|' * with_rows}---|---|", *rows])


def captions_as_text(found, known):
    """Results of an image as a table: rank, similarity, caption, the id of its image, hit or not, the caption."""
    rows = [
        f"| {rank} | {one.score:.4f} | {one.number} | {known.ids[one.number // CAPTIONS_PER_IMAGE]} | "
        f"{'hit' if one.is_hit else ''} | {known.captions[one.number]} |"
        for rank, one in enumerate(found, 1)
    ]
    return "\n".join(["| rank | similarity | caption | id | | text |", "|---|---|---|---|---|---|", *rows])


def kept_similarity(path, model, model_file, data, device):
    """The `Similarity` of a split, from the embeddings kept at `path` if they are of this model and these data."""
    key = fingerprint(model_file, data)
    kept = _read(path, key, data)
    if kept is None:
        kept = engine.similarities(model, data, device)
        with contextlib.suppress(OSError), atomic_write(path) as file:  # a folder that is read-only costs time alone
            np.savez(file, key=key, images=kept.images.numpy(), captions=kept.captions.numpy())
    return kept


def fingerprint(model_file, data):
    """A hash of what embeddings depend on: size and time of model and features, and every piece of the captions."""
    files = [Path(file).stat() for file in (model_file, data.regions_path)]
    facts = [(file.st_size, file.st_mtime_ns) for file in files], data.regions.shape, str(data.regions.dtype)
    digest = hashlib.sha256(repr((facts, data.num_images, data.rows_per_image)).encode())
    for array in (data.captions.pieces, data.captions.word_starts, data.captions.caption_starts):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path, key, data):
    """The kept `Similarity`, or None if it is not there, damaged, or of something else."""
    if why_unreadable(path):  # a pipe would wait
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            is_ours = str(file["key"]) == key
            images, captions = file["images"], file["captions"]
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile):
        return None
    fits = is_ours and images.ndim == captions.ndim == 2 and images.shape[1] == captions.shape[1]
    fits = fits and (len(images), len(captions)) == (data.num_images, data.num_captions)
    if not fits or not images.dtype == captions.dtype == np.float32:
        return None
    if not np.isfinite(images).all() or not np.isfinite(captions).all():
        return None
    return Similarity(torch.from_numpy(images), torch.from_numpy(captions))
