"""Properties that hold for any captions, lengths, shapes and values: examples are drawn,
the same ones in every run."""

import functools
import math
import unicodedata
from functools import partial

import helpers
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
from lib.evaluation import metrics
from lib.model.matches import BlockLimits
from lib.model.pooling import l2_normalise, length_groups, masked_mean, max_k_mean, real_mask
from lib.objective import relation
from lib.objective.relation import connection, distance_relevance, fragment_matches

EXAMPLES = 60
PROFILE = dict(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
property_of = functools.partial(settings, max_examples=EXAMPLES, **PROFILE)
TOKENISER = small_tokeniser()
START, END, MASK = TOKENISER.cls_token_id, TOKENISER.sep_token_id, TOKENISER.mask_token_id

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32 - 1)
TEXT = st.text(
    st.one_of(
        st.sampled_from(" \t\u00a0\u3000.,!?'\"-[]#@()狗猫éÅİß\u200b\ufeff\x07👍🏽\u0301"),
        st.characters(max_codepoint=0x24FF, exclude_characters="\0\n"),
        st.sampled_from("abcdogrunningtheaz0127"),
    ),
    max_size=40,
)


close = partial(helpers.close, absolute=1e-9)
normal = partial(helpers.normal, dtype=torch.float64)


# Captions


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


# Batches


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


# Pooling


@property_of()
@given(LENGTHS, st.integers(0, 3), st.integers(1, 5), SEEDS)
def test_pooling_is_the_loop_over_true_fragments_and_junk_changes_nothing(lengths, more, k, seed):
    fragments, counts = (
        normal(len(lengths), max(lengths) + more, 3, seed=seed),
        torch.tensor(lengths),
    )
    mean, largest = masked_mean(fragments, counts), max_k_mean(fragments, counts, k)
    for sample, length, found_mean, found_largest in zip(
        fragments.tolist(), lengths, mean, largest
    ):
        for feature in range(3):
            column = [row[feature] for row in sample[:length]]
            assert math.isclose(found_mean[feature], sum(column) / length, abs_tol=1e-12)
            top = sorted(column, reverse=True)[:k]
            assert math.isclose(found_largest[feature], sum(top) / len(top), abs_tol=1e-12)
    is_padding = ~real_mask(counts, fragments.size(1)).unsqueeze(2)
    for junk in (float("nan"), float("inf"), -1e300, 1e300):
        spoilt = fragments.masked_fill(is_padding, junk)
        assert torch.equal(masked_mean(spoilt, counts), mean) and torch.equal(
            max_k_mean(spoilt, counts, k), largest
        )


@property_of()
@given(LENGTHS, SEEDS)
def test_pooling_does_not_know_the_order_of_fragments_or_samples(lengths, seed):
    fragments, counts = normal(len(lengths), max(lengths), 2, seed=seed), torch.tensor(lengths)
    turned = fragments.clone()
    for row, length in enumerate(lengths):
        turned[row, :length] = fragments[row, :length].flip(0)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    for pool in (masked_mean, max_k_mean):
        close(pool(turned, counts), pool(fragments, counts), absolute=1e-12)
        close(pool(fragments[order], counts[order]), pool(fragments, counts)[order], absolute=1e-12)
    assert (max_k_mean(fragments, counts, 1) >= max_k_mean(fragments, counts, 2)).all()
    close(max_k_mean(fragments, counts, 99), masked_mean(fragments, counts), absolute=1e-12)


@property_of()
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(0, 200))
def test_groups_are_a_partition_in_order(lengths, most_padding):
    groups = length_groups(torch.tensor(lengths), most_padding)
    assert [index for run, _ in groups for index in range(run.start, run.stop)] == list(
        range(len(lengths))
    )
    for run, longest in groups:
        assert longest == max(lengths[run])
        assert (
            sum(longest - length for length in lengths[run]) <= most_padding
            or run.stop - run.start == 1
        )


@property_of()
@given(st.integers(1, 5), st.integers(1, 9), st.floats(1e-3, 1e3), SEEDS)
def test_normalised_vectors_have_length_one_whatever_their_scale(count, dim, scale, seed):
    vectors = normal(count, dim, seed=seed)
    normalised = l2_normalise(vectors * scale)
    lengths = (vectors * scale).norm(dim=1)
    close(normalised.norm(dim=1), lengths / (lengths + 1e-8), absolute=1e-12)
    close(normalised * (lengths + 1e-8)[:, None], vectors * scale, absolute=1e-9 * scale)


# Relations


def cosine(left, right):
    lengths = [
        max(math.sqrt(sum(value * value for value in vector)), 1e-12) for vector in (left, right)
    ]
    return sum(x * y for x, y in zip(left, right)) / lengths[0] / lengths[1]


def naive_pair(words, length, regions, topk):
    """Section 4 of docs/method.md for a pair, lists in: (mean, K largest) of caption to image,
    of image to caption."""
    read = words[: max(length, topk)]
    match = [[cosine(word, region) for region in regions] for word in read]
    match = [[value if value >= 0 else 0.1 * value for value in row] for row in match]
    columns = [[row[region] for row in match] for region in range(len(regions))]
    to_image, to_caption = [], []
    for row in match:
        shares = [
            row[region] / max(math.sqrt(sum(value * value for value in columns[region])), 1e-12)
            for region in range(len(regions))
        ]
        to_image.append(max(shares))
    for region in range(len(regions)):
        shares = [
            row[region] / max(math.sqrt(sum(value * value for value in row)), 1e-12)
            for row in match[:length]
        ]
        to_caption.append(max(shares))
    results = []
    for values, counted in ((to_image, length), (to_caption, len(regions))):
        largest = sorted(values, reverse=True)[:topk]
        results.append((sum(values[:counted]) / counted, largest + [0.0] * (topk - len(largest))))
    return results


@property_of(max_examples=40)
@given(LENGTHS, st.integers(0, 3), st.integers(1, 5), st.integers(1, 9), st.integers(0, 300), SEEDS)
def test_fragment_matches_are_the_loop_over_pairs(lengths, more, num_regions, topk, matches, seed):
    count, longest = len(lengths), max(lengths) + more
    words, regions = (
        normal(count, longest, 3, seed=seed),
        normal(count, num_regions, 3, seed=seed + 1),
    )
    counts = torch.tensor(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(relation.BLOCKS, "cpu", BlockLimits(matches % 5 + 1, matches % 20, matches))
        t2i, i2t = fragment_matches(words, counts, regions, topk)
        junk = words.masked_fill(~real_mask(counts.clamp(min=topk), longest).unsqueeze(2), 1e6)
        for found, expected in zip(fragment_matches(junk, counts, regions, topk), (t2i, i2t)):
            assert torch.equal(found.mean, expected.mean) and torch.equal(
                found.largest, expected.largest
            )
    for caption, length in enumerate(lengths):
        for image in range(count):
            to_image, to_caption = naive_pair(
                words[caption].tolist(), length, regions[image].tolist(), topk
            )
            close(t2i.mean[caption, image], to_image[0], absolute=3e-6)
            close(t2i.largest[caption, image], to_image[1], absolute=3e-6)
            close(i2t.mean[image, caption], to_caption[0], absolute=3e-6)
            close(i2t.largest[image, caption], to_caption[1], absolute=3e-6)


@property_of()
@given(st.integers(1, 12), st.floats(0, 1), SEEDS)
def test_a_connection_joins_the_closest_and_whoever_is_as_close(count, threshold, seed):
    closeness = normal(count, count, seed=seed).round(decimals=1)
    least = max(math.floor(count * threshold), 1)
    for row, joined in zip(closeness.tolist(), connection(closeness, threshold).tolist()):
        assert joined == [sum(other > value for other in row) < least for value in row]
        assert sum(joined) >= least


@property_of()
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9), SEEDS)
def test_relevance_falls_with_distance_and_is_one_for_the_same(left, right, dim, seed):
    x, y = normal(left, dim, seed=seed), normal(right, dim, seed=seed + 1)
    close(
        distance_relevance(x, y),
        [[math.exp(-math.dist(a, b)) for b in y.tolist()] for a in x.tolist()],
    )
    assert torch.equal(distance_relevance(x, x).diagonal(), torch.ones(left, dtype=torch.float64))
    assert torch.equal(distance_relevance(x, y), distance_relevance(y, x).T)


# Ranks


@property_of()
@given(st.integers(1, 9), st.integers(0, 2), st.integers(1, 6), SEEDS)
def test_ranks_are_places_in_a_sorted_list(num_images, decimals, tile_images, seed):
    matrix = (
        np.random.default_rng(seed).standard_normal((num_images, 5 * num_images)).astype(np.float32)
    )
    matrix = matrix.round(decimals)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "TILE_IMAGES", tile_images)
        found = metrics.ranks(matrix)
    order_of_captions = np.argsort(-matrix, axis=1, kind="stable")
    order_of_images = np.argsort(-matrix, axis=0, kind="stable")
    for image in range(num_images):
        places = [order_of_captions[image].tolist().index(5 * image + which) for which in range(5)]
        assert found.image_to_text[image] == min(places)
    for caption in range(5 * num_images):
        assert found.text_to_image[caption] == order_of_images[:, caption].tolist().index(
            caption // 5
        )


@property_of()
@given(st.integers(1, 8), SEEDS)
def test_ranks_know_the_order_of_similarities_alone(num_images, seed):
    draw = np.random.default_rng(seed)
    matrix = draw.standard_normal((num_images, 5 * num_images))
    found = metrics.ranks(matrix)
    for changed in (matrix * 3 + 7, np.exp(matrix), np.arctan(matrix)):
        for ours, theirs in zip(metrics.ranks(changed), found):
            assert np.array_equal(ours, theirs)
    order = draw.permutation(num_images)
    captions = (5 * order[:, None] + np.arange(5)).ravel()
    moved = metrics.ranks(matrix[order][:, captions])
    assert np.array_equal(moved.image_to_text, found.image_to_text[order])
    assert np.array_equal(moved.text_to_image, found.text_to_image[captions])
    table = metrics.scores(found)
    assert 0 <= table.image_to_text.r1 <= table.image_to_text.r5 <= table.image_to_text.r10 <= 100
    assert table.rsum <= 600 and (table.rsum == 600) == all(max(ranks) < 1 for ranks in found)
