"""Steps of several processes are those of one."""

from functools import partial

import pytest
import torch
from helpers import normal
from processes import in_processes
from published import golden, make_model, make_objective, small_bert, small_model, small_objective
from test_golden import golden_batch

from benchmarks.scaling import own_shard
from lib.system import distributed
from lib.training import engine, optim

STEPS, GRAPH_FROM, HARDEST_FROM = 6, 3, 4


def golden_batches():
    """The six golden batches."""
    data = golden("steps.npz")
    return [golden_batch(data, which, second_set=False) for which in range(STEPS)]


def golden_setting():
    """The golden model, its objective and six batches."""
    return small_model(), small_objective(5, base_loss="vse", gnn_loss="vse"), golden_batches()


def with_views(batch):
    """The batch with two views of each image, which see at least the first region."""
    count, longest = batch.regions.shape[:2]
    numbers = torch.arange(longest)
    views = (normal(count, 2, longest) > -0.8) & (numbers < batch.region_lengths[:, None, None])
    return batch._replace(views=views | (numbers == 0))


def tiny_setting(mask_padding=False, views=1, **options):
    """A model of little width, its objective, and the golden batches in a vocabulary of 90."""
    torch.manual_seed(0)
    reader = small_bert(vocab_size=90, hidden_size=24, num_attention_heads=3, intermediate_size=32)
    shared = dict(embed_size=16, nhead=4, dropout=0.0, mask_padding=int(mask_padding))
    model = make_model(reader, 48, **shared)
    batches = [batch._replace(pieces=batch.pieces % 90) for batch in golden_batches()]
    batches = [with_views(batch) for batch in batches] if views == 2 else batches
    return (
        model,
        make_objective(topk=5, **shared, **options),
        batches,
    )


def trajectory(setting):
    """Six steps. Returns losses, gradient norms, by step and name the gradients,
    and the weights in the end."""
    model, objective, batches = setting()
    optimizer = optim.build(model, objective, learning_rate=5e-4)
    replicas = distributed.wrap_ddp(engine.BatchLoss(model, objective))
    named = dict(model.named_parameters()) | dict(objective.named_parameters())
    reports, gradients = [], []

    def on_step(step, report, *times):
        reports.append(report)
        gradients.append(
            {name: value.grad.clone() for name, value in named.items() if value.grad is not None}
        )

    for which, batch in enumerate(batches):
        engine.train_epoch(
            model, objective, optimizer, [own_shard(batch)], step=which, seed=0, warmup=GRAPH_FROM,
            hardest=which >= HARDEST_FROM, grad_clip=2.0, device="cpu", on_step=on_step,
            replicas=replicas,
        )  # fmt: skip
    norm = model.image_encoder.mlp[1]
    weights = named | dict(
        mean=norm.running_mean, variance=norm.running_var, count=norm.num_batches_tracked
    )
    return dict(
        losses=torch.stack([report.loss for report in reports]),
        terms=[report.terms for report in reports],
        norms=torch.stack([report.gradient_norm for report in reports]),
        gradients=gradients,
        weights={name: value.detach() for name, value in weights.items()},
    )


def check_same_steps(size, setting):
    run = partial(trajectory, setting)
    alone, *found = run(), *in_processes(size, run)
    for several in found:
        for name in ("losses", "norms"):
            torch.testing.assert_close(several[name], alone[name], rtol=1e-4, atol=1e-6)
        assert [terms.keys() for terms in several["terms"]] == [
            terms.keys() for terms in alone["terms"]
        ]
        for step, (ours, theirs) in enumerate(zip(several["gradients"], alone["gradients"])):
            # before the graph takes part its parameters have none, and do not move
            assert ours.keys() == theirs.keys()
            for name in ours:
                difference, scale = (
                    (ours[name] - theirs[name]).abs().max(),
                    theirs[name].abs().max(),
                )
                assert difference < 1e-3 * scale + 1e-6, (step, name)
        for name, value in alone["weights"].items():
            largest = sum(step[name].abs() for step in alone["gradients"] if name in step)
            # Adam moves by its learning rate what has no gradient but rounding, as the biases of
            # attention's keys.
            is_rounding = torch.as_tensor((name == "mean") | (largest < 1e-5))
            difference, tolerance = (several["weights"][name] - value).abs(), 1e-3 * value.abs()
            assert (difference <= tolerance + torch.where(is_rounding, 4e-3, 1e-4)).all(), name
    for several in found[1:]:
        assert all(
            torch.equal(value, found[0]["weights"][name])
            for name, value in several["weights"].items()
        )


VARIANTS = {
    "hinges": dict(base_loss="vse", gnn_loss="vse"),
    "drawn negatives": dict(base_loss="trip", gnn_loss="trip"),
    "masked padding": dict(mask_padding=True),
    "contrastive, standalone, not normalised": dict(
        base_loss="infonce", gnn_loss="infonce", interaction="standalone", norm_input=False
    ),
    "intra alone": dict(relation="intra"),
    "no relevance": dict(relevance=0),
    "no graph": dict(interaction="none", base_loss="vse"),
    "two views": dict(base_loss="infonce+vse", gnn_loss="vse", views=2),
    "extra terms": dict(
        interaction="none", base_loss="infonce+vse", soft_labels=3.0, decorrelation=0.1,
        words=normal(90, 7),
    ),
}  # fmt: skip
QUICK = [
    ("hinges", 2),
    ("drawn negatives", 2),
    ("masked padding", 3),
    ("contrastive, standalone, not normalised", 2),
    ("two views", 3),
    ("extra terms", 2),
]


@pytest.mark.parametrize("name, size", QUICK)
def test_six_steps_are_those_of_one_process(name, size):
    check_same_steps(size, partial(tiny_setting, **VARIANTS[name]))


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_six_steps_are_those_of_one_process_with_any_options(size, options):
    check_same_steps(size, partial(tiny_setting, **options))


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 3])
def test_six_golden_steps_are_those_of_one_process(size):
    check_same_steps(size, golden_setting)
