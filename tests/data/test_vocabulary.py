"""The words that a BiGRU reads: counting, ids, alteration, embeddings and GloVe files."""

import gzip
from collections import Counter

import numpy as np
import pytest
import torch
from published import small_tokeniser

from lib.data import captions
from lib.data.captions import split_words, tokenise, tokenise_cached
from lib.data.dataset import RetrievalDataset
from lib.data.vocabulary import (
    SPECIAL,
    Vocabulary,
    describe_merged,
    describe_vectors,
    frequent_words,
    merged_words,
    read_glove,
    word_embeddings,
)
from lib.system.errors import InputError

TEXTS = [
    "A dog runs.", "a Dog sleeps; the cat runs", "THE dog and a café", "the naïve cat's dog", "",
    "a dog 狗狗", "[MASK] <unk> dog",
]  # fmt: skip
PAD, UNK, START, END, MASK = range(5)


@pytest.fixture
def vocabulary():
    return Vocabulary(["dog", "cat", "runs", "."])


@pytest.mark.parametrize("least", [1, 2, 4, 6, 7])
def test_words_are_counted_over_all_captions(least):
    counts = Counter(word for text in TEXTS for word in split_words(text, small_tokeniser()))
    found = frequent_words(TEXTS, least)
    assert set(found) == {word for word, count in counts.items() if count >= least} and len(
        set(found)
    ) == len(found)
    assert [counts[word] for word in found] == sorted(
        (counts[word] for word in found), reverse=True
    )
    assert found == frequent_words(TEXTS[::-1], least)
    assert (not found) is (least == 7)


@pytest.mark.parametrize("text", [
    "A Dog RUNS", "a man's half-pipe, he said: \"STOP!\"", "Café Ångström İstanbul", "a狗dog狗",
    "[MASK] <pad> [CLS]", "a\u200bb \ufeffc\x07d one\u00a0two", "  \t", "",
])  # fmt: skip
def test_words_are_cut_as_bert_cuts_them_without_a_bert(vocabulary, text):
    assert split_words(text, vocabulary) == split_words(text, small_tokeniser())


def test_ids_stand_for_words_and_every_other_word_is_unknown(vocabulary):
    assert len(vocabulary) == 9 and SPECIAL[:4] == ("<pad>", "<unk>", "<start>", "<end>")
    found = tokenise(["The dog runs.", "cats", "", "<pad> <mask>"], vocabulary)
    assert found.ids(0).tolist() == [START, UNK, 5, 7, 8, END]
    assert found.ids(1).tolist() == [START, UNK, END]
    assert found.ids(2).tolist() == [START, END]
    # the name of a special id in a caption is text
    assert found.ids(3).tolist() == [START, *[UNK] * 6, END]
    assert found.special == (START, END, MASK, 9) and found.lengths.tolist() == [6, 3, 2, 8]
    assert found.num_shortened == 0


def test_words_are_altered_by_the_rule_of_pieces(vocabulary):
    found = tokenise([" ".join(["dog"] * 20000)], vocabulary)
    assert found.lengths.tolist() == [20002]
    ids = found.ids(0, np.random.default_rng(0))[1:-1]
    counts = np.bincount(ids, minlength=9)
    # 0.8 kept, 0.1 masked, 0.02 replaced
    expected = dict(zip(range(9), [0, 50, 50, 50, 2050, 16050, 50, 50, 50]))
    for word, count in expected.items():
        assert abs(counts[word] - count) <= 4 * count**0.5, word
    assert abs(len(ids) - 20000 * 0.92) < 160  # 0.08 dropped


def test_a_vocabulary_is_rebuilt_from_its_words(vocabulary):
    again = Vocabulary(list(vocabulary.words))
    assert vocabulary.words == ["dog", "cat", "runs", "."] and again.ids == vocabulary.ids
    assert tokenise(TEXTS, again).pieces.tolist() == tokenise(TEXTS, vocabulary).pieces.tolist()


@pytest.mark.parametrize("words", [["dog", "dog"], ["<unk>"], [1, 2], [None], None])
def test_what_is_no_list_of_words_is_no_vocabulary(words):
    with pytest.raises((TypeError, ValueError)):
        Vocabulary(words)


def test_captions_of_another_vocabulary_are_cut_anew(vocabulary, monkeypatch, tmp_path):
    monkeypatch.setattr(captions, "MIN_CAPTIONS_TO_CACHE", 1)
    for words in (vocabulary.words, vocabulary.words[::-1], vocabulary.words):
        found = tokenise_cached(TEXTS, Vocabulary(words), None, tmp_path)
        assert found.pieces.tolist() == tokenise(TEXTS, Vocabulary(words)).pieces.tolist()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_split_is_read_in_words(vocabulary, tmp_path):
    np.save(tmp_path / "test_ims.npy", np.ones((1, 3, 4), dtype=np.float32))
    (tmp_path / "test_caps.txt").write_text("a dog\ncat\ndog dog dog\n\nruns\n")
    split = RetrievalDataset(tmp_path, "test", vocabulary, None)
    ids, lengths = split.caption_block([2, 0, 3])
    assert ids.tolist() == [
        [START, 5, 5, 5, END],
        [START, UNK, 5, END, PAD],
        [START, END, PAD, PAD, PAD],
    ]
    assert lengths.tolist() == [5, 4, 2] and split.captions.num_shortened == 0


def test_embeddings_start_uniform_with_zeros_for_padding():
    torch.manual_seed(0)
    weight = word_embeddings(Vocabulary([f"w{number}" for number in range(995)]), 40).weight
    assert weight.shape == (1000, 40) and not weight[PAD].any() and weight.requires_grad
    drawn = weight[1:].detach()
    assert 0.0999 < drawn.abs().max() <= 0.1 and abs(drawn.mean()) < 0.002
    assert abs(drawn.std() - 0.1 / 3**0.5) < 0.001


GLOVE = [
    b"the 9 9 9",
    b"dog 0.5 -1e-2 3",
    b". . . 1 2 3",
    b"at dog@domain.com 1 2 3",
    b". 7 8 9",
    b"Cat 1 1 1",
]


def glove(folder, lines, end=b"\n"):
    path = folder / "glove.txt"
    path.write_bytes(b"".join(line + end for line in lines))
    return path


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \n"], ids=["LF", "CRLF", "a space at the end"])
def test_words_that_glove_holds_start_there_and_the_others_at_random(vocabulary, tmp_path, end):
    torch.manual_seed(0)
    embedding = word_embeddings(vocabulary, 3)
    before = embedding.weight.detach().clone()
    assert read_glove(glove(tmp_path, GLOVE, end), vocabulary, embedding) == (2, ["cat"], [])
    expected = before.clone()
    expected[5], expected[8] = torch.tensor([0.5, -0.01, 3]), torch.tensor([7.0, 8, 9])
    assert torch.equal(embedding.weight.detach(), expected) and embedding.weight.requires_grad


def test_a_word_of_other_letters_than_latin_ones_is_found(tmp_path):
    vocabulary = Vocabulary(["狗"])
    embedding = word_embeddings(vocabulary, 3)
    lines = ["été\u0085 1 2 3".encode(), "狗 4 5 6".encode()]
    assert read_glove(glove(tmp_path, lines), vocabulary, embedding).num_found == 1
    assert embedding.weight[5].tolist() == [4, 5, 6]


@pytest.mark.parametrize("line, more", [
    (b"runs 1 2", "holds 2 values, expected a word and the 3 values of --word_dim"),
    (b"other 1 2", "holds 2 values"), (b"runs 1 2 3 4", "holds 4 values"),
    (b"other 1 2 3 4", "holds 4 values"), (b"runs", "holds 0 values"), (b"", "holds 0 values"),
    (b"\x1f\x8b\x08\x00junk", "holds 0 values"),
    (b"runs 1 x 3", "holds a value that is not a finite number"),
    (b"runs 1 nan 3", "not a finite number"), (b"runs 1 2 inf", "not a finite number"),
    (b"runs 1 2 1e60", "not a finite number"), (b"runs 1  3", "not a finite number"),
])  # fmt: skip
def test_a_damaged_line_is_named(vocabulary, tmp_path, line, more):
    path = glove(tmp_path, [*GLOVE[:3], line, *GLOVE[3:]])
    embedding = word_embeddings(vocabulary, 3)
    before = embedding.weight.detach().clone()
    with pytest.raises(InputError) as error:
        read_glove(path, vocabulary, embedding)
    assert str(error.value).startswith(f"--glove {path}: line 4 ") and more in str(error.value)
    assert torch.equal(embedding.weight.detach(), before)


@pytest.mark.parametrize("dim, found", [(2, 3), (4, 3), (300, 3)])
def test_vectors_of_another_size_are_refused_at_once(vocabulary, tmp_path, dim, found):
    with pytest.raises(
        InputError, match=f"line 1 holds {found} values, expected a word and the {dim} values"
    ):
        read_glove(glove(tmp_path, GLOVE), vocabulary, word_embeddings(vocabulary, dim))


def test_a_glove_file_that_is_not_there_or_empty_is_refused(vocabulary, tmp_path):
    embedding = word_embeddings(vocabulary, 3)
    for path in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(InputError, match="cannot be read .*expected a GloVe text file"):
            read_glove(path, vocabulary, embedding)
    with pytest.raises(InputError, match="the file is empty"):
        read_glove(glove(tmp_path, []), vocabulary, embedding)


HEADED = "a the red ball dog schön schon sàn sân săn".split()


def vectors_of(folder, words, head=None):
    lines = [f"{word} {number} 0.5 -1".encode() for number, word in enumerate(words)]
    return glove(folder, ([] if head is None else [head]) + lines)


@pytest.mark.parametrize("head", [b"10 3", b"10 3 ", b"10\t3"])
def test_the_head_line_of_word2vec_and_fasttext_is_passed_over(tmp_path, head):
    vocabulary = Vocabulary(["dog", "schön", "10"], strip_accents=False)
    embedding = word_embeddings(vocabulary, 3)
    before = embedding.weight.detach().clone()
    assert read_glove(vectors_of(tmp_path, HEADED, head), vocabulary, embedding) == (2, [], [])
    assert embedding.weight[5:7].tolist() == [[4, 0.5, -1], [5, 0.5, -1]]
    assert torch.equal(embedding.weight[7], before[7])


def test_a_head_line_of_another_size_or_in_another_place_is_refused(vocabulary, tmp_path):
    for dim in (2, 300):
        with pytest.raises(
            InputError,
            match=f"header says that vectors have 3 values, expected the {dim} of .*3,",
        ):
            read_glove(
                vectors_of(tmp_path, HEADED, b"10 3"), vocabulary, word_embeddings(vocabulary, dim)
            )
    for lines, number in (
        ([*GLOVE, b"10 3"], 7),
        ([b"ten 3", *GLOVE], 1),
        ([b"10 3.0", *GLOVE], 1),
    ):
        with pytest.raises(InputError, match=f"line {number} holds 1 values"):
            read_glove(glove(tmp_path, lines), vocabulary, word_embeddings(vocabulary, 3))
    with pytest.raises(InputError, match="the file is empty"):
        read_glove(glove(tmp_path, [b"0 3"]), vocabulary, word_embeddings(vocabulary, 3))
    with_values = glove(tmp_path, [b"dog 3", b"10 4"])  # of one value each, no head
    vocabulary = Vocabulary(["dog", "10"])
    assert read_glove(with_values, vocabulary, word_embeddings(vocabulary, 1)).num_found == 2


@pytest.mark.parametrize("change", [
    lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b" ", b"\t"),
    lambda text: b"\xef\xbb\xbf4 3\n" + text,
    lambda text: text.replace("schön".encode(), "scho\u0308n".encode()),
], ids=["a byte order mark", "tabs", "a mark before a head", "decomposed letters"])  # fmt: skip
def test_other_ways_to_write_the_same_vectors(tmp_path, change):
    vocabulary = Vocabulary(["dog", "red", "schön"], strip_accents=False)
    embedding, path = word_embeddings(vocabulary, 3), tmp_path / "vectors.txt"
    path.write_bytes(change(b"dog 1 2 3\nred 4 5 6\n\xffred 9 9 9\n" + "schön 7 8 9\n".encode()))
    assert read_glove(path, vocabulary, embedding) == (3, [], [])
    assert embedding.weight[5:].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_an_exact_word_wins_over_another_form_of_its_letters(tmp_path):
    vocabulary = Vocabulary(["schön"], strip_accents=False)
    for words in (["schön", "scho\u0308n"], ["scho\u0308n", "schön"]):
        embedding = word_embeddings(vocabulary, 3)
        read_glove(vectors_of(tmp_path, words), vocabulary, embedding)
        assert embedding.weight[5, 0] == words.index("schön")


@pytest.mark.parametrize("content", [
    gzip.compress(b"dog 1 2 3\n"), "dog 1 2 3\n".encode("utf-16"),
    b"1 3\ndog " + b"\x9f\x3e\x12\xbf" * 3 + b"\n",
], ids=["gzip", "UTF-16", "binary word2vec"])  # fmt: skip
def test_vectors_that_are_no_text_are_refused_with_the_reason(vocabulary, tmp_path, content):
    path = tmp_path / "vectors.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not text .* save the vectors in text format"):
        read_glove(path, vocabulary, word_embeddings(vocabulary, 3))


def test_vectors_of_words_with_accents_are_warned_about(tmp_path):
    vocabulary = Vocabulary(["schon", "cafe", "dog"])
    found = read_glove(
        vectors_of(tmp_path, ["schön", "Café", "dog"]), vocabulary, word_embeddings(vocabulary, 3)
    )
    assert found == (1, [], ["schon", "cafe"])
    assert "2 words have vectors only with accents (schon, cafe)" in describe_vectors(
        found, vocabulary
    )
    assert describe_vectors(found, vocabulary).endswith("--strip_accents 0 keeps them")


def test_vectors_of_capitals_are_warned_about(tmp_path):
    vocabulary = Vocabulary(["dog", "été", "a", "zebra"])
    embedding = word_embeddings(vocabulary, 3)
    found = read_glove(
        vectors_of(tmp_path, ["DOG", "Dog", "ÉTÉ", "A", "the"]), vocabulary, embedding
    )
    assert found == (0, ["dog", "été", "a"], [])
    told = describe_vectors(found, vocabulary)
    assert told.startswith(
        "warning: only 0.0% of the words of the vocabulary have a vector in this file: 3 words "
    )
    assert "only in capitals (dog, été, a)" in told and "give vectors of lower-case words" in told
    found = read_glove(vectors_of(tmp_path, ["dog", "Dog", "a", "A"]), vocabulary, embedding)
    assert found == (2, [], []) and describe_vectors(found, vocabulary) == ""
    found = read_glove(vectors_of(tmp_path, ["Hund", "dog"]), vocabulary, embedding)
    assert "only 25.0%" in describe_vectors(found, vocabulary) and "language" in describe_vectors(
        found, vocabulary
    )


def test_accents_are_kept_when_asked():
    texts = ["Sàn nhà", "sân nhà", "Să\u0301n sa\u0300n", "schön, schon", "san"]
    assert frequent_words(texts, 1) == ["san", "nha", "schon", ","]
    found = frequent_words(texts, 1, strip_accents=False)
    assert set(found) == {"sàn", "nhà", "sân", "sắn", "schön", ",", "schon", "san"}
    assert found[:2] == ["nhà", "sàn"]  # twice each: composed and decomposed letters are one
    vocabulary = Vocabulary(found, strip_accents=False)
    ids = tokenise(["SÀN sa\u0300n san", "schon SCHÖN"], vocabulary)
    words = dict(enumerate((*SPECIAL, *found)))
    assert [words[piece] for piece in ids.pieces] == ["sàn", "sàn", "san", "schon", "schön"]
    assert tokenise(["sàn"], Vocabulary(["san"])).pieces.tolist() == [5]


def test_words_that_stripping_accents_merges_are_told():
    texts = ["Ein schöner Hund, schon schön", "sàn", "sân", "săn sa\u0300n", "café", "Hund hund"]
    words = frequent_words(texts, 1)
    found = merged_words(texts, words)
    assert found == {"schon": ["schon", "schön"], "san": sorted(["sàn", "sân", "săn"])}
    told = describe_merged(found)
    assert "merges 5 different words into 2 of the vocabulary" in told
    assert "schon: schon, schön" in told and "--strip_accents 0" in told
    # rare words are no part of the vocabulary
    assert merged_words(texts, ["hund", "schon"]).keys() == {"schon"}
    assert merged_words(["a dog", "a cat"], ["a"]) == {} and describe_merged({}) == ""
    many = describe_merged({str(number): ["a", "b"] for number in range(8)})
    assert "into 8 of" in many and "; 4: a, b and 3 more)" in many
