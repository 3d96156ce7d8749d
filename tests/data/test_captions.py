"""Captions are tokenised like BERT does; statistics of word augmentation."""

import math
import os

import numpy as np
import pytest
from published import small_tokeniser

from lib.data import captions
from lib.data.captions import SpecialIds, augment, split_words, tokenise, tokenise_cached
from lib.system import cache

PLAIN = [
    "Two young guys with shaggy hair look at their hands while hanging out in the yard .",
    "A man's dog isn't running; it's sleeping.",
    "Three 3-year-olds play with 1,000 lego blocks at 7:30pm.",
    "An x-ray technician examines the c-spine",
    "café naïve résumé Zürich",
    "a dog 狗 running",
    "x" * 101 + " dog",
    "dogs",
    "",
]
# no mask is mistaken for a replaced piece
SPECIAL = SpecialIds(start=2, end=3, mask=500, vocabulary_size=7)


@pytest.fixture(scope="module")
def tokeniser():
    return small_tokeniser()


def altered(word_lengths, seed):
    """Augment words whose pieces are 1000, 1001, ..."""
    word_lengths = np.array(word_lengths, dtype=np.int64)
    return augment(
        1000 + np.arange(word_lengths.sum()), word_lengths, SPECIAL, np.random.default_rng(seed)
    )


def fates(num_words, pieces_a_word=2):
    """kept, masked, replaced or dropped: what becomes of each of so many words,
    altered one at a time."""
    generator, word = np.random.default_rng(0), 1000 + np.arange(pieces_a_word)
    found = []
    for _ in range(num_words):
        pieces = augment(word, np.array([pieces_a_word]), SPECIAL, generator)
        if not len(pieces):
            found.append("dropped")
        else:
            assert len(pieces) == pieces_a_word
            is_whole = np.array_equal(pieces, word)
            found.append(
                "kept" if is_whole else "masked" if (pieces == SPECIAL.mask).all() else "replaced"
            )
            if found[-1] == "replaced":
                assert ((1 <= pieces) & (pieces < SPECIAL.vocabulary_size)).all()
    return found


def check_share(count, of, share):
    assert abs(count - of * share) < 4 * math.sqrt(of * share * (1 - share))


@pytest.mark.parametrize("text, words", [
    ("A Dog RUNS", ["a", "dog", "runs"]),
    ("  tabs\tand   spaces \n", ["tabs", "and", "spaces"]),
    ("Café Ångström İstanbul", ["cafe", "angstrom", "istanbul"]),
    ("a man's half-pipe, he said: \"STOP!\"",
     ["a", "man", "'", "s", "half", "-", "pipe", ",", "he", "said", ":", '"', "stop", "!", '"']),
    ("ice-cream...", ["ice", "-", "cream", ".", ".", "."]),
    ("a狗dog狗", ["a", "狗", "dog", "狗"]),
    ("日本の猫", ["日", "本", "の", "猫"]),
    ("a\u200bb \ufeffc\x07d", ["ab", "cd"]),
    ("one\u00a0two", ["one", "two"]),
    ("[MASK] [CLS]", ["[", "mask", "]", "[", "cls", "]"]),
    ("1,000 at 7:30pm", ["1", ",", "000", "at", "7", ":", "30pm"]),
    ("", []),
    (" \t ", []),
])  # fmt: skip
def test_words_are_those_of_the_uncased_basic_tokeniser(tokeniser, text, words):
    assert split_words(text, tokeniser) == words


def test_ids_are_those_of_the_tokeniser_itself(tokeniser):
    found = tokenise(PLAIN, tokeniser)
    assert len(found) == len(PLAIN) and found.num_shortened == 0
    for number, text in enumerate(PLAIN):
        ids = found.ids(number)
        assert ids.tolist() == tokeniser(text)["input_ids"] and ids.dtype == np.int64
        assert found.lengths[number] == len(ids)


def test_pieces_lie_word_by_word_in_flat_arrays(tokeniser):
    found = tokenise(PLAIN, tokeniser)
    words = [word for text in PLAIN for word in split_words(text, tokeniser)]
    assert found.caption_starts[-1] == len(words) == len(found.word_starts) - 1
    for number, word in enumerate(words):
        pieces = found.pieces[found.word_starts[number] : found.word_starts[number + 1]]
        assert pieces.tolist() == tokeniser(word, add_special_tokens=False)["input_ids"]
    assert found.special == (
        tokeniser.cls_token_id,
        tokeniser.sep_token_id,
        tokeniser.mask_token_id,
        len(tokeniser),
    )


@pytest.mark.parametrize("name", ["[MASK]", "[CLS]", "[SEP]", "[PAD]"])
def test_the_name_of_a_special_id_in_a_caption_is_text(tokeniser, name):
    special = tokeniser.convert_tokens_to_ids(name)
    assert special in tokeniser(f"a dog {name} runs", add_special_tokens=False)["input_ids"]
    assert special not in tokenise([f"a dog {name} runs"], tokeniser).ids(0)[1:-1]


def test_a_blank_caption_is_its_two_ends(tokeniser):
    found = tokenise(["a dog", "", "  ", "dogs"], tokeniser)
    for blank in (1, 2):
        for generator in (None, np.random.default_rng(0)):
            assert found.ids(blank, generator).tolist() == [
                tokeniser.cls_token_id,
                tokeniser.sep_token_id,
            ]
    assert found.lengths[1:3].tolist() == [2, 2]
    assert found.ids(3).tolist() == tokeniser("dogs")["input_ids"]
    assert len(tokenise([], tokeniser)) == 0 and tokenise([""], tokeniser).lengths.tolist() == [2]


@pytest.mark.parametrize("longest", [2, 3, 4, 7, 12, 512])
def test_long_captions_lose_their_last_words_whole(tokeniser, longest):
    found, num_shortened = tokenise(PLAIN, tokeniser, longest), 0
    for number, text in enumerate(PLAIN):
        expected, is_full = [], False
        for word in split_words(text, tokeniser):
            pieces = tokeniser(word, add_special_tokens=False)["input_ids"]
            is_full = is_full or len(expected) + len(pieces) > longest - 2
            expected += [] if is_full else pieces
        num_shortened += is_full
        assert found.ids(number).tolist() == [
            tokeniser.cls_token_id,
            *expected,
            tokeniser.sep_token_id,
        ]
    assert found.num_shortened == num_shortened and found.lengths.max() <= longest
    assert (num_shortened > 0) is (longest < 512)


def test_captions_are_remembered_under_all_that_they_depend_on(tokeniser, monkeypatch, tmp_path):
    monkeypatch.setattr(captions, "MIN_CAPTIONS_TO_CACHE", len(PLAIN))
    cuts, cut = [], tokenise
    monkeypatch.setattr(captions, "tokenise", lambda *arguments: cuts.append(1) or cut(*arguments))
    cases = [(PLAIN, 7), (PLAIN, 8), (PLAIN[::-1], 7), ([*PLAIN[:-1], "dog"], 7)]
    for _ in range(2):
        for texts, longest in cases:
            found = tokenise_cached(texts, tokeniser, longest, tmp_path / "tokens")
            for ours, expected in zip(found, cut(texts, tokeniser, longest), strict=True):
                assert np.array_equal(ours, expected)
    assert len(cuts) == len(cases)
    for path in (tmp_path / "tokens").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    assert tokenise_cached(PLAIN, tokeniser, 7, tmp_path / "tokens").num_shortened > 0
    assert len(cuts) == len(cases) + 1


def remembered_with(**changes):
    def damage(path, key):
        with np.load(path) as file:
            found = {name: file[name] for name in (*captions.ARRAYS, "num_shortened")}
        found |= {name: change(found[name]) for name, change in changes.items()}
        with open(path, "wb") as file:  # with the right checksum: only the contents are wrong
            cache.write(file, key, **found)

    return damage


def changed(path, key):
    with np.load(path) as file:
        found = dict(file)
    found["pieces"][3] += 1
    np.savez(path, **found)


def as_pipe(path, key):
    path.unlink()
    os.mkfifo(path)


DAMAGED = {
    "another piece": changed,
    "empty": lambda path, key: path.write_bytes(b""),
    "a pipe": as_pipe,
    "without a checksum": lambda path, key: np.savez(path, key=key, pieces=np.zeros(3, np.int32)),
    "pickled": lambda path, key: np.savez(path, key=np.array([{}], dtype=object)),
    "pieces of another type": remembered_with(pieces=lambda found: found.astype(float)),
    "pieces beyond the vocabulary": remembered_with(pieces=lambda found: found + 10**6),
    "pieces below 0": remembered_with(pieces=lambda found: -found - 1),
    "pieces too few": remembered_with(pieces=lambda found: found[:-1]),
    "starts that fall": remembered_with(
        word_starts=lambda found: np.concatenate(([0, 5], found[2:]))
    ),
    "starts that begin later": remembered_with(
        word_starts=lambda found: np.concatenate(([1], found[1:]))
    ),
    "starts that end elsewhere": remembered_with(caption_starts=lambda found: found * 0),
    "no starts": remembered_with(word_starts=lambda found: found[:0]),
    "a caption too few": remembered_with(caption_starts=lambda found: np.delete(found, 1)),
    "a matrix": remembered_with(caption_starts=lambda found: found[:, None]),
    "too many cut": remembered_with(num_shortened=lambda found: found + 100),
    "cut below 0": remembered_with(num_shortened=lambda found: found - 100),
    "cut in fractions": remembered_with(num_shortened=lambda found: found + 0.5),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_remembered_captions_that_are_damaged_are_cut_again_and_replaced(
    tokeniser, monkeypatch, tmp_path, damage
):
    monkeypatch.setattr(captions, "MIN_CAPTIONS_TO_CACHE", len(PLAIN))
    cuts, cut = [], tokenise
    monkeypatch.setattr(captions, "tokenise", lambda *arguments: cuts.append(1) or cut(*arguments))
    expected = tokenise_cached(PLAIN, tokeniser, 7, tmp_path)
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        key = str(file["key"])
    damage(path, key)
    for number in (2, 2):  # the second time it is read again
        for ours, wanted in zip(
            tokenise_cached(PLAIN, tokeniser, 7, tmp_path), expected, strict=True
        ):
            assert np.array_equal(ours, wanted)
        assert len(cuts) == number


def test_remembered_captions_of_another_key_are_not_believed(tokeniser, monkeypatch, tmp_path):
    monkeypatch.setattr(captions, "MIN_CAPTIONS_TO_CACHE", len(PLAIN))
    tokenise_cached(PLAIN[::-1], tokeniser, 7, tmp_path)
    (other,) = tmp_path.iterdir()
    content = other.read_bytes()
    tokenise_cached(PLAIN, tokeniser, 7, tmp_path)
    (path,) = {*tmp_path.iterdir()} - {other}
    path.write_bytes(content)
    for ours, wanted in zip(
        tokenise_cached(PLAIN, tokeniser, 7, tmp_path), tokenise(PLAIN, tokeniser, 7), strict=True
    ):
        assert np.array_equal(ours, wanted)


def test_a_fifth_of_the_words_is_altered_in_three_ways():
    found = fates(20000)
    for fate, share in (("kept", 0.8), ("masked", 0.1), ("replaced", 0.02), ("dropped", 0.08)):
        check_share(found.count(fate), 20000, share)


def test_words_of_one_caption_are_altered_whole_and_the_others_keep_their_order():
    lengths = np.random.default_rng(1).integers(1, 4, 20000)
    starts = 1000 + np.concatenate(([0], np.cumsum(lengths)))
    pieces = altered(lengths, seed=2)
    kept = pieces[pieces >= 1000]
    assert (np.diff(kept) > 0).all()
    is_kept = np.isin(starts[:-1], kept)
    check_share(is_kept.sum(), 20000, 0.8)
    words = [range(start, start + length) for start, length in zip(starts, lengths)]
    assert kept.tolist() == [
        piece for word, whole in zip(words, is_kept) if whole for piece in word
    ]
    sizes = 2.0 * 20000  # pieces; words differ in length, hence the wider bound
    assert abs((pieces == SPECIAL.mask).sum() / sizes - 0.1) < 0.01
    assert abs((pieces < SPECIAL.vocabulary_size).sum() / sizes - 0.02) < 0.005


def test_neighbouring_words_are_altered_independently():
    is_kept = np.isin(1000 + np.arange(20000), altered([1] * 20000, seed=3))
    check_share((~is_kept[:-1] & ~is_kept[1:]).sum(), 19999, 0.2**2)


def test_replacements_are_uniform_over_the_vocabulary_without_padding():
    pieces = altered([3] * 60000, seed=4)
    drawn = np.bincount(pieces[pieces < SPECIAL.vocabulary_size], minlength=SPECIAL.vocabulary_size)
    assert drawn[0] == 0 and len(drawn) == SPECIAL.vocabulary_size
    # 5 degrees of freedom, 1 in 10000
    assert ((drawn[1:] - drawn.sum() / 6) ** 2 / (drawn.sum() / 6)).sum() < 25.8


def test_the_pieces_of_a_replaced_word_are_drawn_one_by_one():
    pieces = altered([2] * 20000, seed=5)
    pairs = pieces[pieces < SPECIAL.vocabulary_size].reshape(-1, 2)
    check_share((pairs[:, 0] == pairs[:, 1]).sum(), len(pairs), 1 / 6)


def test_the_same_generator_alters_alike_and_another_differently():
    assert np.array_equal(altered([1, 2, 3] * 50, seed=0), altered([1, 2, 3] * 50, seed=0))
    assert not np.array_equal(altered([1, 2, 3] * 50, seed=0), altered([1, 2, 3] * 50, seed=1))


def test_all_words_may_be_dropped(tokeniser):
    lengths = [len(altered([1], seed)) for seed in range(200)]
    assert set(lengths) == {0, 1}
    found = tokenise(["dogs"], tokeniser)
    lengths = {found.ids(0, np.random.default_rng(seed)).size for seed in range(200)}
    assert lengths == {2, found.lengths[0]}


def test_altering_leaves_the_captions_as_they_were(tokeniser):
    found = tokenise(PLAIN, tokeniser)
    before = [found.ids(number).tolist() for number in range(len(found))]
    changed = [found.ids(number, np.random.default_rng(7)).tolist() for number in range(len(found))]
    assert [found.ids(number).tolist() for number in range(len(found))] == before != changed
    assert all(
        ids[0] == tokeniser.cls_token_id and ids[-1] == tokeniser.sep_token_id for ids in changed
    )
