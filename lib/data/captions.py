"""Tokenisation of captions, and word-level augmentation in training (docs/method.md, section 2).

Captions are tokenised once per data set and stored as flat arrays, which worker processes share
without copies.
"""

# C captions, W words in all, P pieces in all

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tokenizers
from tqdm import tqdm

from ..system import cache, distributed
from ..system.errors import InputError
from ..system.files import atomic_write

AUGMENT_PROBABILITY = 0.2  # of the words
MASK_SHARE, REPLACE_SHARE = 0.5, 0.1  # of the altered words; the rest are dropped
PADDING_ID = 0
MIN_CAPTIONS_TO_CACHE = 50_000  # fewer captions are tokenised within two seconds
ARRAYS = ("pieces", "word_starts", "caption_starts")
CACHE_VERSION = 1  # change it with `tokenise`: caches of other versions are ignored


class Tokeniser(Protocol):
    """What captions need of a tokeniser: a fast tokeniser of transformers, or a `Vocabulary`."""

    backend_tokenizer: Any  # tokenizers.Tokenizer
    cls_token_id: Any
    sep_token_id: Any
    mask_token_id: Any

    note: str  # a line for the log, may be empty

    def __len__(self) -> int: ...


class SpecialIds(NamedTuple):
    """The ids of special tokens, and the size of the vocabulary."""

    start: int
    end: int
    mask: int
    vocabulary_size: int


class Captions(NamedTuple):
    """Tokenised captions, without [CLS] and [SEP].

    pieces (P,) ids; word_starts (W + 1,) into pieces; caption_starts (C + 1,) into words; special:
    `SpecialIds`; num_shortened: captions truncated because they have more pieces than BERT has
    positions.
    """

    pieces: np.ndarray
    word_starts: np.ndarray
    caption_starts: np.ndarray
    special: SpecialIds
    num_shortened: int = 0

    def __len__(self) -> int:
        return len(self.caption_starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of pieces of each caption, (C,), including [CLS] and [SEP]."""
        return np.diff(self.word_starts[self.caption_starts]) + 2

    def ids(self, caption: int, generator: np.random.Generator | None = None) -> np.ndarray:
        """Ids of one caption, (L,), including [CLS] and [SEP]; with `generator`, augmented."""
        first, last = self.caption_starts[caption], self.caption_starts[caption + 1]
        starts = self.word_starts[first : last + 1]
        pieces = self.pieces[starts[0] : starts[-1]]
        if generator is not None:
            pieces = augment(pieces, np.diff(starts), self.special, generator)
        return np.concatenate(([self.special.start], pieces, [self.special.end])).astype(np.int64)


def split_words(text: str, tokeniser: Tokeniser) -> list[str]:
    """Split a text into words like BERT's basic tokeniser.

    Text is cleaned, lower-cased and stripped of accents. Each punctuation mark and each CJK
    character becomes a word. Some tokenisers, such as those of a cased BERT, keep case or accents.
    """
    backend = tokeniser.backend_tokenizer
    return [
        word
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(
            backend.normalizer.normalize_str(text)
        )
    ]


def tokenise(texts: Sequence[str], tokeniser: Tokeniser, longest: int | None = None) -> Captions:
    """Tokenise captions.

    texts: C strings; tokeniser: from `lib.model.bert` or `lib.data.vocabulary`; longest: maximum
    number of ids of a caption, including [CLS] and [SEP], or None. A longer caption loses its last
    words.
    """
    word_piece = tokeniser.backend_tokenizer.model
    known: dict[str, list[int]] = {}
    pieces: list[int] = []
    word_lengths: list[int] = []
    caption_lengths: list[int] = []
    num_shortened = 0
    for text in tqdm(
        texts, "tokenise", leave=False, disable=distributed.progress_disabled(), delay=2
    ):
        words = []
        room = np.inf if longest is None else longest - 2
        for word in split_words(text, tokeniser):
            if word not in known:
                known[word] = [piece.id for piece in word_piece.tokenize(word)]
            room -= len(known[word])
            if room < 0:
                num_shortened += 1
                break
            words.append(known[word])
        caption_lengths.append(len(words))
        for ids in words:
            word_lengths.append(len(ids))
            pieces.extend(ids)
    return Captions(
        np.array(pieces, dtype=np.int32),
        _starts(word_lengths),
        _starts(caption_lengths),
        special_ids(tokeniser),
        num_shortened,
    )


def tokenise_cached(
    texts: Sequence[str], tokeniser: Tokeniser, longest: int | None, folder: Path | str
) -> Captions:
    """Like `tokenise`, but cached in `folder` if there are at least MIN_CAPTIONS_TO_CACHE captions.

    The file name is a hash of everything that the result depends on. A damaged file is replaced. If
    the folder is not writable, nothing is cached.
    """
    if len(texts) < MIN_CAPTIONS_TO_CACHE:
        return tokenise(texts, tokeniser, longest)
    special = special_ids(tokeniser)
    settings = (
        tokeniser.backend_tokenizer.to_str(),
        tuple(special),
        longest,
        tokenizers.__version__,
        CACHE_VERSION,
    )
    key = cache.digest(settings, list(texts))
    path = Path(folder) / f"{key[:32]}.npz"
    captions = _read_cached(path, key, len(texts), special)
    if captions is None:
        captions = tokenise(texts, tokeniser, longest)
        with contextlib.suppress(OSError, InputError):
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as file:
                arrays = {name: getattr(captions, name) for name in ARRAYS}
                cache.write(file, key, **arrays, num_shortened=np.int64(captions.num_shortened))
    return captions


def _read_cached(path: Path, key: str, num_captions: int, special: SpecialIds) -> Captions | None:
    """Read `Captions` from a cache file; None if it is missing or its contents do not fit."""
    found = cache.read(path, key, (*ARRAYS, "num_shortened"))
    if found is None:
        return None
    pieces, words, starts, num_shortened = found.values()
    fits = (
        pieces.dtype == np.int32
        and words.dtype == starts.dtype == num_shortened.dtype == np.int64
        and pieces.ndim == words.ndim == starts.ndim == 1
        and num_shortened.ndim == 0
        and len(starts) == num_captions + 1
        and _are_starts(starts, len(words) - 1)
        and _are_starts(words, len(pieces))
        and (not len(pieces) or 0 <= pieces.min() <= pieces.max() < special.vocabulary_size)
        and 0 <= num_shortened <= num_captions
    )
    return Captions(pieces, words, starts, special, int(num_shortened)) if fits else None


def _are_starts(starts: np.ndarray, end: int) -> bool:
    return (
        len(starts) > 0
        and starts[0] == 0
        and starts[-1] == end
        and bool((np.diff(starts) >= 0).all())
    )


def special_ids(tokeniser: Tokeniser) -> SpecialIds:
    """The special ids and the vocabulary size of a tokeniser."""
    return SpecialIds(
        tokeniser.cls_token_id, tokeniser.sep_token_id, tokeniser.mask_token_id, len(tokeniser)
    )


def _starts(lengths: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64)


def augment(
    pieces: np.ndarray,
    word_lengths: np.ndarray,
    special: SpecialIds,
    generator: np.random.Generator,
) -> np.ndarray:
    """Alter each word with probability 0.2 (docs/method.md, section 2).

    The pieces of an altered word are masked, replaced by random pieces, or dropped. pieces: (n,)
    ids; word_lengths: number of pieces of each word. Returns the new pieces, possibly none.
    """
    alter, how = generator.random((2, len(word_lengths)))
    is_altered = alter < AUGMENT_PROBABILITY
    is_masked = np.repeat(is_altered & (how < MASK_SHARE), word_lengths)
    is_replaced = np.repeat(
        is_altered & (how >= MASK_SHARE) & (how < MASK_SHARE + REPLACE_SHARE), word_lengths
    )
    is_dropped = np.repeat(is_altered & (how >= MASK_SHARE + REPLACE_SHARE), word_lengths)
    any_entry = generator.integers(PADDING_ID + 1, special.vocabulary_size, size=len(pieces))
    altered = np.where(is_masked, special.mask, np.where(is_replaced, any_entry, pieces))
    return altered[~is_dropped]
