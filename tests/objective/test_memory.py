"""Memory of the objective and of cross-attention scores up to batch 4096, counted on the meta
device: matrices (B, B), and blocks of bounded size; never (B, B, E) or (B, B, R, L)."""

import sys

import pytest
import torch

from benchmarks import common, memory
from benchmarks.memory import Sizes
from lib.model.matches import BLOCKS
from lib.model.pair_scores import SCORE_BLOCKS
from lib.objective import relation

BLOCK = 4 * BLOCKS["cuda"].matches  # bytes
# of the start of a part's name: how many blocks, times all fragments, and (B, B) matrices may live
# at once; and how many matrices one tensor may have. Attention of the graph: 16 heads x (2B, 2B)
BOUNDS = {
    "fusion": (4, 1, 127, 64),
    "standalone": (4, 1, 106, 16),
    "intra-modal": (1, 1, 83, 64),
    "relations": (4, 1, 64, 10),
    "trip": (0, 0.2, 12.3, 2),
    "vse": (0, 0.2, 6.8, 1),
    "infonce": (0, 0.2, 5.8, 1),
    "infonce+vse": (0, 0.2, 12.3, 1),
    "scan": (12, 4, 4, 1),
    "naaf": (18, 4, 4, 1),
    "chan": (4, 4, 4, 1),
}
# few regions and pieces keep the number of blocks small; (B, B, R, L) would still be 2 GB
SIZES = [Sizes(128), Sizes(512), Sizes(4096, regions=6, pieces=5)]


def excess(part, sizes):
    """(Peak, largest tensor) of a part, each as a share of what is allowed."""
    blocks, fragments, matrices, largest = BOUNDS[part.split()[0].rstrip(",")]
    one = 4 * sizes.batch * common.EMBED_SIZE * max(sizes.regions, sizes.pieces)
    both = 4 * sizes.batch * common.EMBED_SIZE * (sizes.regions + sizes.pieces)
    matrix = 4 * sizes.batch**2
    found = memory.memory(part, sizes)
    return (
        found.peak / (blocks * BLOCK + fragments * both + matrices * matrix),
        # the captions of a block are padded to one length
        found.largest / max(1.25 * BLOCK * (blocks > 0), one, largest * matrix),
    )


@pytest.mark.parametrize("sizes", SIZES, ids=[f"B={sizes.batch}" for sizes in SIZES])
@pytest.mark.parametrize("part", memory.PARTS)
def test_memory_is_bounded_by_blocks_and_matrices(part, sizes):
    peak, largest = excess(part, sizes)
    assert peak <= 1.01 and largest <= 1.01


@pytest.mark.long
@pytest.mark.parametrize("part", memory.PARTS)
def test_memory_is_bounded_at_batch_4096(part):
    peak, largest = excess(part, Sizes(4096))
    assert peak <= 1.01 and largest <= 1.01


@pytest.mark.parametrize("part", ["relations", "scan t2i", "chan"])
def test_a_batch_that_is_not_cut_into_blocks_exceeds_the_bounds(part, monkeypatch):
    for limits in (BLOCKS, SCORE_BLOCKS):
        unlimited = limits["cuda"]._replace(captions=2**20, matches=2**60)
        monkeypatch.setitem(limits, "cuda", unlimited)
    peak, largest = excess(part, SIZES[-1])
    assert peak > 1.2 and largest > 2


def test_distances_of_all_differences_exceed_the_bounds(monkeypatch):
    def by_differences(left, right, distance="l2"):
        return (left.unsqueeze(-2) - right.unsqueeze(-3)).norm(dim=-1).neg().exp()

    monkeypatch.setattr(relation, "distance_relevance", by_differences)
    peak, largest = excess("intra-modal, trip", Sizes(4096, regions=6, pieces=5))
    assert peak > 2 and largest > 2


@pytest.mark.parametrize("batch_size, megabytes", [(128, 220), (256, 438), (512, 373)])
def test_the_count_is_what_a_gpu_measured(batch_size, megabytes):
    """benchmarks/results/2026-11-26-h100.md, with slightly shorter captions."""
    found = memory.memory("relations", Sizes(batch_size))
    assert found.peak / 1e6 == pytest.approx(megabytes, rel=0.05)


def test_what_lives_at_once_is_counted():
    outside = torch.empty(1000, device="meta")
    with memory.LiveMemory() as found:
        first = outside + 1  # 4000 bytes
        second = first.view(10, 100).double()  # 8000
        second.mul_(2)
        del first
        third = second[0] + 1  # 800
        del second
        third.exp()  # 800
    assert found.peak == 12000 and found.largest == 8000


def test_what_backward_keeps_is_counted():
    weight = torch.empty(1000, device="meta", requires_grad=True)
    with memory.LiveMemory() as found:
        product = weight.exp()  # 4000, kept
        product = product.exp()  # 4000, kept
        product.sum().backward()  # 4 and 4 (the gradient 1), 4000 + 4000
    assert 16000 <= found.peak <= 16100


def test_the_benchmark_prints_its_table(monkeypatch, capsys):
    command = ["memory", "--parts", "chan", "vse", "--batch_size", "16", "32"]
    monkeypatch.setattr(sys, "argv", command)
    memory.main()
    printed = capsys.readouterr().out
    assert printed.startswith("| part |") and printed.count("| chan | ") == 2
