"""Properties that hold for any captions, lengths and batches."""

import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import SEEDS, property_of
from published import small_tokeniser

from lib.data.batches import TrainingPairs
from lib.data.captions import (
    AUGMENT_PROBABILITY,
    MASK_SHARE,
    REPLACE_SHARE,
    SpecialIds,
    augment,
    split_words,
    tokenise,
)
from lib.data.dataset import RetrievalDataset, pad_pieces
from lib.data.layout import read_lines
from lib.data.sampling import EpochSampler

TOKENISER = small_tokeniser()
START, END, MASK = TOKENISER.cls_token_id, TOKENISER.sep_token_id, TOKENISER.mask_token_id


TEXT = st.text(
    st.one_of(
        st.sampled_from(" \t\u00a0\u3000.,!?'\"-[]#@()狗猫éÅİß\u200b\ufeff\x07👍🏽\u0301"),
        st.characters(max_codepoint=0x24FF, exclude_characters="\0\n"),
        st.sampled_from("abcdogrunningtheaz0127"),
    ),
    max_size=40,
)


def is_word_end(letter):
    return (
        letter.isspace()
        or unicodedata.category(letter).startswith("P")
        or "\u4e00" <= letter <= "\u9fff"
    )


@property_of()
@given(TEXT)
def test_words_joined_again_split_into_themselves(text):
    words = split_words(text, TOKENISER)
    assert split_words(" ".join(words), TOKENISER) == words
    for word in words:
        assert word and word == word.lower() and (len(word) == 1 or not any(map(is_word_end, word)))


@property_of()
@given(st.lists(TEXT, max_size=5), st.one_of(st.none(), st.integers(2, 12)))
def test_ids_are_those_of_the_words_between_the_two_ends(texts, longest):
    found = tokenise(texts, TOKENISER, longest)
    assert len(found) == len(texts) == len(found.lengths)
    for number, text in enumerate(texts):
        ids = found.ids(number).tolist()
        assert ids[0] == START and ids[-1] == END and len(ids) == found.lengths[number]
        assert not {0, START, END, MASK} & set(ids[1:-1])
        pieces = [
            TOKENISER(word, add_special_tokens=False)["input_ids"]
            for word in split_words(text, TOKENISER)
        ]
        whole = sum(pieces, [])
        assert ids[1:-1] == whole[: len(ids) - 2]
        assert len(ids) <= (longest or 10**9) and (len(ids) == len(whole) + 2 or longest)
        assert len(ids) - 2 in np.cumsum([0, *map(len, pieces)])  # no word is cut in two
    assert found.num_shortened == sum(
        len(found.ids(i)) < len(tokenise([text], TOKENISER).ids(0)) for i, text in enumerate(texts)
    )


@property_of()
@given(
    st.lists(TEXT.filter(lambda text: "\r" not in text), max_size=6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_lines_are_read_as_they_were_written(tmp_path_factory, texts, has_mark, has_crlf, is_ended):
    path = tmp_path_factory.getbasetemp() / "property_caps.txt"
    end = "\r\n" if has_crlf else "\n"
    # a last blank line exists only by its line end
    is_ended |= not texts or texts[-1] in ("", "\ufeff")
    content = end.join(texts) + (end if is_ended and texts else "")
    path.write_bytes((b"\xef\xbb\xbf" if has_mark else b"") + content.encode())
    expected = [text.strip() for text in texts]
    if texts and not has_mark:
        expected[0] = texts[0].removeprefix("\ufeff").strip()
    assert read_lines(path) == expected


def naive_augment(pieces, word_lengths, special, generator):
    """A word at a time, from the same draws."""
    alter = [generator.random() for _ in word_lengths]
    how = [generator.random() for _ in word_lengths]
    entries = generator.integers(1, special.vocabulary_size, size=len(pieces)).tolist()
    altered, first = [], 0
    for chance, fate, length in zip(alter, how, word_lengths):
        word = range(first, first + length)
        first += length
        if chance >= AUGMENT_PROBABILITY:
            altered += [pieces[index] for index in word]
        elif fate < MASK_SHARE:
            altered += [special.mask] * length
        elif fate < MASK_SHARE + REPLACE_SHARE:
            altered += [entries[index] for index in word]
    return altered


@property_of(max_examples=150)
@given(st.lists(st.integers(1, 4), max_size=30), SEEDS, st.sampled_from([2, 7, 211, 2**15]))
def test_altered_words_are_the_loop_over_words(word_lengths, seed, vocabulary_size):
    special = SpecialIds(
        start=10**6, end=10**6 + 1, mask=10**6 + 2, vocabulary_size=vocabulary_size
    )
    pieces = np.arange(2 * 10**6, 2 * 10**6 + sum(word_lengths))
    lengths = np.array(word_lengths, dtype=np.int64)
    found = augment(pieces, lengths, special, np.random.default_rng(seed))
    expected = naive_augment(pieces.tolist(), word_lengths, special, np.random.default_rng(seed))
    assert found.tolist() == expected


@property_of()
@given(st.lists(st.lists(st.integers(1, 30000), min_size=1, max_size=9), min_size=1, max_size=7))
def test_padded_pieces_are_the_sequences_and_zeros(sequences):
    pieces, lengths = pad_pieces([np.array(sequence) for sequence in sequences])
    assert pieces.dtype == lengths.dtype == torch.int64 and pieces.shape == (
        len(sequences),
        max(map(len, sequences)),
    )
    for row, length, sequence in zip(pieces.tolist(), lengths.tolist(), sequences):
        assert row[:length] == sequence and not any(row[length:]) and length == len(sequence)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("splits")


def split_of(folder, seed, num_images, num_regions, repeats):
    """A split whose regions tell where they come from: image + region / 100."""
    values = np.arange(num_images)[:, None] + np.arange(num_regions) / 128 + 1
    array = (
        np.stack([values, values * 0 + seed % 97], axis=2)
        .astype(np.float32)
        .repeat(repeats, axis=0)
    )
    words = np.random.default_rng(seed).integers(0, 6, 5 * num_images)
    place = folder / f"{len(list(folder.iterdir()))}"
    place.mkdir()
    np.save(place / "train_ims.npy", array)
    (place / "train_caps.txt").write_text("".join("dog " * int(count) + "\n" for count in words))
    return RetrievalDataset(place, "train", TOKENISER)


@property_of(max_examples=30)
@given(st.data())
def test_a_batch_is_what_its_pairs_are_one_at_a_time(folder, data):
    num_images, num_regions = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    seed, epoch, repeats = (
        data.draw(SEEDS),
        data.draw(st.integers(0, 3)),
        data.draw(st.sampled_from([1, 5])),
    )
    split = split_of(folder, seed, num_images, num_regions, repeats)
    which = np.array(
        data.draw(st.permutations(range(5 * num_images)))[: data.draw(st.integers(1, 8))]
    )
    drops, alters = data.draw(st.booleans()), data.draw(st.booleans())
    pairs = TrainingPairs(split, seed, drop_regions=drops, augment_words=alters)
    batch = pairs[epoch, which]

    alone = [pairs[epoch, np.array([caption])] for caption in which]
    alone.sort(key=lambda pair: -int(pair.piece_lengths[0]))  # stable, as the batch is sorted
    assert batch.pieces.shape[1] == max(int(pair.piece_lengths[0]) for pair in alone)
    assert batch.regions.shape == (
        len(which),
        max(int(pair.region_lengths[0]) for pair in alone),
        2,
    )
    for row, pair in enumerate(alone):
        pieces, regions = int(pair.piece_lengths[0]), int(pair.region_lengths[0])
        assert (batch.piece_lengths[row], batch.region_lengths[row]) == (pieces, regions)
        assert (
            torch.equal(batch.pieces[row, :pieces], pair.pieces[0])
            and not batch.pieces[row, pieces:].any()
        )
        assert (
            torch.equal(batch.regions[row, :regions], pair.regions[0])
            and not batch.regions[row, regions:].any()
        )
        assert batch.image_ids[row] == pair.image_ids[0]

        image = int(pair.image_ids[0])
        # of this image, and in order
        places = ((pair.regions[0, :, 0] - image - 1) * 128).round().long().tolist()
        assert places == sorted(set(places)) and 0 <= places[0] and places[-1] < num_regions
        assert drops or places == list(range(num_regions))
    if not alters:
        order = sorted(which.tolist(), key=lambda caption: -int(split.captions.lengths[caption]))
        assert [split.captions.ids(caption).tolist() for caption in order] == [
            row[:length] for row, length in zip(batch.pieces.tolist(), batch.piece_lengths.tolist())
        ]


@property_of()
@given(st.integers(0, 40), st.integers(1, 12), SEEDS, st.integers(0, 5))
def test_an_epoch_takes_every_pair_at_most_once(num_pairs, batch_size, seed, epoch):
    sampler = EpochSampler(num_pairs, batch_size, seed)
    sampler.epoch = epoch
    found = list(sampler)
    taken = [int(caption) for _, captions in found for caption in captions]
    assert len(found) == len(sampler) == num_pairs // batch_size and {at for at, _ in found} <= {
        epoch
    }
    assert len(set(taken)) == len(taken) == len(found) * batch_size and set(taken) <= set(
        range(num_pairs)
    )
