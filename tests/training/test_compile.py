"""What `--compile 1` compiles: graphs of the encoders, where they break, and whether batches of
other lengths compile again. The compiler's backend is "eager", which shows the graphs without the
minutes that code for a device takes."""

import numpy as np
import pytest
import torch
from published import make_model, small_bert
from test_optim import REGION_DIM, VOCABULARY, batch_of
from torch._dynamo.utils import counters

from lib.model.casting import compile_for_training

import torch._dynamo  # isort: skip

pytestmark = pytest.mark.long

EPOCH = 24  # batches
LEAST_PIECES = 4


def batch(seed, pairs=8):
    """Captions of other lengths with each seed, and images with one to five regions."""
    generator = np.random.default_rng(seed)
    lengths = np.sort(np.round(4 + generator.gamma(4.5, 2.09, size=pairs)).astype(int))[::-1]
    found = batch_of(seed, lengths=tuple(map(int, lengths)))
    counts = torch.from_numpy(generator.integers(1, 6, size=pairs))
    return found._replace(
        region_lengths=counts, regions=found.regions[:, : int(counts.max())].clone()
    )


def compiled(**options):
    """A compiled model, and the list of its graphs so far."""
    torch._dynamo.reset()
    counters.clear()
    reader = small_bert(
        vocab_size=VOCABULARY, hidden_size=24, num_attention_heads=3, intermediate_size=32
    )
    model = make_model(reader, REGION_DIM, embed_size=16, nhead=4, **options).train()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_for_training(model, backend=backend)
    return model, graphs


def run_epoch(model, number):
    """Counts of graph breaks by their first line, after an epoch."""
    for index in range(EPOCH):
        model(batch(1000 * number + index), least_pieces=LEAST_PIECES)
    return {reason.split("\n")[0]: count for reason, count in counters["graph_break"].items()}


# the bias of attention is cut where L is no multiple of 8: two graphs; dropped regions add more
@pytest.mark.parametrize(("most", "options"), [(2, {}), (8, dict(mask_padding=1))])
def test_no_graph_breaks_and_the_second_epoch_adds_none(most, options):
    model, graphs = compiled(**options)
    assert run_epoch(model, 0) == {}
    after_one = len(graphs)
    assert after_one <= most
    run_epoch(model, 1)
    assert len(graphs) == after_one
