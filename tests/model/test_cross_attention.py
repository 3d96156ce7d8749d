"""SCAN's and CHAN's scores against measured numbers, and against single pairs with attended
vectors."""

import dataclasses
import itertools
from functools import partial

import numpy as np
import pytest
import torch
import twins
from helpers import close, normal
from published import GOLDEN
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.model import cross_attention, pair_scores
from lib.model.cross_attention import (
    AGGREGATIONS,
    DIRECTIONS,
    MATCH_NORMS,
    chan_scores,
    scan_scores,
)
from lib.model.matches import BlockLimits
from lib.model.options import ModelOptions

with np.load(GOLDEN / "cross" / "cross.npz") as file:
    CROSS = {name: torch.from_numpy(file[name]) for name in file}
SCAN = [
    name.removesuffix("scores")
    for name in CROSS
    if name.startswith("scan_") and name.endswith("_scores")
]
AGGREGATION_NAMES = dict(Mean="mean", LogSumExp="lse", Max="max", Sum="sum")
TEMPERATURES = dict(t2i=(9, 6), i2t=(4, 5), i2t20=(4, 20))
TOLERANCES = {torch.float64: (5e-8, 1e-7), torch.float32: (1e-5, 1e-4)}
LIMITS = [
    BlockLimits(128, 0, 2**23, 2**18), BlockLimits(1024, 4096, 2**24), BlockLimits(1, 0, 1, 1),
    BlockLimits(2, 3, 100), BlockLimits(3, 64, 70, 60),
]  # fmt: skip
CASES = {  # lengths of captions, pieces they are padded to, true regions, regions
    "no padding": ([4, 4, 4], 4, [5, 5, 5], 5),
    "sorted": ([7, 5, 5, 2], 7, [3, 4, 4], 4),
    "not sorted": ([2, 6, 1, 6, 3], 8, [1, 5, 2], 6),
    "one word and one region": ([1, 1], 1, [1, 1], 1),
    "one pair": ([3], 5, [2], 4),
}


def by_name(name):
    """The options of scan_scores by the name of its golden arrays."""
    _, direction, aggregation, *norm = name.rstrip("_").split("_")
    attention_temperature, lse_temperature = TEMPERATURES[direction]
    return dict(
        cross_attention=direction[:3], aggregation=AGGREGATION_NAMES[aggregation],
        attention_temperature=attention_temperature, lse_temperature=lse_temperature,
        match_norm="_".join(norm),
    )  # fmt: skip


def check_golden(function, name, dtype, inputs=""):
    """Scores and gradients of `function(regions, words, lengths)` against the arrays of a name."""
    on_scores, on_gradients = TOLERANCES[dtype]
    regions, words = (
        CROSS[inputs + part].to(dtype, copy=True).requires_grad_() for part in ("regions", "words")
    )
    scores = function(regions, words, None, CROSS[inputs + "lengths"])
    (scores * CROSS[inputs + "coef"]).sum().backward()
    assert scores.dtype == dtype
    close(scores.double(), CROSS[name + "scores"], absolute=on_scores)
    for part, found in (("regions", regions.grad), ("words", words.grad)):
        expected = CROSS[f"{name}grad_{part}"]
        close(found.double(), expected, absolute=on_gradients * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", SCAN)
def test_scan_is_the_published_one(name, dtype):
    check_golden(partial(scan_scores, **by_name(name)), name, dtype)


def test_every_golden_array_is_compared():
    used = {f"{name}{part}" for name in SCAN for part in ("scores", "grad_regions", "grad_words")}
    inputs = {"regions", "words", "lengths", "coef"}
    left = {name for name in CROSS if not name.startswith("naaf_")} - used - inputs
    assert len(SCAN) == 20 and not left


REGIONS = [[3, 1, 0], [0, 2, 1], [-1, 1, 2], [1, 0, -2]]
WORDS = [[1, 2, 0], [2, -1, 1], [0, 1, 3]]


def unit(rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("options, expected", [
    (("t2i", 9, 6, "clipped_l2norm", "mean"), 0.677552),
    (("t2i", 9, 6, "clipped_l2norm", "lse"), 0.947824),
    (("i2t", 4, 5, "clipped_l2norm", "mean"), 0.628673),
    (("i2t", 4, 5, "clipped_l2norm", "lse"), 1.094067),
    (("i2t", 4, 20, "clipped_l2norm", "lse"), 0.947044),
    (("t2i", 9, 6, "l2norm", "mean"), 0.831036),
    (("t2i", 9, 6, "clipped", "mean"), 0.824880),
    (("t2i", 9, 6, "no_norm", "mean"), 0.825122),
    (("t2i", 9, 6, "softmax", "mean"), 0.734783),
    (("t2i", 9, 6, "l1norm", "mean"), 0.828767),
    (("t2i", 9, 6, "clipped_l1norm", "mean"), 0.666373),
])  # fmt: skip
def test_one_pair_by_hand(options, expected):
    names = (
        "cross_attention", "attention_temperature", "lse_temperature", "match_norm", "aggregation",
    )  # fmt: skip
    regions, words = unit(REGIONS)[None], unit(WORDS)[None]
    found = scan_scores(regions, words, None, torch.tensor([3]), **dict(zip(names, options)))
    close(found, [[expected]], absolute=6e-7)


def case_of(name, dim=6):
    """regions, words and lengths of one of CASES; padding holds zeros."""
    lengths, longest, counts, most = CASES[name]
    lengths, counts = torch.tensor(lengths), torch.tensor(counts)
    words = normal(len(lengths), longest, dim, seed=1, dtype=torch.float64)
    regions = normal(len(counts), most, dim, seed=2, dtype=torch.float64)
    return with_padding(regions, counts, 0), with_padding(words, lengths, 0), counts, lengths


def with_padding(fragments, lengths, value):
    is_real = torch.arange(fragments.size(1)) < lengths[:, None]
    return fragments.masked_fill(~is_real[..., None], value)


def scores_and_gradients(function, regions, words, *lengths):
    """[scores, gradient of regions, of words] of a weighted sum of the scores."""
    regions, words = regions.clone().requires_grad_(), words.clone().requires_grad_()
    scores = function(regions, words, *lengths)
    weights = normal(*scores.shape, seed=3, dtype=torch.float64)
    return [
        scores.detach(),
        *torch.autograd.grad((scores * weights.to(scores)).sum(), (regions, words)),
    ]


def all_close(found, expected, absolute=1e-9):
    for one, other in zip(found, expected, strict=True):
        close(one, other, absolute=absolute)


def options_of(direction, norm, aggregation):
    return dict(
        cross_attention=direction, match_norm=norm, aggregation=aggregation,
        attention_temperature=5.0, lse_temperature=3.0,
    )  # fmt: skip


KINDS = [
    *itertools.product(DIRECTIONS, MATCH_NORMS, ["mean"]),
    *itertools.product(DIRECTIONS, ["clipped_l2norm"], ["lse", "max", "sum"]),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gram_form_is_the_attended_form_of_each_pair(case, kind):
    inputs, options = case_of(case), options_of(*kind)
    expected = partial(twins.all_pairs, twins.scan, **options)
    all_close(
        scores_and_gradients(partial(scan_scores, **options), *inputs),
        scores_and_gradients(expected, *inputs),
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_chan_is_that_of_each_pair(case, aggregation):
    inputs, options = case_of(case), dict(aggregation=aggregation, lse_temperature=10.0)
    all_close(
        scores_and_gradients(partial(chan_scores, **options), *inputs),
        scores_and_gradients(partial(twins.all_pairs, twins.chan, **options), *inputs),
    )


SCORES = {
    "t2i mean": partial(scan_scores, cross_attention="t2i"),
    "t2i lse, softmax": partial(
        scan_scores, cross_attention="t2i", aggregation="lse", match_norm="softmax"
    ),
    "i2t lse": partial(scan_scores, cross_attention="i2t", aggregation="lse"),
    "i2t max, softmax": partial(
        scan_scores, cross_attention="i2t", aggregation="max", match_norm="softmax"
    ),
    "chan": chan_scores,
    "chan lse": partial(chan_scores, aggregation="lse"),
}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", SCORES)
def test_blocks_of_any_size_agree(monkeypatch, name, limits):
    inputs = case_of("not sorted")
    expected = scores_and_gradients(SCORES[name], *inputs)
    monkeypatch.setitem(pair_scores.SCORE_BLOCKS, "cpu", limits)
    all_close(scores_and_gradients(SCORES[name], *inputs), expected)


@pytest.mark.parametrize("junk", [7.0, torch.nan, torch.inf])
@pytest.mark.parametrize("limits", LIMITS[:2])
@pytest.mark.parametrize("name", SCORES)
def test_junk_in_the_padding_changes_nothing(monkeypatch, name, limits, junk):
    monkeypatch.setitem(pair_scores.SCORE_BLOCKS, "cpu", limits)
    regions, words, counts, lengths = case_of("not sorted")
    before = scores_and_gradients(SCORES[name], regions, words, counts, lengths)
    regions, words = with_padding(regions, counts, junk), with_padding(words, lengths, junk)
    after = scores_and_gradients(SCORES[name], regions, words, counts, lengths)
    assert all(torch.equal(one, other) for one, other in zip(before, after))


@pytest.mark.parametrize("name", SCORES)
def test_the_order_of_regions_changes_nothing(name):
    regions, words, counts, lengths = case_of("no padding")
    order = torch.tensor([3, 0, 4, 1, 2])
    before = scores_and_gradients(SCORES[name], regions, words, counts, lengths)
    after = scores_and_gradients(SCORES[name], regions[:, order], words, counts, lengths)
    all_close(after, [before[0], before[1][:, order], before[2]])


@pytest.mark.parametrize("name", SCORES)
def test_the_order_of_captions_changes_theirs_alone(name):
    regions, words, counts, lengths = case_of("not sorted")
    order = torch.tensor([4, 2, 0, 1, 3])
    before = SCORES[name](regions, words, counts, lengths)
    all_close([SCORES[name](regions, words[order], counts, lengths[order])], [before[:, order]])


@pytest.mark.parametrize("name", SCORES)
def test_the_gradient_is_that_of_finite_differences(name):
    regions, words, *lengths = case_of("sorted", dim=3)
    regions.requires_grad_(), words.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *fragments: SCORES[name](*fragments, *lengths), (regions, words)
    )


@pytest.mark.parametrize("name", SCORES)
def test_a_second_backward_finds_the_same(name):
    regions, words, *lengths = case_of("sorted")
    regions.requires_grad_(), words.requires_grad_()
    total = SCORES[name](regions, words, *lengths).sum()
    first = torch.autograd.grad(total, (regions, words), retain_graph=True)
    second = torch.autograd.grad(total, (regions, words))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


@pytest.mark.parametrize("which", ["words", "regions", "both"])
@pytest.mark.parametrize("kind", [*itertools.product(DIRECTIONS, MATCH_NORMS, ["mean", "lse"])])
def test_zero_vectors_give_finite_values_and_gradients(which, kind):
    regions, words, *lengths = (
        part.float() if part.is_floating_point() else part for part in case_of("sorted")
    )
    if which != "regions":
        words = words.clone().index_fill_(1, torch.tensor([0, 1]), 0)
    if which != "words":
        regions = regions.clone().index_fill_(1, torch.tensor([0, 1, 2, 3]), 0)
    function = partial(scan_scores, **options_of(*kind))
    assert all(
        part.isfinite().all() for part in scores_and_gradients(function, regions, words, *lengths)
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_contexts_that_cancel_give_no_cosine_beyond_one(direction):
    vector = unit([[1.0, 2.0, 3.0]]).float()
    opposite = torch.cat([vector, -vector])[None]
    scores, *gradients = scores_and_gradients(
        partial(scan_scores, cross_attention=direction, attention_temperature=0.0),
        opposite, opposite, None, torch.tensor([2]),
    )  # fmt: skip
    assert scores.abs() <= 1 and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", SCORES)
def test_under_autocast_scores_are_float32(name):
    regions, words, *lengths = case_of("sorted")
    expected = scores_and_gradients(SCORES[name], regions.float(), words.float(), *lengths)

    def under_autocast(*inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return SCORES[name](*inputs)

    found = scores_and_gradients(under_autocast, regions.float(), words.float(), *lengths)
    assert found[0].dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(found, expected))
    in_half = SCORES[name](regions.bfloat16(), words.bfloat16(), *lengths)
    assert in_half.dtype == torch.float32
    rounded = SCORES[name](regions.bfloat16().float(), words.bfloat16().float(), *lengths)
    assert torch.equal(in_half, rounded)


def test_no_attended_vector_is_formed():
    """The largest tensor of either direction is the matches of a block, not R or L times E."""
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.extend(
                part.numel() for part in tree_leaves(found) if isinstance(part, torch.Tensor)
            )
            return found

    regions, words = normal(6, 5, 64, seed=0), normal(6, 4, 64, seed=1)
    for direction in DIRECTIONS:
        with Sizes():
            scores_and_gradients(
                partial(scan_scores, cross_attention=direction), regions, words, None,
                torch.tensor([4, 4, 4, 4, 4, 4]),
            )  # fmt: skip
    assert max(sizes) == max(regions.numel(), 6 * 6 * 5 * 4)


def test_the_command_line_knows_every_norm_and_aggregation():
    choices = {field.name: field.metadata["values"] for field in dataclasses.fields(ModelOptions)}
    assert {*choices["match_norm"]} == {*cross_attention.MATCH_NORMS}
    assert {*choices["aggregation"]} == {*cross_attention.AGGREGATIONS}
