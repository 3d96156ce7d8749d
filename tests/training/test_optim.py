"""Parameter groups, rates, single optimisation steps that count or change nothing,
and encoding by blocks."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from published import make_model, make_objective, small_bert

import arguments
from lib.data.batches import Batch
from lib.data.dataset import pad_pieces
from lib.evaluation import encoding
from lib.model.options import PRECISIONS
from lib.system.errors import InputError
from lib.training import engine, optim
from lib.training.schedule import Schedule

DIM, HEADS, REGION_DIM, VOCABULARY = 16, 4, 12, 90
RATE = 1e-3


def setting(seed=0, graph_lr_factor=1.0, dropout=0.0, **options):
    """A tiny model with its objective and optimiser."""
    torch.manual_seed(seed)
    bert = small_bert(
        vocab_size=VOCABULARY, hidden_size=24, num_attention_heads=3, intermediate_size=32
    )
    shared = dict(embed_size=DIM, nhead=HEADS, dropout=dropout)
    model = make_model(bert, REGION_DIM, **shared).train()
    objective = make_objective(topk=4, **shared, **options)
    return model, objective, optim.build(model, objective, RATE, graph_lr_factor)


def batch_of(seed=0, lengths=(8, 6, 5, 3)):
    generator = torch.Generator().manual_seed(seed)
    draw = [
        torch.randint(1, VOCABULARY, (length,), generator=generator).numpy() for length in lengths
    ]
    regions = torch.randn(len(lengths), 5, REGION_DIM, generator=generator)
    return Batch(
        regions, torch.full((len(lengths),), 5), *pad_pieces(draw), torch.arange(len(lengths))
    )


def bad_batch():
    batch = batch_of()
    batch.regions[1, 2, 3] = float("nan")
    return batch


def step(model, objective, optimizer, batch, number=0, use_graph=True, **options):
    engine.seed_step(0, number)
    return engine.training_step(model, objective, optimizer, batch, use_graph=use_graph, **options)


def everything(model, objective, optimizer):
    """A copy of all that a step may change: weights, running statistics, the optimiser's state."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    state |= {f"objective.{name}": value for name, value in objective.state_dict().items()}
    for number, entries in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": value for name, value in entries.items()}
    return copy.deepcopy(state)


def differing(left, right):
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def parameters_of(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def test_groups_hold_every_parameter_once():
    model, objective, optimizer = setting()
    found = [id(parameter) for parameter in parameters_of(optimizer)]
    assert sorted(found) == sorted(
        id(parameter) for part in (model, objective) for parameter in part.parameters()
    )
    groups = {
        group["name"]: {id(parameter) for parameter in group["params"]}
        for group in optimizer.param_groups
    }
    assert groups["bert"] == {id(parameter) for parameter in model.text_encoder.bert.parameters()}
    assert groups["relations"] == {id(parameter) for parameter in objective.parameters()}
    assert id(model.text_encoder.projection.weight) in groups["encoders"]


@pytest.mark.parametrize("factor", [1.0, 2.5, 0.0])
def test_bert_learns_at_a_tenth_and_the_relations_at_a_factor(factor):
    optimizer = setting(graph_lr_factor=factor)[2]
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx(dict(encoders=RATE, bert=RATE / 10, relations=RATE * factor))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("schedule, decays", [
    ([15, 25], {0: 0, 14: 0, 15: 1, 24: 1, 25: 2, 29: 2}), ([25, 15], {14: 0, 20: 1, 29: 2}),
    ([], {0: 0, 29: 0}), ([5, 5], {4: 0, 5: 2}), ([0], {0: 1, 9: 1}),
])  # fmt: skip
def test_rates_decay_at_every_milestone_reached(schedule, decays):
    optimizer = setting(graph_lr_factor=2.0)[2]
    rates_of = Schedule("step", schedule, decay_rate=0.1, warmup=0, num_steps=300)
    for epoch in (*decays, *reversed(decays)):  # what was set before does not matter
        optim.set_learning_rates(optimizer, rates_of.factor(epoch, 10 * epoch))
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        once = RATE * 0.1 ** decays[epoch]
        assert rates == pytest.approx(dict(encoders=once, bert=once / 10, relations=once * 2))


@pytest.mark.parametrize("name, warmup, expected", [
    ("step", 4, [0.25, 0.5, 0.75, 1, 1, 0.1, 0.1, 0.1]),
    ("cosine", 0, [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
    ("cosine", 4, [0.25, 0.5, 0.75, 1, 1, 0.853553, 0.5, 0.146447]),
    ("cosine", 8, [step / 8 for step in range(1, 9)]),
    ("cosine", 16, [step / 16 for step in range(1, 9)]),
])  # fmt: skip
def test_factors_of_a_run_of_eight_steps(name, warmup, expected):
    schedule = Schedule(name, [5], decay_rate=0.1, warmup=warmup, num_steps=8)
    assert [schedule.factor(step, step) for step in range(8)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("preset, decays", [
    (["--method", "scan"], [15]), (["--dataset", "demo"], [6]), ([], [15, 25]),
])  # fmt: skip
def test_a_cosine_is_refused_for_decays_by_hand_but_not_for_those_of_a_preset(preset, decays):
    argv = [*preset, "--schedule", "cosine"]
    options = arguments.parse_training(arguments.training_parser(), argv)
    assert (options.schedule, options.lr_schedules) == ("cosine", decays)
    for given in ("--lr_schedules", "--decay_rate=0.1"):
        with pytest.raises(InputError, match=f"^{given.split('=')[0]}: has no effect with"):
            arguments.parse_training(arguments.training_parser(), [*argv, given])


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_the_rate_of_bert_has_a_factor(factor):
    model, objective, _ = setting()
    groups = optim.parameter_groups(model, objective, RATE, bert_lr_factor=factor)
    assert {group["name"]: group["lr"] for group in groups}["bert"] == RATE * factor


@pytest.mark.parametrize("grad_clip", [0.05, 1e6])
def test_a_step_is_adamw_on_the_gradient_clipped_over_all_parameters(grad_clip):
    model, objective, optimizer = setting(graph_lr_factor=3.0)
    twin_model, twin_objective = copy.deepcopy((model, objective))
    report = step(model, objective, optimizer, batch_of(), grad_clip=grad_clip)

    engine.seed_step(0, 0)
    batch = batch_of()
    total = twin_objective(*twin_model(batch), batch.image_ids, use_graph=True).total
    total.backward()
    names = [name for part in (twin_model, twin_objective) for name, _ in part.named_parameters()]
    twins = [parameter for part in (twin_model, twin_objective) for parameter in part.parameters()]
    ours = [parameter for part in (model, objective) for parameter in part.parameters()]
    norm = sum(float(parameter.grad.double().square().sum()) for parameter in twins) ** 0.5
    assert float(report.gradient_norm) == pytest.approx(norm, rel=1e-4) and norm > 0.05
    assert float(report.loss) == pytest.approx(float(total.detach()), rel=1e-5)
    clip = min(1.0, grad_clip / norm)
    for name, before, after in zip(names, twins, ours, strict=True):
        rate = RATE * (
            0.1 if ".bert." in name else 3 if name.startswith(("relations", "fusion")) else 1
        )
        gradient = clip * before.grad
        torch.testing.assert_close(after.grad, gradient, atol=1e-6, rtol=1e-3)
        is_clear = gradient.abs() > 1e-4 * clip  # near zero Adam's first step hangs on rounding
        expected = before * (1 - rate * 1e-4) - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after[is_clear], expected[is_clear], atol=1e-6, rtol=1e-4)
    assert (
        sum(float(parameter.grad.square().sum()) for parameter in ours) ** 0.5 <= grad_clip * 1.001
    )


@pytest.mark.parametrize("use_graph", [False, True])
def test_a_finite_step_changes_all_that_it_trains(use_graph):
    model, objective, optimizer = setting(dropout=0.1)
    step(model, objective, optimizer, batch_of(), use_graph=use_graph)
    before = everything(model, objective, optimizer)
    report = step(model, objective, optimizer, batch_of(1), 1, use_graph=use_graph)
    changed = differing(before, everything(model, objective, optimizer))
    assert report.is_finite and report.loss.isfinite() and report.gradient_norm > 0
    assert report.terms.keys() == (
        {"base", "cross", "graph", "regulariser"} if use_graph else {"base"}
    )
    assert not report.loss.requires_grad and not any(
        term.requires_grad for term in report.terms.values()
    )
    for name in (
        "model.image_encoder.projection.weight",
        "model.image_encoder.mlp.1.running_mean",
        "model.image_encoder.mlp.1.num_batches_tracked",
        "model.text_encoder.projection.weight",
        "model.text_encoder.bert.encoder.layer.0.intermediate.dense.weight",
    ):
        assert name in changed
    assert any(name.startswith("objective.") for name in changed) is use_graph


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("use_graph", [False, True])
def test_a_step_that_is_not_finite_changes_nothing(steps_before, use_graph):
    model, objective, optimizer = setting()
    for number in range(steps_before):
        assert step(model, objective, optimizer, batch_of(number), number, use_graph).is_finite
    before = everything(model, objective, optimizer)
    report = step(model, objective, optimizer, bad_batch(), 5, use_graph)
    assert not report.is_finite
    after = everything(model, objective, optimizer)
    if not steps_before:  # the optimiser's state is created, and holds nothing
        created = after.keys() - before.keys()
        assert created and not any(after.pop(name).any() for name in created)
    assert differing(before, after) == []
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_finite_loss_with_a_gradient_that_is_not_changes_nothing(value):
    model, objective, optimizer = setting()
    step(model, objective, optimizer, batch_of())
    before = everything(model, objective, optimizer)
    hook = model.image_encoder.projection.bias.register_hook(
        lambda gradient: torch.full_like(gradient, value)
    )
    report = step(model, objective, optimizer, batch_of(1), 1)
    assert report.loss.isfinite() and not report.is_finite
    assert differing(before, everything(model, objective, optimizer)) == []
    hook.remove()
    assert step(model, objective, optimizer, batch_of(1), 1).is_finite


def test_training_goes_on_after_a_step_that_was_not_finite_as_if_it_had_not_been():
    ours, theirs = setting(dropout=0.1), setting(dropout=0.1)
    for parts in (ours, theirs):
        step(*parts, batch_of(0), 0)
    step(*ours, bad_batch(), 1)
    for parts in (ours, theirs):
        step(*parts, batch_of(2), 2)
    assert differing(everything(*ours), everything(*theirs)) == []


def test_the_seed_of_a_step_depends_on_seed_and_step_alone():
    drawn = {}
    for seed, number in ((0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (0, 10**9)):
        engine.seed_step(seed, number)
        drawn[seed, number] = torch.rand(4).tolist()
        torch.rand(3)
        engine.seed_step(seed, number)
        assert torch.rand(4).tolist() == drawn[seed, number]
    assert len({tuple(values) for values in drawn.values()}) == len(drawn)


def train(parts, batches, first=0, warmup=2, seen=None, **options):
    settings = (
        dict(step=first, seed=0, warmup=warmup, hardest=False, grad_clip=2.0, device="cpu")
        | options
    )
    return engine.train_epoch(
        *parts, batches, on_step=seen or (lambda *arguments: None), **settings
    )


def test_an_epoch_may_be_cut_anywhere_and_the_graph_begins_at_its_step():
    batches = [batch_of(seed) for seed in range(4)]
    whole, parts, seen = setting(dropout=0.1), setting(dropout=0.1), []

    def on_step(*arguments):
        seen.append(arguments)
        whole[0].eval()  # a validation on the way

    assert train(whole, batches, seen=on_step) == 4
    torch.rand(5)
    assert train(parts, batches[:1]) == 1 and train(parts, batches[1:], first=1) == 4
    assert differing(everything(*whole), everything(*parts)) == []
    assert [done for done, *_ in seen] == [1, 2, 3, 4]
    assert ["graph" in report.terms for _, report, *_ in seen] == [False, False, True, True]
    assert all(0 <= waited <= in_all for *_, waited, in_all in seen)


def test_hardest_and_the_clip_reach_every_step():
    reports = []
    for hardest in (False, True):
        parts = setting(base_loss="vse", gnn_loss="vse")
        train(
            parts,
            [batch_of()],
            hardest=hardest,
            grad_clip=0.01,
            seen=lambda done, report, *times: reports.append(report),
        )
        clipped = sum(
            float(p.grad.square().sum()) for p in parameters_of(parts[2]) if p.grad is not None
        )
        assert clipped**0.5 == pytest.approx(0.01, rel=1e-3)
    assert reports[1].loss < reports[0].loss


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_trains_weights_of_float32(precision):
    parts, twins = (setting(base_loss="vse", gnn_loss="vse") for _ in range(2))
    report, exact = step(*parts, batch_of(), precision=precision), step(*twins, batch_of())
    assert report.is_finite
    assert all(
        parameter.dtype == parameter.grad.dtype == torch.float32
        for parameter in parameters_of(parts[2])
    )
    assert float(report.loss) == pytest.approx(float(exact.loss), rel=0.05)
    assert torch.equal(report.loss, exact.loss) is (precision != "bf16")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_matrix_products_use_tf32_only_where_it_is_asked_for_and_only_inside(precision):
    at_first = torch.get_float32_matmul_precision()
    try:
        for before in ("highest", "high"):
            torch.set_float32_matmul_precision(before)
            with pytest.raises(KeyError), engine.matrix_products(precision):
                assert torch.get_float32_matmul_precision() == (
                    "high" if precision == "tf32" else "highest"
                )
                raise KeyError
            assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(at_first)


def split_of(num_images=4, seed=0):
    """What the engine reads of a `RetrievalDataset`: blocks of images,
    and captions of many lengths."""
    draw = np.random.default_rng(seed)
    regions = torch.from_numpy(draw.standard_normal((num_images, 5, REGION_DIM), dtype=np.float32))
    ids = [draw.integers(1, VOCABULARY, length) for length in draw.integers(2, 12, 5 * num_images)]
    return SimpleNamespace(
        num_images=num_images,
        regions=regions,
        ids=ids,
        captions=SimpleNamespace(lengths=np.array([*map(len, ids)])),
        caption_images=np.arange(5 * num_images) // 5,
        image_block=lambda start, stop: (regions[start:stop], torch.full((stop - start,), 5)),
        caption_block=lambda which: pad_pieces([ids[caption] for caption in which]),
    )


@pytest.mark.parametrize("batch_size", [1, 3, 20, 128])
def test_encoding_by_blocks_is_encoding_one_by_one_in_the_files_order(batch_size):
    model, split = setting(dropout=0.5)[0], split_of()
    images = encoding.encode_images(model, split, "cpu", batch_size)
    captions = encoding.encode_captions(model, split, "cpu", batch_size)
    assert not model.training and not images.requires_grad and not captions.requires_grad
    for found, regions in zip(images, split.regions, strict=True):
        expected = model.image_encoder(regions[None], torch.tensor([5])).embedding[0]
        torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=0)
    for found, ids in zip(captions, split.ids, strict=True):
        expected = model.text_encoder(
            torch.from_numpy(ids)[None], torch.tensor([len(ids)])
        ).embedding[0]
        torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=0)


def test_similarities_are_the_dot_products_of_both_encodings():
    model, split = setting()[0], split_of()
    found = encoding.similarities(model, split, "cpu")
    expected = (
        encoding.encode_images(model, split, "cpu")
        @ encoding.encode_captions(model, split, "cpu").T
    )
    assert found.shape == (4, 20)
    np.testing.assert_allclose(found[:, :], expected.numpy(), atol=1e-6)
