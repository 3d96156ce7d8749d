"""Options of the instance level: its interaction, which relations take part, the distance."""

import contextlib
import itertools
import re

import pytest
import torch
from helpers import close, normal
from published import golden, make_model, make_objective, small_bert
from test_golden import golden_batch
from test_graph import DIM, HEADS, batch_of, naive_bias, naive_layer, objective_of, relations_of
from test_relation import encoded, fragments, naive_connection, naive_matches, unit_rows
from torch import nn

import graph_lib
from graph_lib import Fusion, Standalone
from lib.model.matches import BLOCKS as LIMITS
from lib.model.options import POOLINGS
from lib.objective.losses import find_positives, hinge_loss
from lib.objective.relation import (
    InstanceRelations,
    distance_relevance,
    fragment_matches,
    regulariser,
)
from lib.training.engine import training_step

BLOCKS = dict(both=("i2i", "i2t", "t2i", "t2t"), intra=("i2i", "t2t"), inter=("i2t", "t2i"))
GRAPHS = [*itertools.product(("fusion", "standalone"), BLOCKS)]
SWITCHES = [*itertools.product((True, False), (True, False))]  # of relevance, of connection


def standalone_of(layers=1, mask_weight=1.0, dropout=0.0, relation="both", seed=0):
    torch.manual_seed(seed)
    standalone = Standalone(DIM, HEADS, dropout, layers, mask_weight, relation)
    for parameter in standalone.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases start at zero, norms at one
    return standalone


def naive_standalone(module, images, captions, bias, relation):
    """Both stages a query at a time. bias: of the whole graph, (2B, 2B)."""
    count = len(images)
    if relation != "intra":
        for image_layer, caption_layer in zip(module.i2t, module.t2i, strict=True):
            images, captions = (
                naive_layer(image_layer, images, bias[:count, count:], captions),
                naive_layer(caption_layer, captions, bias[count:, :count], images),
            )
    if relation != "inter":
        for image_layer, caption_layer in zip(module.i2i, module.t2t, strict=True):
            images = naive_layer(image_layer, images, bias[:count, :count])
            captions = naive_layer(caption_layer, captions, bias[count:, count:])
    return [side / side.norm(dim=1, keepdim=True) for side in (images, captions)]


@pytest.mark.parametrize("relation", BLOCKS)
@pytest.mark.parametrize("count, layers, mask_weight", [(1, 1, 1.0), (2, 1, 0.0), (3, 2, 1.5)])
def test_standalone_is_attention_between_then_within_the_modalities(
    count, layers, mask_weight, relation
):
    standalone, relations = (
        standalone_of(layers, mask_weight, relation=relation),
        relations_of(count, seed=count),
    )
    images, captions = normal(count, DIM, seed=1), normal(count, DIM, seed=2)
    expected = naive_standalone(
        standalone, images, captions, naive_bias(relations, mask_weight), relation
    )
    assert [len(stack) for stack in standalone.children()] == [
        layers * (block in BLOCKS[relation]) for block in ("i2t", "t2i", "i2i", "t2t")
    ]
    for training in (True, False):
        for found, side in zip(
            standalone.train(training)(images, captions, relations), expected, strict=True
        ):
            close(found.detach(), side.detach())


def test_every_block_of_standalone_has_its_own_weights_and_dropout():
    standalone, relations = standalone_of(dropout=0.5), relations_of(3, seed=0)
    sides = normal(3, DIM, seed=1), normal(3, DIM, seed=2)
    pointers = [parameter.data_ptr() for parameter in standalone.parameters()]
    assert len(set(pointers)) == len(pointers) == 4 * len([*Fusion(DIM, HEADS).parameters()])
    assert not torch.equal(*(standalone.train()(*sides, relations)[0] for _ in range(2)))
    assert torch.equal(*(standalone.eval()(*sides, relations)[0] for _ in range(2)))


def test_in_standalone_an_image_hears_of_images_only_through_its_connections():
    standalone, relations = (
        standalone_of(mask_weight=0.0, relation="inter"),
        relations_of(4, seed=0),
    )
    images, captions = normal(4, DIM, seed=1), normal(4, DIM, seed=2)
    relations.i2t.connection[:, 3] = torch.tensor([False, False, False, True])
    before = standalone(images, captions, relations)[0]
    captions[3] = 9
    after = standalone(images, captions, relations)[0]
    assert torch.equal(before[:3], after[:3]) and not torch.equal(before[3], after[3])


@pytest.mark.parametrize("relation", BLOCKS)
def test_fusion_sees_the_blocks_that_take_part_and_no_others(relation):
    images, captions = batch_of()
    objective = objective_of(topk=4, relation=relation)
    found = objective.fusion.attention_bias(objective.relations(images, captions)).isfinite()
    for block, part in zip(
        ("i2i", "i2t", "t2i", "t2t"), (half for row in found.split(4) for half in row.split(4, 1))
    ):
        assert part.sum(1).tolist() == [2 * (block in BLOCKS[relation])] * 4


def naive_blocks(module, u, w, matches, distance):
    """Connection and relevance of every block with all switches on, by loops."""
    blocks = {}
    for name, side in (("i2i", u), ("t2t", w)):
        apart = [[(x - y).norm() for y in side] for x in side]
        relevance = [[(-(d**2 if distance == "l2sq" else d)).exp() for d in row] for row in apart]
        blocks[name] = (
            naive_connection(side @ side.T, 0.4),
            torch.tensor(relevance, dtype=torch.float64),
        )
    for name, (mean, largest) in zip(("t2i", "i2t"), matches):
        mlp = getattr(module.cross_modal, f"mlp_{name}", None) if module.reads_fragments else None
        relevance = mean + mlp.double()(largest).squeeze(-1) if mlp else None
        blocks[name] = naive_connection(mean, 0.4), relevance
    return blocks


@pytest.mark.parametrize("relation", BLOCKS)
@pytest.mark.parametrize("use_relevance, use_connection", SWITCHES)
@pytest.mark.parametrize("distance", ["l2", "l2sq"])
def test_the_blocks_are_the_loops_under_every_option(
    relation, use_relevance, use_connection, distance
):
    words, lengths, regions, topk = fragments("not sorted")
    u, w = unit_rows(5, 6, seed=1), unit_rows(5, 6, seed=2)
    module = InstanceRelations(topk, 0.4, relation, use_relevance, use_connection, distance)
    found = module(encoded(u, regions, torch.full((5,), 5)), encoded(w, words, lengths))._asdict()
    expected = naive_blocks(module, u, w, naive_matches(words, lengths, regions, topk), distance)
    for name, (is_connected, relevance) in expected.items():
        takes_part = name in BLOCKS[relation]
        wanted = is_connected if takes_part and use_connection else [[takes_part] * 5] * 5
        assert found[name].connection.tolist() == wanted
        wanted = relevance if takes_part and use_relevance else torch.zeros(5, 5)
        close(found[name].relevance.detach(), wanted.detach(), 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(relation="intra"),
        dict(relevance=0, connection=0),
        dict(interaction="none"),
        dict(relation="inter", connection=0, mask_weight=0.0, reg_loss_weight=0.0),
    ],
)
@pytest.mark.parametrize("interaction", ["fusion", "standalone"])
def test_fragments_are_not_matched_where_nothing_depends_on_them(monkeypatch, interaction, options):
    monkeypatch.setattr("lib.objective.relation.fragment_matches", None)
    objective = objective_of(**(dict(interaction=interaction, gnn_loss="vse") | options))
    images, captions = (side._replace(fragments=None) for side in batch_of())
    loss = objective(images, captions, torch.arange(4), use_graph=True)
    assert loss.total > 0 and "regulariser" not in loss.terms and objective.pieces_read == 0
    assert not [name for name, _ in objective.named_parameters() if "mlp" in name]


def test_pieces_are_read_up_to_k_where_fragments_are_matched():
    for options in (
        {},
        dict(relation="inter"),
        dict(relevance=0),
        dict(connection=0),
    ):
        assert objective_of(topk=7, **options).pieces_read == 7


def test_a_regulariser_without_weight_is_not_computed(monkeypatch):
    monkeypatch.setattr(graph_lib, "regulariser", None)
    loss = objective_of(reg_loss_weight=0.0)(*batch_of(), torch.arange(4), use_graph=True)
    assert [*loss.terms] == ["base", "cross", "graph"]


def test_the_squared_distance_reaches_the_regulariser_too():
    images, captions = batch_of()
    objective = objective_of(topk=4, distance="l2sq", reg_loss_weight=3.0)
    relations = objective.relations(images, captions)
    u, w = images.embedding.detach(), captions.embedding.detach()
    target = torch.stack([torch.stack([(-(x - y).square().sum()).exp() for y in w]) for x in u])
    expected = 0
    for learnt, given in ((relations.i2t.relevance, target), (relations.t2i.relevance, target.T)):
        p, q = learnt.softmax(1), given.softmax(1)
        expected = expected + 3 * (p * (p / q).log()).sum() / 4
    found = objective(images, captions, torch.arange(4), use_graph=True).terms["regulariser"]
    close(found.detach(), expected.detach())
    assert not torch.isclose(found, 3 * regulariser(relations, u, w))


def test_the_squared_distance_has_no_gradient_at_zero():
    twins = unit_rows(1, 8, seed=0).repeat(30, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(distance_relevance(twins, twins, "l2sq").sum(), twins)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def unreached(objective):
    """The parameters that add a constant to a block of relevance,
    where each softmax sees one block alone."""
    sees_one = (
        hasattr(objective, "standalone")
        or not objective.relations.has_intra
        or not objective.fusion.mask_weight
    )
    return re.compile(r"relations\.cross_modal\.mlp_...\.2\.bias" if sees_one else "nothing")


def halve(objective, images, captions):
    """Let every hidden unit of the MLPs be on for half of the pairs,
    else it would be one more constant."""
    if "relations.cross_modal.mlp_i2t.0.bias" in objective.state_dict():
        module = objective.relations.cross_modal
        found = fragment_matches(
            captions.fragments, captions.lengths, images.fragments, module.topk
        )
        for mlp, (_, largest) in zip((module.mlp_t2i, module.mlp_i2t), found):
            mlp[0].bias.data = -(largest @ mlp[0].weight.T).flatten(0, 1).median(0).values.detach()


def check_reached(objective, images, captions):
    """A finite loss whose gradient reaches both embeddings and every parameter,
    by more than rounding."""
    halve(objective, images, captions)
    loss = objective(images, captions, torch.arange(len(images.lengths)), use_graph=True)
    loss.total.backward()
    assert loss.total.isfinite() and loss.total > 0
    for embedding in (images.embedding, captions.embedding):
        assert embedding.grad.isfinite().all() and embedding.grad.any()
    for name, parameter in objective.named_parameters():
        assert parameter.grad.isfinite().all(), name
        is_reached = parameter.grad.abs().max() > 1e-6
        assert is_reached != bool(unreached(objective).fullmatch(name)), name


@pytest.mark.parametrize("interaction, relation", GRAPHS)
@pytest.mark.parametrize("use_relevance, use_connection", SWITCHES)
@pytest.mark.parametrize("options", [
    dict(base_loss="infonce", gnn_loss="infonce"),
    dict(base_loss="infonce+vse", gnn_loss="infonce+vse"),
    dict(gnn_loss="vse", distance="l2sq", num_layers_enc=2),
    dict(gnn_loss="infonce", cross_loss=False, norm_input=False),
    dict(gnn_loss="vse", reg_loss_weight=0.0), dict(gnn_loss="vse", mask_weight=0.0),
    dict(gnn_loss="vse", mask_weight=0.0, reg_loss_weight=0.0),
])  # fmt: skip
def test_gradient_reaches_every_parameter_that_there_is(
    interaction, relation, use_relevance, use_connection, options
):
    choice = dict(interaction=interaction, relation=relation) | options
    objective = objective_of(
        topk=4, relevance=int(use_relevance), connection=int(use_connection), **choice
    )
    check_reached(objective, *batch_of())


@pytest.mark.parametrize("interaction, relation", GRAPHS)
@pytest.mark.parametrize("count, threshold", [(2, 0.5), (2, 1.0), (5, 0.01)])
def test_batches_of_two_and_one_connection_a_row_train(interaction, relation, count, threshold):
    images, captions = batch_of(count, [6, 5, 4, 3, 3][:count], num_regions=3, seed=1)
    objective = objective_of(
        interaction=interaction, relation=relation, topk=10, threshold=threshold, gnn_loss="infonce"
    )
    for name, block in objective.relations(images, captions)._asdict().items():
        kept = max(int(count * threshold), 1) * (name in BLOCKS[relation])
        assert block.connection.sum(1).tolist() == [kept] * count
    check_reached(objective, images, captions)


def test_the_default_keeps_its_parameters():
    names = [name for name, _ in make_objective(embed_size=DIM, nhead=HEADS).named_parameters()]
    assert names[:8] == [
        f"relations.cross_modal.mlp_{direction}.{layer}.{part}"
        for direction in ("t2i", "i2t")
        for layer in (0, 2)
        for part in ("weight", "bias")
    ]
    assert len(names) == 20 and all(name.startswith("fusion.layers.0.") for name in names[8:])


@pytest.mark.parametrize("loss", ["trip", "vse", "infonce"])
def test_without_interaction_there_is_the_base_loss_alone(loss):
    images, captions = batch_of()
    objective = objective_of(interaction="none", base_loss=loss, gnn_loss="infonce")
    found = objective(
        images,
        captions,
        torch.arange(4),
        use_graph=True,
        generator=torch.Generator().manual_seed(0),
    )
    before = objective(
        images,
        captions,
        torch.arange(4),
        use_graph=False,
        generator=torch.Generator().manual_seed(0),
    )
    assert [*found.terms] == ["base"] and found.total == before.total
    if loss == "vse":
        expected = hinge_loss(
            images.embedding @ captions.embedding.T, find_positives(torch.arange(4)), 0.2, "all"
        )
        close(found.total.detach(), expected.detach())
    names = [name for name, _ in objective.named_parameters()]
    assert names == (["infonce.log_scale"] if loss == "infonce" else [])


def test_one_temperature_serves_all_terms_and_exists_where_it_is_read():
    images, captions = batch_of()
    objective = objective_of(base_loss="infonce", gnn_loss="infonce", topk=4)
    loss = objective(images, captions, torch.arange(4), use_graph=True)
    assert [name for name, _ in objective.named_parameters() if "scale" in name] == [
        "infonce.log_scale"
    ]
    for term in ("base", "cross", "graph"):
        assert (
            torch.autograd.grad(loss.terms[term], objective.infonce.log_scale, retain_graph=True)[0]
            != 0
        )
    assert not hasattr(objective_of(base_loss="vse", gnn_loss="trip"), "infonce")


class NoUpdate:
    """An optimiser that changes nothing. The fused AdamW asks for no value, a tensor tells it,
    but it knows no meta."""

    def __init__(self, *modules):
        self.param_groups = [
            dict(params=[parameter for module in modules for parameter in module.parameters()])
        ]

    def zero_grad(self, set_to_none):
        pass

    def step(self):
        assert self.found_inf.is_meta


@pytest.mark.parametrize(
    "graph, encoders",
    [
        *(
            (dict(interaction=interaction, relation=relation, base_loss=loss, gnn_loss=loss), {})
            for interaction, relation in GRAPHS
            for loss in ("trip", "infonce")
        ),
        (dict(base_loss="vse", gnn_loss="vse"), {}),
        *((dict(base_loss="vse", gnn_loss="vse"), dict(pooling=pooling)) for pooling in POOLINGS),
        (dict(base_loss="vse", gnn_loss="vse", mask_padding=1), dict(mask_padding=1)),
        (dict(base_loss="vse", gnn_loss="vse"), dict(reader=nn.Embedding(90, 30))),
    ],
)
def test_no_step_asks_the_device_for_a_value(monkeypatch, graph, encoders):
    """On the device "meta" there are no values: whoever asks for one fails."""
    monkeypatch.setitem(LIMITS, "meta", LIMITS["cuda"])
    # knows no meta either
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    reader = small_bert(vocab_size=90, hidden_size=24, num_attention_heads=3, intermediate_size=32)
    shared = dict(embed_size=64, nhead=4, dropout=0.1)
    encoders = dict(reader=reader) | encoders
    model = make_model(region_dim=48, **shared, **encoders).to("meta").train()
    objective = make_objective(topk=5, **shared, **graph).to("meta").train()
    batch = golden_batch(golden("steps.npz"), 0, second_set=False).to("meta")
    report = training_step(
        model, objective, NoUpdate(model, objective), batch, use_graph=True, hardest=True,
        skipped=torch.zeros((), dtype=torch.int32, device="meta"),
    )  # fmt: skip
    assert report.loss.is_meta and report.gradient_norm.is_meta and report.is_finite.is_meta
