"""NAAF's scores and thresholds against measured numbers, single pairs and a loop over captions."""

import math
import statistics
from functools import partial

import pytest
import torch
import twins
from helpers import close, normal
from test_cross_attention import (
    CASES,
    CROSS,
    LIMITS,
    REGIONS,
    TOLERANCES,
    WORDS,
    all_close,
    case_of,
    check_golden,
    scores_and_gradients,
    unit,
    with_padding,
)

from lib.model import naaf, pair_scores
from lib.model.naaf import NAAF, Thresholds, WordSums
from lib.model.pair_scores import clean_fragments

TESTS = dict(naaf_test_0_=0.0, naaf_test_30_=0.3, naaf_test_55_=0.55, naaf_test_80_=0.8)
WALKS = ["naaf_train_small_", "naaf_train_walk_"]


def module_at(threshold, is_training=True, update="batch", dtype=torch.float64):
    """A NAAF with both thresholds at one value."""
    module = NAAF(update).to(dtype).train(is_training)
    value = torch.as_tensor(threshold, dtype=torch.float64)
    module.set_thresholds(Thresholds(value, value))
    return module


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", TESTS)
def test_the_score_of_tests_is_the_published_one(name, dtype):
    check_golden(module_at(TESTS[name], is_training=False, dtype=dtype), name, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", WALKS)
def test_the_published_walk_of_the_threshold(name, dtype):
    module = module_at(CROSS[name + "t_before"], update="published", dtype=dtype)
    check_golden(module, name, dtype, inputs=name)
    close(module.threshold, CROSS[name + "t_after"], absolute=TOLERANCES[dtype][0])
    close(module.safe_threshold, CROSS[name + "tsafe_after"], absolute=TOLERANCES[dtype][0])


def test_every_golden_array_is_compared():
    parts = "scores", "grad_regions", "grad_words"
    of_walk = "regions", "words", "lengths", "coef", "t_before", "t_after", "tsafe_after"
    used = {name + part for name in [*TESTS, *WALKS] for part in parts}
    used |= {name + part for name in WALKS for part in of_walk}
    assert {name for name in CROSS if name.startswith("naaf_")} == used


@pytest.mark.parametrize("is_test, threshold, f, h, expected", [
    (False, 0.0, [0.863026, 0.645497, 0.904529], [0, 0, 0], 1.397316),
    (False, 0.65, [0.863025, 0, 0.904529], [0, -0.004503, 0], 1.180649),
    (True, 0.65, [0.863025, 0, 0.904529], [0, 0, 0], 1.182150),
    (True, 0.8, [0, 0, 0.903696], [0, -0.154503, 0], 0.842697),
])  # fmt: skip
def test_one_pair_by_hand(is_test, threshold, f, h, expected):
    regions, words = unit(REGIONS), unit(WORDS)
    terms = twins.naaf_terms(regions, words, threshold, is_test)
    all_close(terms, [f, [0.230046, 0.645495, 0.903356], h], absolute=6e-7)
    module = module_at(threshold, is_training=not is_test)
    found = module(regions[None], words[None], None, torch.tensor([3]))
    close(found, [[expected]], absolute=6e-7)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES)
def test_the_score_is_that_of_each_pair(case, threshold, is_training):
    inputs = unit_case(case)
    module = module_at(threshold, is_training)
    own_images = torch.zeros(len(inputs[1]), dtype=torch.long)
    twin = partial(twins.all_pairs, twins.naaf, threshold=threshold, is_test=not is_training)
    all_close(
        scores_and_gradients(lambda *given: module(*given, own_images), *inputs),
        scores_and_gradients(twin, *inputs),
    )


def unit_case(name):
    regions, words, *lengths = case_of(name)
    normalise = partial(torch.nn.functional.normalize, dim=2)
    return normalise(regions), normalise(words), *lengths


def at(threshold, is_training):
    """A score of four tensors at a fixed threshold; caption i belongs to image 0."""

    def score(regions, words, *lengths):
        own_images = torch.zeros(len(words), dtype=torch.long)
        module = module_at(threshold, is_training, dtype=words.dtype)
        return module(regions, words, *lengths, own_images)

    return score


SCORES = {"training": at(0.3, True), "tests": at(0.3, False)}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", SCORES)
def test_blocks_of_any_size_agree(monkeypatch, name, limits):
    inputs = unit_case("not sorted")
    expected = scores_and_gradients(SCORES[name], *inputs)
    monkeypatch.setitem(pair_scores.SCORE_BLOCKS, "cpu", limits)
    all_close(scores_and_gradients(SCORES[name], *inputs), expected)


@pytest.mark.parametrize("junk", [7.0, torch.nan])
@pytest.mark.parametrize("limits", LIMITS[:2])
@pytest.mark.parametrize("name", SCORES)
def test_junk_in_the_padding_changes_nothing(monkeypatch, name, limits, junk):
    monkeypatch.setitem(pair_scores.SCORE_BLOCKS, "cpu", limits)
    regions, words, counts, lengths = unit_case("not sorted")
    before = scores_and_gradients(SCORES[name], regions, words, counts, lengths)
    regions, words = with_padding(regions, counts, junk), with_padding(words, lengths, junk)
    after = scores_and_gradients(SCORES[name], regions, words, counts, lengths)
    assert all(torch.equal(one, other) for one, other in zip(before, after))


@pytest.mark.parametrize("name", SCORES)
def test_the_order_of_regions_changes_nothing(name):
    regions, words, *lengths = unit_case("no padding")
    order = torch.tensor([3, 0, 4, 1, 2])
    before = scores_and_gradients(SCORES[name], regions, words, *lengths)
    after = scores_and_gradients(SCORES[name], regions[:, order], words, *lengths)
    all_close(after, [before[0], before[1][:, order], before[2]])


@pytest.mark.parametrize("name", SCORES)
def test_the_gradient_is_that_of_finite_differences(name):
    regions, words, *lengths = case_of("sorted", dim=3)
    regions.requires_grad_(), words.requires_grad_()
    if name == "tests":  # similarities of words decide, and have no gradient
        words = words.detach()
    assert torch.autograd.gradcheck(
        lambda *fragments: SCORES[name](*fragments, *lengths), (regions, words)
    )


@pytest.mark.parametrize("name", SCORES)
def test_zero_vectors_give_finite_values_and_gradients(name):
    regions, words, *lengths = unit_case("sorted")
    regions, words = regions.float(), words.float()
    regions[0], words[1], words[0, 0] = 0, 0, 0
    found = scores_and_gradients(SCORES[name], regions, words, *lengths)
    assert all(part.isfinite().all() for part in found)


def naive_thresholds(matched, mismatched, before):
    """As `best_thresholds`, from lists of numbers."""
    mu, mu_other = statistics.mean(matched), statistics.mean(mismatched)
    sd, sd_other = statistics.stdev(matched), statistics.stdev(mismatched)
    a = sd**2 - sd_other**2
    b = 2 * (mu * sd_other**2 - mu_other * sd**2)
    c = (mu_other * sd) ** 2 - (mu * sd_other) ** 2
    c += 2 * (sd * sd_other) ** 2 * math.log(sd_other / (2 * sd) + 1e-8)
    new = before
    if b * b - 4 * a * c > 0:
        new = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a + 1e-10), mu - 3 * sd
    new = [value if 0 <= value <= 1 else 0 for value in new]
    return [0.7 * value + 0.3 * old for value, old in zip(new, before)]


def sums_of(matched, mismatched):
    matched, mismatched = (
        torch.tensor(part, dtype=torch.float64) for part in (matched, mismatched)
    )
    return WordSums(
        torch.tensor(float(len(matched))).double(), matched.sum(), matched.square().sum(),
        mismatched.sum(), mismatched.square().sum(),
    )  # fmt: skip


@pytest.mark.parametrize("centres, spreads", [
    ((0.7, 0.3), (0.05, 0.1)), ((0.7, 0.3), (0.1, 0.05)), ((0.4, 0.3), (0.1, 0.1)),
    ((0.5, 0.2), (0.2, 0.02)), ((0.2, 0.5), (0.05, 0.06)), ((1.5, 1.2), (0.1, 0.05)),
])  # fmt: skip
def test_the_thresholds_are_those_of_two_normal_densities(centres, spreads):
    samples = [
        (centre + spread * normal(300, seed=seed, dtype=torch.float64)).tolist()
        for seed, (centre, spread) in enumerate(zip(centres, spreads))
    ]
    before = Thresholds(*torch.tensor([0.4, 0.2], dtype=torch.float64))
    found = naaf.updated_thresholds(sums_of(*samples), before)
    expected = naive_thresholds(*samples, [0.4, 0.2])
    close(torch.stack(found), expected, absolute=1e-9)


def test_at_the_threshold_the_weighted_densities_are_equal():
    matched, mismatched = 0.7 + 0.1 * normal(500, seed=0), 0.3 + 0.08 * normal(500, seed=1)
    zero = torch.zeros((), dtype=torch.float64)
    found = float(
        naaf.best_thresholds(sums_of(matched.tolist(), mismatched.tolist()), Thresholds(zero, zero))
        .threshold
    ) / 0.7  # fmt: skip
    densities = [
        torch.distributions.Normal(sample.mean(), sample.std()).log_prob(torch.tensor(found)).exp()
        for sample in (matched, mismatched)
    ]
    assert 0.3 < found < 0.7
    close(densities[0], 2 * densities[1], absolute=1e-4)


@pytest.mark.parametrize("count, is_enough", [(200, False), (201, True)])
def test_few_words_leave_no_threshold(count, is_enough):
    samples = [(0.7 + 0.1 * normal(count)).tolist(), (0.3 + 0.1 * normal(count, seed=1)).tolist()]
    before = Thresholds(torch.tensor(0.4), torch.tensor(0.2))
    found = naaf.updated_thresholds(sums_of(*samples), before)
    assert [bool(value) for value in found] == [is_enough, is_enough]


@pytest.mark.parametrize("sample", [[], [0.5], [0.5] * 300, [0.0] * 300])
def test_samples_without_spread_give_finite_thresholds(sample):
    before = Thresholds(torch.tensor(0.4), torch.tensor(0.2))
    found = naaf.updated_thresholds(sums_of(sample, sample), before)
    assert all(0 <= value <= 1 for value in found)


def walk_inputs():
    name = "naaf_train_walk_"
    return [CROSS[name + part].double() for part in ("regions", "words")], CROSS[name + "lengths"]


def test_word_sums_are_the_loop_over_captions():
    (regions, words), lengths = walk_inputs()
    counts = torch.tensor([6, 4] * 18)
    fragments = clean_fragments(regions, words, counts, lengths)
    scores = naaf.training_scores(fragments, torch.zeros(36))
    matched, mismatched = [], []
    for caption, length in enumerate(lengths.tolist()):
        column = scores[:, caption].tolist()
        if column.index(max(column)) == caption:
            lowest = column.index(min(column))
            for sample, image in ((matched, caption), (mismatched, lowest)):
                match = words[caption, :length] @ regions[image, : counts[image]].T
                sample += match.max(1).values.tolist()
    assert matched
    found = naaf.word_sums(scores, fragments, torch.arange(36))
    all_close(found, sums_of(matched, mismatched))


def test_a_batch_is_scored_with_the_threshold_before_it_and_updates_it_once():
    (regions, words), lengths = walk_inputs()
    module = module_at(0.5)
    first = module(regions, words, None, lengths)
    fragments = clean_fragments(regions, words, None, lengths)
    all_close([first], [naaf.training_scores(fragments, torch.full((36,), 0.5).double())])
    expected = naaf.updated_thresholds(
        naaf.word_sums(first, fragments, torch.arange(36)),
        Thresholds(*torch.full((2,), 0.5).double()),
    )
    all_close(module.thresholds(), expected)
    second = module(regions, words, None, lengths)
    all_close([second], [naaf.training_scores(fragments, expected.threshold.expand(36))])
    assert not torch.equal(first, second)
    module.eval()(regions, words, None, lengths)
    kept = module.thresholds()
    assert kept.threshold == module.state_dict()["threshold"] and len(module.state_dict()) == 2


def test_backward_after_an_update_uses_the_threshold_of_forward():
    (regions, words), lengths = walk_inputs()
    found = scores_and_gradients(module_at(0.5), regions, words, None, lengths)
    fixed = scores_and_gradients(at_fixed(0.5), regions, words, None, lengths)
    all_close(found, fixed)


def at_fixed(threshold):
    def score(regions, words, *lengths):
        fragments = clean_fragments(regions, words, *lengths)
        return naaf.training_scores(fragments, torch.full((len(words),), threshold).to(words))

    return score


def test_shards_of_captions_add_up_to_the_batch():
    (regions, words), lengths = walk_inputs()
    whole = clean_fragments(regions, words, None, lengths)
    scores = naaf.training_scores(whole, torch.zeros(36))
    expected = naaf.word_sums(scores, whole, torch.arange(36))
    parts = []
    for rank in range(2):
        own = torch.arange(rank, 36, 2)
        shard = clean_fragments(regions, words[own], None, lengths[own])
        parts.append(naaf.word_sums(scores[:, own], shard, own))
    all_close([sum(values) for values in zip(*parts)], expected)
