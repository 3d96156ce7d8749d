"""The yardsticks compute what ours compute, so that a ratio compares equal work;
and every benchmark runs."""

import sys

import numpy as np
import pytest
import torch
from published import small_bert

import benchmarks.cross_attention
import benchmarks.encoding
import benchmarks.loader
import benchmarks.ranking
import benchmarks.relations
import benchmarks.scale
import benchmarks.scaling
import benchmarks.step
from benchmarks import common, reference
from lib.evaluation import metrics
from lib.objective.relation import CrossModalRelation, fragment_matches


def test_the_random_batch_is_that_of_the_published_configuration():
    batch = common.random_batch(128)
    assert batch.regions.shape[0] == 128 and batch.regions.shape[2] == 2048
    assert batch.piece_lengths.float().mean().item() == pytest.approx(13.4, abs=0.7)
    assert 24 <= batch.pieces.size(1) <= 32
    assert batch.region_lengths.float().mean().item() == pytest.approx(28.8, abs=0.6)
    assert not batch.regions[0, batch.region_lengths[0] :].any() and (batch.pieces[-1] == 0).any()


def test_the_loop_over_captions_finds_the_same_relations():
    torch.manual_seed(0)
    lengths = torch.tensor([12, 9, 7, 4, 3])
    words, regions = torch.randn(5, 12, 8), torch.randn(5, 9, 8)
    module = CrossModalRelation(topk=6)
    t2i, i2t = fragment_matches(words, lengths, regions, topk=6)
    relation_i2t, relation_t2i = module(regions, words, lengths)
    ours = relation_t2i.relevance, t2i.mean, relation_i2t.relevance, i2t.mean
    theirs = reference.relations_by_caption(
        words, lengths, regions, module.mlp_t2i, module.mlp_i2t, topk=6
    )
    for left, right in zip(ours, theirs):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["scan t2i", "scan i2t", "naaf"])
def test_the_loop_over_captions_finds_the_same_cross_attention_scores(name):
    inputs = benchmarks.cross_attention.fragments(6, 6, "cpu")
    ours, loop = benchmarks.cross_attention.scores("cpu")[name]
    inputs[1].requires_grad_()  # for NAAF, training
    torch.testing.assert_close(ours(*inputs), loop(*inputs), atol=1e-6, rtol=1e-5)


def test_sorting_finds_the_same_ranks():
    similarities = np.random.default_rng(0).random((300, 1500), dtype=np.float32)
    for ours, theirs in zip(metrics.ranks(similarities), reference.ranks_by_sorting(similarities)):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("script, options, cells", [
    (benchmarks.step, "--batch_size 4 --precision fp32 bf16", ["| 4 | fp32 |", "| 4 | bf16 |"]),
    (benchmarks.relations, "--batch_size 3 4", ["| 3 |", "| 4 |"]),
    (benchmarks.cross_attention, "--batch_size 4 --images 5 --sample 3",
     ["| scan t2i | 4 |", "| chan | 4 |", "| naaf | 5 x 25 |"]),
    (benchmarks.ranking, "--images 20 300", ["| 20 x 100 | matrix |", "| 300 x 1500 | matrix |"]),
    (benchmarks.ranking, "--images 30 --embeddings 1", ["| 30 x 150 | embeddings |"]),
    (benchmarks.encoding, "--images 3", ["| 3, 15 |"]),
    (benchmarks.scale, "--images 30 --batch_size 20 --steps 2", ["| 30, 150 |"]),
    (benchmarks.scaling, "--batch_size 4", ["| 1 | 4 |", "| 0.0 MB | 0.0 MB |"]),
    (benchmarks.loader, "--images 20 --batch_size 5 --batches 4", ["| 5 |"]),
])  # fmt: skip
def test_every_benchmark_prints_its_row(script, options, cells, monkeypatch, capsys):
    monkeypatch.setattr(common, "bert_base", small_bert)
    monkeypatch.setattr(
        sys, "argv", [script.__name__, *options.split(), "--rounds", "1", "--device", "cpu"]
    )
    script.main()
    printed = capsys.readouterr().out
    assert (
        printed.startswith("| ")
        and all(cell in printed for cell in cells)
        and torch.__version__ in printed
    )
