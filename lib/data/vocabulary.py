"""Vocabulary of the BiGRU text encoder, and its word embeddings, random or from GloVe.

`lib.data.captions` uses a `Vocabulary` like the tokeniser of BERT: captions are split by the same
basic tokeniser, and each word is one piece. Augmentation is the same.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, normalizers
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFC, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import nn
from tqdm import tqdm

from ..system import distributed
from ..system.errors import InputError
from ..system.files import why_unreadable
from .captions import PADDING_ID, split_words

# ids 0, 1, ...; no word of a caption contains a bracket
SPECIAL = ("<pad>", "<unk>", "<start>", "<end>", "<mask>")
LARGEST_AT_FIRST = 0.1  # largest initial value of word embeddings
EXAMPLES = 5
LOOKED_AT = 2  # lines that are checked to be text: the header and the first vector
FEW = 0.5  # warn if a smaller fraction of the words has a vector


class Vectors(NamedTuple):
    """Words of a vocabulary that a file of vectors holds.

    num_found: number of words with a vector; other_case, accented: words that the file holds only
    in another case, or only with accents.
    """

    num_found: int
    other_case: list[str]
    accented: list[str]


class Vocabulary:
    """Tokeniser with one id per word, after the ids of SPECIAL. Unknown words become <unk>.

    words: as `split_words` returns them; strip_accents: whether "schön" is read as "schon"; note:
    as in a tokeniser of `lib.model.bert`. Implements `lib.data.captions.Tokeniser`. Raises
    ValueError or TypeError if the words are invalid.
    """

    def __init__(self, words: Iterable[str], strip_accents: bool = True, note: str = "") -> None:
        self.words, self.strip_accents, self.note = list(words), strip_accents, note
        self.ids = {word: number for number, word in enumerate((*SPECIAL, *self.words))}
        if len(self.ids) < len(SPECIAL) + len(self.words):
            raise ValueError("a word occurs twice in the vocabulary")
        self.backend_tokenizer = Tokenizer(WordLevel(self.ids, unk_token="<unk>"))
        self.backend_tokenizer.normalizer = (
            BertNormalizer(lowercase=True)  # which strips accents
            if strip_accents
            else normalizers.Sequence([NFC(), BertNormalizer(lowercase=True, strip_accents=False)])
            # NFC: one form of each letter
        )
        self.backend_tokenizer.pre_tokenizer = BertPreTokenizer()
        self.cls_token_id, self.sep_token_id, self.mask_token_id = map(
            self.ids.get, ("<start>", "<end>", "<mask>")
        )

    def __len__(self) -> int:
        return len(self.ids)


def frequent_words(texts: Sequence[str], min_count: int, strip_accents: bool = True) -> list[str]:
    """Words that occur at least `min_count` times in the captions, the most frequent first."""
    counts = _count_words(texts, strip_accents)
    return sorted(
        (word for word in counts if counts[word] >= min_count),
        key=lambda word: (-counts[word], word),
    )


def _count_words(texts: Sequence[str], strip_accents: bool) -> Counter[str]:
    tokeniser = Vocabulary([], strip_accents)
    counts: Counter[str] = Counter()
    for text in tqdm(
        texts, "vocabulary", leave=False, disable=distributed.progress_disabled(), delay=2
    ):
        counts.update(split_words(text, tokeniser))
    return counts


def merged_words(texts: Sequence[str], words: Iterable[str]) -> dict[str, list[str]]:
    """Find words that merge several words with different accents: {word: sorted merged words}.

    texts: the captions from which `frequent_words` took the words, with accents stripped.
    """
    if all(map(str.isascii, texts)):
        return {}
    forms, stripping = defaultdict(list), Vocabulary([])
    for word in sorted(_count_words(texts, strip_accents=False)):
        for bare in split_words(word, stripping):
            forms[bare].append(word)
    return {bare: forms[bare] for bare in words if len(forms[bare]) > 1}


def describe_merged(merged: dict[str, list[str]]) -> str:
    """Describe the result of `merged_words` in one line; "" if it is empty."""
    if not merged:
        return ""
    shown = "; ".join(
        f"{word}: {', '.join(forms)}" for word, forms in list(merged.items())[:EXAMPLES]
    )
    more = f" and {len(merged) - EXAMPLES} more" if len(merged) > EXAMPLES else ""
    counted = (
        f"{sum(map(len, merged.values()))} different words into {len(merged)} of the vocabulary"
    )
    return f"stripping accents merges {counted} ({shown}{more}); --strip_accents 0 keeps them apart"


def word_embeddings(vocabulary: Vocabulary, dim: int) -> nn.Embedding:
    """Create random embeddings of a vocabulary, uniform in (-0.1, 0.1), with zeros for padding."""
    embedding = nn.Embedding(len(vocabulary), dim, padding_idx=PADDING_ID)
    with torch.no_grad():
        embedding.weight.uniform_(-LARGEST_AT_FIRST, LARGEST_AT_FIRST)
        embedding.weight[PADDING_ID] = 0
    return embedding


def read_glove(path: Path | str, vocabulary: Vocabulary, embedding: nn.Embedding) -> Vectors:
    """Copy vectors from a GloVe text file, one word and its values per line, to embeddings.

    A header line with the numbers of words and values, as in files of word2vec and fastText, is
    skipped. Tabs are read as spaces. Every other line must have as many values as an embedding;
    values are checked only for words of the vocabulary. Raises InputError, with the line, if a line
    does not fit.
    """
    wanted = {word.encode(): vocabulary.ids[word] for word in vocabulary.words}
    dim = embedding.embedding_dim
    vectors: dict[int, np.ndarray] = {}
    composed: dict[int, np.ndarray] = {}
    other_case: set[int] = set()
    accented: set[int] = set()
    for number, word, line in _lines_of(path, dim):
        if word in wanted:
            vectors[wanted[word]] = _values_of(line, dim, path, number)
            continue
        # NFC: one form of each letter
        text = unicodedata.normalize("NFC", word.decode(errors="replace"))
        if (same := text.encode()) in wanted:
            composed[wanted[same]] = _values_of(line, dim, path, number)
        elif (lower := text.lower().encode()) in wanted:
            other_case.add(wanted[lower])
        elif not word.isascii() and (bare := _without_accents(text.lower()).encode()) in wanted:
            accented.add(wanted[bare])
    vectors = composed | vectors
    with torch.no_grad():
        for place, values in vectors.items():
            embedding.weight[place] = torch.from_numpy(values)
    names = list(vocabulary.ids)
    others = (
        [names[place] for place in sorted(places - vectors.keys())]
        for places in (other_case, accented)
    )
    return Vectors(len(vectors), *others)


def _lines_of(path: Path | str, dim: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the number, word and bytes of each line that holds a vector of `dim` values."""
    if why := why_unreadable(path):
        raise InputError(
            f"--glove {path}: cannot be read ({why}), expected a GloVe text file such as "
            "glove.6B.300d.txt; name another"
        )
    number = 0
    try:
        # binary mode: only a line feed ends a line, and words are not decoded
        with open(path, "rb") as file:
            for number, line in enumerate(
                tqdm(file, "GloVe", leave=False, disable=distributed.progress_disabled(), delay=2),
                1,
            ):
                line = line.rstrip().replace(b"\t", b" ")
                if number <= LOOKED_AT:
                    line = _checked_text(line, path, number)
                if number == 1 and _is_head(line, dim, path):
                    number = 0
                    continue
                yield number, _word_of(line, dim, path, number), line
    except OSError as error:
        raise InputError(
            f"--glove {path}: cannot be read ({error.strerror}), expected a GloVe text file such "
            "as glove.6B.300d.txt"
        ) from error
    if not number:
        raise InputError(
            f"--glove {path}: the file is empty, expected GloVe vectors; download it again"
        )


def describe_vectors(vectors: Vectors, vocabulary: Vocabulary) -> str:
    """Warn, with the likely reason, if few words of the vocabulary have a vector; otherwise ""."""
    if vectors.num_found >= FEW * len(vocabulary.words):
        return ""
    reason = "are the vectors and the captions in the same language?"
    if len(vectors.other_case) > vectors.num_found:
        shown = ", ".join(vectors.other_case[:EXAMPLES])
        reason = (
            f"{len(vectors.other_case)} words have vectors only in capitals ({shown}), but "
            "captions are read in lower case: give vectors of lower-case words"
        )
    elif vocabulary.strip_accents and len(vectors.accented) > vectors.num_found:
        shown = ", ".join(vectors.accented[:EXAMPLES])
        reason = (
            f"{len(vectors.accented)} words have vectors only with accents ({shown}), but captions "
            "are read without accents: --strip_accents 0 keeps them"
        )
    share = vectors.num_found / len(vocabulary.words)
    return (
        f"warning: only {share:.1%} of the words of the "
        f"vocabulary have a vector in this file: {reason}"
    )


def _without_accents(text: str) -> str:
    letters = unicodedata.normalize("NFD", text)
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Mn")


def _checked_text(line: bytes, path: Path | str, number: int) -> bytes:
    """Remove a byte order mark from a line. Raises InputError if the line is not text."""
    text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    if b"\0" in text or "\ufffd" in text.decode(errors="replace"):
        raise InputError(
            f"--glove {path}: line {number} is not text (it begins with the bytes "
            f"{text[:4].hex(' ')}), expected a word and its values in UTF-8: unpack the file, or "
            "save the vectors in text format"
        )
    return text


def _is_head(line: bytes, dim: int, path: Path | str) -> bool:
    """Whether the first line is a header, with the numbers of words and of values.

    Raises InputError if it is, and the number of values is not `dim`.
    """
    fields = line.split()
    if dim == 1 or len(fields) != 2 or not all(map(bytes.isdigit, fields)):
        return False
    if int(fields[1]) != dim:
        raise InputError(
            f"--glove {path}: the header says that vectors have {int(fields[1])} values, "
            f"expected the {dim} of --word_dim; give --word_dim {int(fields[1])}, or another file"
        )
    return True


def _word_of(line: bytes, dim: int, path: Path | str, number: int) -> bytes:
    """The word of a line, before its `dim` values. A few words of GloVe contain spaces."""
    found = line.count(b" ")
    word = line[: line.find(b" ")] if found == dim else line.rsplit(b" ", dim)[0]
    if found < dim or found > dim and _is_number(word.rsplit(b" ", 1)[1]):
        raise InputError(
            f"--glove {path}: line {number} holds {found} values, expected a word and the {dim} "
            "values of --word_dim; give the --word_dim of this file, or download it again"
        )
    return word


def _values_of(line: bytes, dim: int, path: Path | str, number: int) -> np.ndarray:
    """The values of a line whose word contains no space, (dim,) float32.

    Raises InputError if a value is not a finite number.
    """
    try:
        with np.errstate(over="ignore"):
            values = np.array(line.split(b" ")[1:], dtype=np.float32)
    except ValueError:
        values = np.array(np.nan)
    if not np.isfinite(values).all():
        raise InputError(
            f"--glove {path}: line {number} holds a value that is not a finite number, "
            f"expected {dim} finite numbers; download the file again"
        )
    return values


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
