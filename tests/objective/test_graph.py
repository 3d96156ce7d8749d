"""The fusion against attention computed head by head, and the objective's terms,
switches and gradients."""

import math

import pytest
import torch
from helpers import close, normal
from published import make_objective

import graph_lib
from graph_lib import Fusion, longest_distance
from lib.model.encoders import Encoded
from lib.model.pooling import l2_normalise
from lib.objective.losses import find_positives, hinge_loss, triplet_loss
from lib.objective.relation import Relation, Relations, regulariser

DIM, HEADS = 16, 4


def relations_of(count, seed):
    """Four blocks of made-up relations; every row of every block is connected to one instance at
    least."""
    blocks = []
    for block in range(4):
        is_connected = normal(count, count, seed=seed + block) > 0.3
        is_connected[range(count), [(row + block) % count for row in range(count)]] = True
        blocks.append(Relation(is_connected, normal(count, count, seed=seed + block + 10)))
    return Relations(*blocks)


def naive_bias(relations, mask_weight):
    count = len(relations.i2i.relevance)
    blocks = [[relations.i2i, relations.i2t], [relations.t2i, relations.t2t]]
    bias = torch.zeros(2 * count, 2 * count)
    for row in range(2 * count):
        for column in range(2 * count):
            block = blocks[row // count][column // count]
            here = row % count, column % count
            bias[row, column] = (
                mask_weight * block.relevance[here] if block.connection[here] else -math.inf
            )
    return bias


def naive_layer(layer, nodes, bias, others=None):
    """One post-norm transformer layer in which nodes attend to each other or to others,
    a head and a node at a time."""
    size = DIM // HEADS
    sources = nodes, *(2 * [nodes if others is None else others])
    matrices, biases = (
        layer.self_attn.in_proj_weight.split(DIM),
        layer.self_attn.in_proj_bias.split(DIM),
    )
    query, key, value = (
        source @ matrix.T + shift for source, matrix, shift in zip(sources, matrices, biases)
    )
    attended = torch.zeros_like(nodes)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for node in range(len(nodes)):
            logits = (
                torch.stack([query[node, part] @ other / math.sqrt(size) for other in key[:, part]])
                + bias[node]
            )
            attended[node, part] = logits.exp() / logits.exp().sum() @ value[:, part]
    nodes = layer.norm1(nodes + layer.self_attn.out_proj(attended))
    return layer.norm2(nodes + layer.linear2(layer.linear1(nodes).clamp(min=0)))


def fusion_of(layers=1, mask_weight=1.0, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    fusion = Fusion(DIM, HEADS, dropout, layers, mask_weight)
    for parameter in fusion.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases start at zero, norms at one
    return fusion


def encoded(count, lengths, longest, seed):
    unnormalised = normal(count, DIM, seed=seed).requires_grad_()
    return Encoded(
        l2_normalise(unnormalised),
        unnormalised,
        normal(count, longest, DIM, seed=seed + 1),
        torch.tensor(lengths),
    )


def batch_of(count=4, lengths=(9, 7, 4, 3), num_regions=5, seed=0):
    """Encoded images and captions of a batch; the embeddings retain their gradient."""
    images = encoded(count, [num_regions] * count, num_regions, seed)
    captions = encoded(count, lengths, max(lengths), seed + 50)
    images.embedding.retain_grad(), captions.embedding.retain_grad()
    return images, captions


def objective_of(seed=0, **options):
    torch.manual_seed(seed)
    return make_objective(**(dict(embed_size=DIM, nhead=HEADS, dropout=0.0) | options))


def check_finite_and_reached(objective, images, captions, image_ids):
    loss = objective(
        images, captions, image_ids, use_graph=True, generator=torch.Generator().manual_seed(0)
    )
    loss.total.backward()
    assert loss.total.isfinite() and loss.total > 0
    for gradient in (
        images.embedding.grad,
        captions.embedding.grad,
        *(p.grad for p in objective.parameters()),
    ):
        assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("mask_weight", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_attention_bias_is_the_loop_over_nodes(count, mask_weight):
    relations = relations_of(count, seed=count)
    assert torch.equal(
        Fusion(DIM, HEADS, mask_weight=mask_weight).attention_bias(relations),
        naive_bias(relations, mask_weight),
    )


def soft(relations, weights=None):
    """The relations with float weights for connections: 0 and 1, or `weights` in every block."""
    return Relations(
        *(
            block._replace(connection=block.connection.float() if weights is None else weights)
            for block in relations
        )
    )


@pytest.mark.parametrize("mask_weight", [0.0, 1.5])
def test_soft_connections_of_0_and_1_are_bools_to_the_bit(mask_weight):
    fusion, relations = fusion_of(mask_weight=mask_weight), relations_of(4, seed=0)
    results = []
    for given in (relations, soft(relations)):
        sides = [normal(4, DIM, seed=seed).requires_grad_() for seed in (1, 2)]
        enhanced = torch.cat(fusion(*sides, given))
        gradients = torch.autograd.grad(enhanced.pow(3).sum(), [*sides, *fusion.parameters()])
        results.append([fusion.attention_bias(given), enhanced, *gradients])
    assert all(torch.equal(hard, soft) for hard, soft in zip(*results, strict=True))


def test_a_soft_connection_multiplies_the_weight_of_attention():
    relevance = normal(3, 3, seed=0)
    weights = torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.0, 0.0], [1.0, 1.0, 1.0]])
    found = graph_lib.attention_bias(Relation(weights, relevance), 1.5)
    close(found.exp(), weights * (1.5 * relevance).exp())
    assert torch.equal(found.isneginf(), weights == 0)


def test_gradient_through_soft_connections_is_finite_where_some_are_zero():
    fusion, relations = fusion_of(), relations_of(3, seed=0)
    weights = torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.0, 0.0], [1.0, 1.0, 1.0]])
    weights.requires_grad_()
    sides = normal(3, DIM, seed=1), normal(3, DIM, seed=2)
    torch.cat(fusion(*sides, soft(relations, weights))).pow(3).sum().backward()
    assert weights.grad.isfinite().all() and torch.equal(weights.grad == 0, weights == 0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("mask_weight", [0.0, 1.5])
@pytest.mark.parametrize("count", [1, 3])
def test_the_fusion_is_attention_computed_head_by_head(count, mask_weight, layers):
    fusion = fusion_of(layers, mask_weight, seed=count)
    relations = relations_of(count, seed=count)
    images, captions = normal(count, DIM, seed=1), normal(count, DIM, seed=2)
    nodes = torch.cat([images, captions])
    for layer in fusion.layers:
        nodes = naive_layer(layer, nodes, naive_bias(relations, mask_weight))
    expected = nodes / nodes.norm(dim=1, keepdim=True)
    assert len(fusion.layers) == layers
    for training, with_gradient in ((True, True), (True, False), (False, True)):
        with torch.set_grad_enabled(with_gradient):
            found = fusion.train(training)(images, captions, relations)
        close(torch.cat(found).detach(), expected.detach())
        assert [len(side) for side in found] == [count, count]


def test_instances_that_are_not_connected_change_nothing():
    fusion, relations = fusion_of(mask_weight=0.0), relations_of(4, seed=0)
    images, captions = normal(4, DIM, seed=1), normal(4, DIM, seed=2)
    for block in relations:
        block.connection[:, 3] = torch.tensor([False, False, False, True])
    before = fusion(images, captions, relations)
    images[3], captions[3] = 9, -9
    after = fusion(images, captions, relations)
    for old, new in zip(before, after):
        assert torch.equal(old[:3], new[:3]) and not torch.equal(old[3], new[3])


def test_dropout_acts_in_training_alone():
    fusion, relations = fusion_of(dropout=0.5), relations_of(3, seed=0)
    images, captions = normal(3, DIM, seed=1), normal(3, DIM, seed=2)
    assert not torch.equal(*(fusion.train()(images, captions, relations)[0] for _ in range(2)))
    assert torch.equal(*(fusion.eval()(images, captions, relations)[0] for _ in range(2)))


def test_before_warm_up_there_is_only_the_base_loss():
    images, captions = batch_of()
    blind = (
        images._replace(fragments=None, unnormalised=None),
        captions._replace(fragments=None, unnormalised=None),
    )
    objective = objective_of(base_loss="vse")
    loss = objective(*blind, torch.arange(4), use_graph=False)
    assert [*loss.terms] == ["base"] and torch.equal(loss.total, loss.terms["base"])
    close(
        loss.total,
        hinge_loss(
            images.embedding @ captions.embedding.T, find_positives(torch.arange(4)), 0.2, "all"
        ),
    )
    loss.total.backward()
    assert all(parameter.grad is None for parameter in objective.parameters())


@pytest.mark.parametrize("hardest", [False, True])
@pytest.mark.parametrize("mask_repeat", [False, True])
@pytest.mark.parametrize("norm_input", [False, True])
@pytest.mark.parametrize("cross_loss", [False, True])
def test_the_objective_is_the_sum_of_its_terms(cross_loss, norm_input, mask_repeat, hardest):
    images, captions = batch_of()
    image_ids = torch.tensor([1, 2, 1, 3])
    objective = objective_of(
        base_loss="trip",
        gnn_loss="vse",
        margin=0.3,
        longest_distance=1.5,
        mask_repeat=mask_repeat,
        norm_input=norm_input,
        cross_loss=cross_loss,
        reg_loss_weight=7.0,
    )
    loss = objective(
        images,
        captions,
        image_ids,
        use_graph=True,
        hardest=hardest,
        generator=torch.Generator().manual_seed(3),
    )

    u, w, positives = images.embedding, captions.embedding, find_positives(image_ids, mask_repeat)
    relations = objective.relations(images, captions)
    inputs = (u, w) if norm_input else (images.unnormalised, captions.unnormalised)
    enhanced_u, enhanced_w = objective.fusion(*inputs, relations)
    negatives = "hardest" if hardest else "all"
    expected = dict(
        base=triplet_loss(u @ w.T, positives, 0.3, 1.5, torch.Generator().manual_seed(3)),
        cross=hinge_loss(u @ enhanced_w.T, positives, 0.3, negatives)
        + hinge_loss(enhanced_u @ w.T, positives, 0.3, negatives),
        graph=hinge_loss(enhanced_u @ enhanced_w.T, positives, 0.3, negatives),
        regulariser=7.0 * regulariser(relations, u, w),
    )
    if not cross_loss:
        del expected["cross"]
    assert loss.terms.keys() == expected.keys()
    for name, term in expected.items():
        assert term > 0
        close(loss.terms[name].detach(), term.detach())
    close(loss.total.detach(), sum(expected.values()).detach())


def test_sampled_negatives_are_drawn_for_the_base_then_for_the_cross_and_graph_losses():
    images, captions = batch_of(seed=3)
    objective, positives = objective_of(), find_positives(torch.arange(4))
    loss = objective(
        images,
        captions,
        torch.arange(4),
        use_graph=True,
        generator=torch.Generator().manual_seed(5),
    )
    u, w = images.embedding, captions.embedding
    enhanced_u, enhanced_w = objective.enhance(
        images, captions, objective.relations(images, captions)
    )
    same = torch.Generator().manual_seed(5)
    base, first, second, graph = (
        triplet_loss(left @ right.T, positives, 0.2, 1.7, same)
        for left, right in ((u, w), (u, enhanced_w), (enhanced_u, w), (enhanced_u, enhanced_w))
    )
    for name, expected in (("base", base), ("cross", first + second), ("graph", graph)):
        close(loss.terms[name].detach(), expected.detach())


def test_the_fusion_reads_unnormalised_embeddings_only_where_it_is_told_to():
    images, captions = batch_of()
    other = images._replace(unnormalised=images.unnormalised + 1)
    for norm_input in (True, False):
        objective = objective_of(norm_input=norm_input)
        relations = objective.relations(images, captions)
        ours, theirs = (objective.enhance(side, captions, relations)[0] for side in (images, other))
        assert torch.equal(ours, theirs) is norm_input


@pytest.mark.parametrize("loss", ["trip", "vse"])
@pytest.mark.parametrize(
    "options", [{}, dict(norm_input=False), dict(cross_loss=False), dict(num_layers_enc=2)]
)
def test_after_warm_up_gradient_reaches_both_embeddings_and_every_parameter(loss, options):
    check_finite_and_reached(
        objective_of(base_loss=loss, gnn_loss=loss, topk=4, **options), *batch_of(), torch.arange(4)
    )


def test_the_graph_adds_gradient_through_relevance_and_not_through_the_fragments():
    images, captions = batch_of()
    images.fragments.requires_grad_(), captions.fragments.requires_grad_()
    objective = objective_of(topk=4)
    relations = objective.relations(images, captions)
    sum(block.relevance.sum() for block in (relations.i2i, relations.t2t)).backward(
        retain_graph=True
    )
    assert images.embedding.grad.any() and captions.embedding.grad.any()
    objective(images, captions, torch.arange(4), use_graph=True).total.backward()
    assert images.fragments.grad is None and captions.fragments.grad is None


@pytest.mark.parametrize("loss", ["trip", "vse"])
@pytest.mark.parametrize("count, lengths, num_regions", [
    (2, (12, 11), 36), (2, (3, 3), 4), (3, (3, 3, 3), 1), (4, (5, 4, 3, 3), 2), (2, (2, 2), 1),
    (5, (14, 9, 5, 3, 2), 9),
])  # fmt: skip
def test_small_batches_short_captions_and_few_regions_train(count, lengths, num_regions, loss):
    images, captions = batch_of(count, lengths, num_regions, seed=1)
    check_finite_and_reached(
        objective_of(base_loss=loss, gnn_loss=loss, topk=10), images, captions, torch.arange(count)
    )


def test_an_anchor_without_negatives_leaves_the_other_anchors_their_gradient():
    images, captions = batch_of()
    direction = torch.nn.functional.one_hot(torch.tensor([0]), DIM)
    vectors = [-direction + 0.3 * l2_normalise(normal(4, DIM, seed=seed)) for seed in (0, 1)]
    for side in vectors:
        side[0] = direction
    u, w = (l2_normalise(side).requires_grad_() for side in vectors)
    assert (2 - 2 * (u @ w.T)).sqrt()[0, 1:].min() > 1.7
    check_finite_and_reached(
        objective_of(topk=4),
        images._replace(embedding=u),
        captions._replace(embedding=w),
        torch.arange(4),
    )


@pytest.mark.parametrize("loss", ["trip", "vse"])
def test_a_batch_of_one_image_pays_the_regulariser_alone(loss):
    images, captions = batch_of()
    found = objective_of(base_loss=loss, gnn_loss=loss)(
        images, captions, torch.zeros(4), use_graph=True
    )
    assert found.terms["base"] == found.terms["cross"] == found.terms["graph"] == 0
    assert found.total == found.terms["regulariser"] > 0
    found.total.backward()
    assert not images.embedding.grad.any() and not captions.embedding.grad.any()


def test_a_mask_weight_of_zero_leaves_relevance_to_the_regulariser():
    images, captions = batch_of()
    objective = objective_of(topk=4, mask_weight=0.0)
    loss = objective(
        images,
        captions,
        torch.arange(4),
        use_graph=True,
        generator=torch.Generator().manual_seed(0),
    )
    without = loss.total - loss.terms["regulariser"]
    relation_parameters = [*objective.relations.parameters()]
    gradients = torch.autograd.grad(without, relation_parameters, retain_graph=True)
    assert without.isfinite() and not any(gradient.any() for gradient in gradients)
    gradients = torch.autograd.grad(loss.terms["regulariser"], relation_parameters)
    assert all(gradient.isfinite().all() for gradient in gradients) and gradients[0].any()


def test_sampling_reaches_farther_on_coco_under_any_of_its_names():
    assert [longest_distance(name) for name in ("f30k", "demo", "coco", "coco_butd")] == [
        1.7,
        1.7,
        1.9,
        1.9,
    ]


@pytest.mark.parametrize("threshold, connected", [(0.25, 1), (0.5, 2), (1.0, 4)])
def test_the_threshold_reaches_all_four_blocks(threshold, connected):
    images, captions = batch_of()
    for block in objective_of(threshold=threshold, topk=4).relations(images, captions):
        assert block.connection.sum(1).tolist() == [connected] * 4
