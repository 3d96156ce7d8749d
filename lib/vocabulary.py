"""The words that a BiGRU reads: a vocabulary from the training captions, and embeddings from scratch or from GloVe.

To `lib.captions` a `Vocabulary` is a tokeniser like BERT's, whose words are pieces: the same basic tokeniser cuts
them, the same rule alters them.
"""

from collections import Counter

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import nn
from tqdm import tqdm

from lib import distributed
from lib.captions import PADDING_ID, split_words
from lib.errors import InputError
from lib.files import why_unreadable

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>", "<mask>")  # ids 0, 1, ...; no word of a caption holds a bracket
LARGEST_AT_FIRST = 0.1  # of the embeddings of words


class Vocabulary:
    """Words with an id each, after those of SPECIAL; every other word is <unk>.

    words: a list of strings, as `split_words` gives them. Has what `lib.captions` asks of a tokeniser. Raises
    ValueError or TypeError where these are no words.
    """

    def __init__(self, words):
        self.words = list(words)
        self.ids = {word: number for number, word in enumerate((*SPECIAL, *self.words))}
        if len(self.ids) < len(SPECIAL) + len(self.words):
            raise ValueError("a word occurs twice in the vocabulary")
        self.backend_tokenizer = Tokenizer(WordLevel(self.ids, unk_token="<unk>"))
        self.backend_tokenizer.normalizer = BertNormalizer(lowercase=True)
        self.backend_tokenizer.pre_tokenizer = BertPreTokenizer()
        self.cls_token_id, self.sep_token_id, self.mask_token_id = map(self.ids.get, ("<start>", "<end>", "<mask>"))

    def __len__(self):
        return len(self.ids)


def frequent_words(texts, min_count):
    """The words that occur at least `min_count` times in a list of captions, the most frequent first."""
    tokeniser, counts = Vocabulary([]), Counter()
    for text in tqdm(texts, "vocabulary", leave=False, disable=distributed.no_bar(), delay=2):
        counts.update(split_words(text, tokeniser))
    return sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))


def word_embeddings(vocabulary, dim):
    """An nn.Embedding of a vocabulary, uniform in (-0.1, 0.1), of zeros for padding."""
    embedding = nn.Embedding(len(vocabulary), dim, padding_idx=PADDING_ID)
    with torch.no_grad():
        embedding.weight.uniform_(-LARGEST_AT_FIRST, LARGEST_AT_FIRST)
        embedding.weight[PADDING_ID] = 0
    return embedding


def read_glove(path, vocabulary, embedding):
    """Fill the embeddings of the words that a GloVe text file holds: a word and its values a line.

    Every line must have as many values as an embedding; those of words that are asked for are looked at. Returns how
    many words were found. Raises InputError naming the line that does not fit.
    """
    if why := why_unreadable(path):
        raise InputError(
            f"--glove {path}: cannot be read ({why}), expected a GloVe text file such as glove.6B.300d.txt; name "
            "another"
        )
    wanted = {word.encode(): vocabulary.ids[word] for word in vocabulary.words}
    dim, vectors, number = embedding.embedding_dim, {}, 0
    try:
        with open(path, "rb") as file:  # bytes: only a line feed ends a line, and words need no decoding
            for number, line in enumerate(tqdm(file, "GloVe", leave=False, disable=distributed.no_bar(), delay=2), 1):
                vectors |= _glove_line(line.rstrip(), dim, wanted, path, number)
    except OSError as error:
        raise InputError(
            f"--glove {path}: cannot be read ({error.strerror}), expected a GloVe text file such as glove.6B.300d.txt"
        ) from error
    if not number:
        raise InputError(f"--glove {path}: the file is empty, expected GloVe vectors; download it again")
    with torch.no_grad():
        for place, values in vectors.items():
            embedding.weight[place] = torch.from_numpy(values)
    return len(vectors)


def _glove_line(line, dim, wanted, path, number):
    """{id: values} of one line, or {} for a word that nobody asks for; a few words of GloVe hold spaces."""
    found = line.count(b" ")
    word = line[: line.find(b" ")] if found == dim else line.rsplit(b" ", dim)[0]
    if found < dim or found > dim and _is_number(word.rsplit(b" ", 1)[1]):
        raise InputError(
            f"--glove {path}: line {number} holds {found} values, expected a word and the {dim} values of --word_dim; "
            "give the --word_dim of this file, or download it again"
        )
    if word not in wanted:
        return {}
    try:
        with np.errstate(over="ignore"):
            values = np.array(line.split(b" ")[1:], dtype=np.float32)
    except ValueError:
        values = np.array(np.nan)
    if not np.isfinite(values).all():
        raise InputError(
            f"--glove {path}: line {number} holds a value that is no finite number, expected {dim} of them; download "
            "the file again"
        )
    return {wanted[word]: values}


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
