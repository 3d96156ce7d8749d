"""The configurations of a training step that the tests on a GPU and those of its stand-in run:
name -> (options of the graph and the losses, options of the encoders)."""

import itertools

import torch
from published import make_model, make_objective, small_bert
from test_optim import batch_of
from torch import nn

from lib.model.options import MATCH_NORMS, POOLINGS
from lib.objective.options import LOSSES
from lib.training import optim

GRAPHS = [
    *itertools.product(("fusion", "standalone"), ("both", "intra", "inter")), ("none", "both")
]  # fmt: skip
POOLED = {pooling: ({}, dict(pooling=pooling)) for pooling in POOLINGS}
OTHERS = {
    "masked padding": (dict(mask_padding=1), dict(mask_padding=1)),
    "everything connected": (dict(connection=0), {}),
    "no relevance": (dict(relevance=0), {}),
    "squared distance": (dict(distance="l2sq"), {}),
    "two layers of the graph": (dict(num_layers_enc=2), {}),
    "infonce+vse": (dict(base_loss="infonce+vse", gnn_loss="infonce+vse"), {}),
    "selective": (dict(base_loss="vse", gnn_loss="vse", negatives="selective"), {}),
    "fixed temperature": (dict(base_loss="infonce", temperature=0.05), {}),
    "decorrelation": (dict(decorrelation=0.01), {}),
    "two views": (dict(base_loss="infonce+vse", gnn_loss="vse"), dict(views=2)),
    "soft labels": (dict(soft_labels=1.0), {}),
    "BiGRU": ({}, dict(reader="bigru")),
    "BiGRU, gpo": ({}, dict(reader="bigru", pooling="gpo")),
    "BiGRU, attention": ({}, dict(reader="bigru", pooling="attention")),
    "masked padding, attention": (
        dict(mask_padding=1),
        dict(mask_padding=1, pooling="attention+relation"),
    ),
    "no region MLP": ({}, dict(region_mlp=0)),
}
NO_GRAPH = dict(interaction="none", base_loss="vse")
SIMILARITIES = {
    "scan t2i": dict(similarity="scan"),
    "scan i2t": dict(similarity="scan", cross_attention="i2t"),
    "naaf": dict(similarity="naaf"),
    "chan": dict(similarity="chan"),
    "chan, BiGRU": dict(similarity="chan", reader="bigru"),
}
SIMILARITIES |= {f"scan, {way}": dict(similarity="scan", aggregation=way)
                 for way in ("lse", "max", "sum")}  # fmt: skip
SIMILARITIES |= {norm: dict(similarity="scan", match_norm=norm) for norm in MATCH_NORMS[1:]}
CROSS_ATTENTION = {name: (NO_GRAPH, encoders) for name, encoders in SIMILARITIES.items()}


def graph(interaction, relation, loss):
    """The options of a graph whose losses are all the same."""
    return dict(interaction=interaction, relation=relation, base_loss=loss, gnn_loss=loss)


ALL_GRAPHS = {
    f"{interaction}, {relation}, {loss}": (graph(interaction, relation, loss), {})
    for (interaction, relation), loss in itertools.product(GRAPHS, LOSSES)
}
# every graph, each loss twice or more
SOME_GRAPHS = {
    f"{interaction}, {relation}, {loss}": (graph(interaction, relation, loss), {})
    for (interaction, relation), loss in zip(GRAPHS, itertools.cycle(("trip", "vse", "infonce")))
}


def small_setting(graph_options, encoders, to_device):
    """A small model, its objective and its optimiser in training mode. to_device: puts a module
    where it is trained."""
    torch.manual_seed(0)
    reader = small_bert(vocab_size=90, hidden_size=24, num_attention_heads=3, intermediate_size=32)
    if encoders.get("reader") == "bigru":
        reader = nn.Embedding(90, 30)
    shared = dict(embed_size=64, nhead=4, dropout=0.1)
    others = {name: value for name, value in encoders.items() if name != "views"}
    model = make_model(region_dim=12, **shared | others | dict(reader=reader))
    objective = make_objective(topk=5, **shared, **graph_options)
    if objective.soft_labels:
        objective.soft_labels.words = torch.randn(90, 24)
    model, objective = to_device(model.train()), to_device(objective.train())
    return model, objective, optim.build(model, objective, 1e-4)


def small_batch(lengths=(14, 9, 8, 6, 5, 3, 3, 2), views=1):
    """A batch whose captions have these lengths, and images with two to five regions. views: 2: one
    view sees all regions, the other all but the second."""
    batch = batch_of(lengths=lengths)
    counts = torch.arange(len(lengths)) % 4 + 2
    is_real = torch.arange(batch.regions.size(1)) < counts.unsqueeze(1)
    batch = batch._replace(regions=batch.regions * is_real.unsqueeze(2), region_lengths=counts)
    if views == 1:
        return batch
    is_second = torch.arange(batch.regions.size(1)) == 1
    return batch._replace(views=torch.stack([is_real, is_real & ~is_second], dim=1))


def batch_of_configuration(encoders):
    """`small_batch` for the options of the encoders of a configuration."""
    return small_batch(views=encoders.get("views", 1))
