"""Caption -> words -> word pieces -> ids, and the word-level augmentation of training
(docs/method.md, section 2).

Captions are cut once per data set and kept as flat arrays, which worker processes share instead of
copying.
"""

# C captions, W words in all, P pieces in all

import contextlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tqdm import tqdm

from ..system import cache, distributed
from ..system.errors import InputError
from ..system.files import atomic_write

AUGMENT_PROBABILITY = 0.2  # of the words
MASK_SHARE, REPLACE_SHARE = 0.5, 0.1  # of the altered words; the rest are dropped
PADDING_ID = 0
MIN_CAPTIONS_TO_CACHE = 50_000  # captions; fewer are cut within two seconds
ARRAYS = ("pieces", "word_starts", "caption_starts")
CACHE_VERSION = 1  # of `tokenise`: another number makes what older versions kept unknown


class SpecialIds(NamedTuple):
    """The ids that are not pieces of words, and the size of the vocabulary."""

    start: int
    end: int
    mask: int
    vocabulary_size: int


class Captions(NamedTuple):
    """Captions cut into pieces, without [CLS] and [SEP].

    pieces (P,) ids; word_starts (W + 1,) into pieces; caption_starts (C + 1,) into words; special:
    `SpecialIds`; num_shortened: captions cut because BERT has no positions for all of their pieces.
    """

    pieces: np.ndarray
    word_starts: np.ndarray
    caption_starts: np.ndarray
    special: SpecialIds
    num_shortened: int = 0

    def __len__(self):
        return len(self.caption_starts) - 1

    @property
    def lengths(self):
        """(C,) pieces of every caption, [CLS] and [SEP] included."""
        return np.diff(self.word_starts[self.caption_starts]) + 2

    def ids(self, caption, generator=None):
        """Ids of one caption, [CLS] and [SEP] included;
        altered word by word if a numpy generator is given. (L,)"""
        first, last = self.caption_starts[caption], self.caption_starts[caption + 1]
        starts = self.word_starts[first : last + 1]
        pieces = self.pieces[starts[0] : starts[-1]]
        if generator is not None:
            pieces = augment(pieces, np.diff(starts), self.special, generator)
        return np.concatenate(([self.special.start], pieces, [self.special.end])).astype(np.int64)


def split_words(text, tokeniser):
    """Words of BERT's basic tokeniser: cleaned, lower case, no accents,
    punctuation and CJK split off.

    A tokeniser of a cased BERT, or one that is asked to, keeps capitals or accents.
    """
    backend = tokeniser.backend_tokenizer
    return [
        word
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(
            backend.normalizer.normalize_str(text)
        )
    ]


def tokenise(texts, tokeniser, longest=None):
    """Cut captions into pieces.

    texts: list of C strings; tokeniser: of `lib.model.bert` or `lib.data.vocabulary`; longest: most
    ids a caption may have, [CLS] and [SEP] included, or None. A longer caption loses its last
    words. Returns `Captions`.
    """
    word_piece = tokeniser.backend_tokenizer.model
    known = {}
    pieces, word_lengths, caption_lengths, num_shortened = [], [], [], 0
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
    pieces, special = np.array(pieces, dtype=np.int32), special_ids(tokeniser)
    return Captions(pieces, _starts(word_lengths), _starts(caption_lengths), special, num_shortened)


def tokenise_cached(texts, tokeniser, longest, folder):
    """`tokenise`, remembered in `folder` under a hash of all that it depends on,
    where there is much to cut.

    A folder that cannot be written costs time and nothing else; a damaged file is replaced.
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


def _read_cached(path, key, num_captions, special):
    """The `Captions` that `path` holds, or None where it holds no captions that fit."""
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


def _are_starts(starts, end):
    return (
        len(starts) > 0
        and starts[0] == 0
        and starts[-1] == end
        and bool((np.diff(starts) >= 0).all())
    )


def special_ids(tokeniser):
    """The `SpecialIds` of a tokeniser."""
    return SpecialIds(
        tokeniser.cls_token_id, tokeniser.sep_token_id, tokeniser.mask_token_id, len(tokeniser)
    )


def _starts(lengths):
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64)


def augment(pieces, word_lengths, special, generator):
    """Alter each word with probability 0.2: mask its pieces, replace them by random ones,
    or drop it (section 2).

    pieces: (n,) ids; word_lengths: pieces of each word. Returns the new pieces, possibly none.
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
