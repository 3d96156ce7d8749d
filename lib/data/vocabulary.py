"""The words that a BiGRU reads: a vocabulary from the training captions,
and embeddings from scratch or from GloVe.

To `lib.data.captions` a `Vocabulary` is a tokeniser like BERT's, whose words are pieces: the same
basic tokeniser cuts them, the same rule alters them.
"""

import unicodedata
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFC, BertNormalizer, Sequence
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import nn
from tqdm import tqdm

from ..system import distributed
from ..system.errors import InputError
from ..system.files import why_unreadable
from .captions import PADDING_ID, split_words

# ids 0, 1, ...; no word of a caption holds a bracket
SPECIAL = ("<pad>", "<unk>", "<start>", "<end>", "<mask>")
LARGEST_AT_FIRST = 0.1  # of the embeddings of words
EXAMPLES = 5
LOOKED_AT = 2  # lines of a file of vectors, whether they are text: the head and the first vector
FEW = 0.5  # of the words with a vector: the vectors are then of other words than these


class Vectors(NamedTuple):
    """What a file of vectors held: of how many words; words there in other case,
    or with accents, alone."""

    num_found: int
    other_case: list
    accented: list


class Vocabulary:
    """Words with an id each, after those of SPECIAL; every other word is <unk>.

    words: a list of strings, as `split_words` gives them; strip_accents: whether "schön" is read as
    "schon"; note: as of a tokeniser of `lib.model.bert`. Has what `lib.data.captions` asks of a
    tokeniser. Raises ValueError or TypeError where these are no words.
    """

    def __init__(self, words, strip_accents=True, note=""):
        self.words, self.strip_accents, self.note = list(words), strip_accents, note
        self.ids = {word: number for number, word in enumerate((*SPECIAL, *self.words))}
        if len(self.ids) < len(SPECIAL) + len(self.words):
            raise ValueError("a word occurs twice in the vocabulary")
        self.backend_tokenizer = Tokenizer(WordLevel(self.ids, unk_token="<unk>"))
        self.backend_tokenizer.normalizer = (
            BertNormalizer(lowercase=True)  # which strips accents
            if strip_accents
            else Sequence([NFC(), BertNormalizer(lowercase=True, strip_accents=False)])
            # one form of each letter
        )
        self.backend_tokenizer.pre_tokenizer = BertPreTokenizer()
        self.cls_token_id, self.sep_token_id, self.mask_token_id = map(
            self.ids.get, ("<start>", "<end>", "<mask>")
        )

    def __len__(self):
        return len(self.ids)


def frequent_words(texts, min_count, strip_accents=True):
    """The words that occur at least `min_count` times in a list of captions,
    the most frequent first."""
    counts = _count_words(texts, strip_accents)
    return sorted(
        (word for word in counts if counts[word] >= min_count),
        key=lambda word: (-counts[word], word),
    )


def _count_words(texts, strip_accents):
    tokeniser, counts = Vocabulary([], strip_accents), Counter()
    for text in tqdm(
        texts, "vocabulary", leave=False, disable=distributed.progress_disabled(), delay=2
    ):
        counts.update(split_words(text, tokeniser))
    return counts


def merged_words(texts, words):
    """Which of these words stand for several that differ in accents: {word: the several, sorted}.

    texts: the captions that `frequent_words` found the words in, stripping accents.
    """
    if all(map(str.isascii, texts)):
        return {}
    forms, stripping = defaultdict(list), Vocabulary([])
    for word in sorted(_count_words(texts, strip_accents=False)):
        for bare in split_words(word, stripping):
            forms[bare].append(word)
    return {bare: forms[bare] for bare in words if len(forms[bare]) > 1}


def describe_merged(merged):
    """A line that names what `merged_words` found, or "" where that is nothing."""
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


def word_embeddings(vocabulary, dim):
    """An nn.Embedding of a vocabulary, uniform in (-0.1, 0.1), of zeros for padding."""
    embedding = nn.Embedding(len(vocabulary), dim, padding_idx=PADDING_ID)
    with torch.no_grad():
        embedding.weight.uniform_(-LARGEST_AT_FIRST, LARGEST_AT_FIRST)
        embedding.weight[PADDING_ID] = 0
    return embedding


def read_glove(path, vocabulary, embedding):
    """Fill the embeddings of the words that a GloVe text file holds: a word and its values a line.

    A head line, the numbers of words and of values, as word2vec and fastText write it, is passed
    over. Tabs are read as spaces. Every other line must have as many values as an embedding; those
    of words that are asked for are looked at. Returns `Vectors`. Raises InputError naming the line
    that does not fit.
    """
    wanted = {word.encode(): vocabulary.ids[word] for word in vocabulary.words}
    dim, vectors, composed, other_case, accented = embedding.embedding_dim, {}, {}, set(), set()
    for number, word, line in _lines_of(path, dim):
        if word in wanted:
            vectors[wanted[word]] = _values_of(line, dim, path, number)
            continue
        # one form of each letter
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


def _lines_of(path, dim):
    """Yield number, word and bytes of each line that holds a vector of `dim` values.
    Raises InputError."""
    if why := why_unreadable(path):
        raise InputError(
            f"--glove {path}: cannot be read ({why}), expected a GloVe text file such as "
            "glove.6B.300d.txt; name another"
        )
    number = 0
    try:
        # bytes: only a line feed ends a line, and words need no decoding
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


def describe_vectors(found, vocabulary):
    """A warning where a file held vectors of few words of the vocabulary,
    with the likely reason; "" otherwise."""
    if found.num_found >= FEW * len(vocabulary.words):
        return ""
    reason = "are they of the captions' language?"
    if len(found.other_case) > found.num_found:
        shown = ", ".join(found.other_case[:EXAMPLES])
        reason = (
            f"{len(found.other_case)} words are there in capitals alone ({shown}), but captions "
            "are read in lower case: give vectors of lower-case words"
        )
    elif vocabulary.strip_accents and len(found.accented) > found.num_found:
        shown = ", ".join(found.accented[:EXAMPLES])
        reason = (
            f"{len(found.accented)} words are there with accents alone ({shown}), but captions "
            "are read without them: --strip_accents 0 keeps them"
        )
    share = found.num_found / len(vocabulary.words)
    return (
        f"warning: only {share:.1%} of the words of the "
        f"vocabulary have a vector in this file: {reason}"
    )


def _without_accents(text):
    letters = unicodedata.normalize("NFD", text)
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Mn")


def _checked_text(line, path, number):
    """One of the first lines, without a byte order mark.
    Raises InputError where the file is no text."""
    text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    if b"\0" in text or "\ufffd" in text.decode(errors="replace"):
        raise InputError(
            f"--glove {path}: line {number} is no text (it begins with the bytes "
            f"{text[:4].hex(' ')}), expected a word and its values in UTF-8: unpack the file, or "
            "save the vectors in the text form"
        )
    return text


def _is_head(line, dim, path):
    """Whether the first line holds two numbers, of words and of values.
    Raises InputError where that is not `dim`."""
    fields = line.split()
    if dim == 1 or len(fields) != 2 or not all(map(bytes.isdigit, fields)):
        return False
    if int(fields[1]) != dim:
        raise InputError(
            f"--glove {path}: the head line says that vectors hold {int(fields[1])} values, "
            f"expected the {dim} of --word_dim; give --word_dim {int(fields[1])}, or another file"
        )
    return True


def _word_of(line, dim, path, number):
    """The word of a line with its `dim` values; a few words of GloVe hold spaces."""
    found = line.count(b" ")
    word = line[: line.find(b" ")] if found == dim else line.rsplit(b" ", dim)[0]
    if found < dim or found > dim and _is_number(word.rsplit(b" ", 1)[1]):
        raise InputError(
            f"--glove {path}: line {number} holds {found} values, expected a word and the {dim} "
            "values of --word_dim; give the --word_dim of this file, or download it again"
        )
    return word


def _values_of(line, dim, path, number):
    """The values of a line whose word holds no space, (dim,) float32.
    Raises InputError where one is no number."""
    try:
        with np.errstate(over="ignore"):
            values = np.array(line.split(b" ")[1:], dtype=np.float32)
    except ValueError:
        values = np.array(np.nan)
    if not np.isfinite(values).all():
        raise InputError(
            f"--glove {path}: line {number} holds a value that is no finite number, expected "
            f"{dim} of them; download the file again"
        )
    return values


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
