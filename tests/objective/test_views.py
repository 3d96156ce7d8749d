"""Two views of each image: the losses against loops over anchors and views, what the objective
reads, and what is refused."""

import pytest
import torch
from helpers import fit, make_data, normal
from test_graph import batch_of, objective_of
from test_losses import check_gradients, close, naive_positives, pairs, unit_rows

import train
from lib.objective.losses import InfoNCE, find_positives, hinge_loss, worst_views

MARGIN = 0.2
IDS = [(0, [0, 1]), (1, [3, 1, 3, 2, 3]), (2, [*range(8)]), (4, [4]), (5, [6, 6])]


def leaves_of(seed, count):
    """Two views of images, and captions."""
    first, captions = pairs(count, seed)
    second = (first + unit_rows(count, 6, seed + 50)).detach().requires_grad_()
    return first, second, captions


def matrices(first, second, captions):
    return torch.stack([first @ captions.T, second @ captions.T])


def number(similarity):
    return similarity.item()


def anchors(similarities, is_positive):
    """(weight, similarity of the positive, those of the negatives) of each anchor: each view of an
    image counts half, and a caption has its worse views."""
    views, count = similarities, len(is_positive)
    for i in range(count):
        others = [j for j in range(count) if not is_positive[i][j]]
        for view in views:
            yield 0.5, view[i, i], [view[i, j] for j in others]
        yield (
            1.0,
            min(views[:, i, i], key=number),
            [max(views[:, j, i], key=number) for j in others],
        )


def naive_hinge(similarities, is_positive, negatives):
    total = torch.zeros((), dtype=torch.float64)
    for weight, own, others in anchors(similarities, is_positive):
        costs = [(MARGIN + other - own).clamp(min=0) for other in others]
        if costs:
            total = total + weight * (sum(costs) if negatives == "all" else max(costs))
    return total


def naive_infonce(similarities, is_positive, scale):
    total = 0
    for weight, own, others in anchors(similarities, is_positive):
        denominator = sum((scale * each).exp() for each in [own, *others])
        total = total + weight * (denominator.log() - scale * own)
    return total / (2 * len(is_positive))


@pytest.mark.parametrize("negatives", ["all", "hardest"])
@pytest.mark.parametrize("mask_repeat", [False, True])
@pytest.mark.parametrize("seed, ids", IDS)
def test_the_hinge_of_views_is_the_loop(seed, ids, mask_repeat, negatives):
    leaves, ids = leaves_of(seed, len(ids)), torch.tensor(ids)
    expected = naive_hinge(matrices(*leaves), naive_positives(ids, mask_repeat), negatives)
    similarities, positives = matrices(*leaves), find_positives(ids, mask_repeat)
    worst = worst_views(similarities)
    found = hinge_loss(similarities, positives, MARGIN, negatives, worst).mean()
    if expected.requires_grad:
        check_gradients(found, expected, leaves)
    else:
        close(found, 0)  # no anchor has a negative


@pytest.mark.parametrize("mask_repeat", [False, True])
@pytest.mark.parametrize("seed, ids", IDS)
def test_the_infonce_of_views_is_the_loop(seed, ids, mask_repeat):
    leaves, ids = leaves_of(seed, len(ids)), torch.tensor(ids)
    expected = naive_infonce(matrices(*leaves), naive_positives(ids, mask_repeat), 20.0)
    similarities, positives = matrices(*leaves), find_positives(ids, mask_repeat)
    infonce, worst = InfoNCE(0.05), worst_views(similarities)
    found = sum(infonce(each, positives, worst) for each in similarities) / 2
    check_gradients(found, expected, leaves)


@pytest.mark.parametrize("loss", ["vse", "infonce", "infonce+vse"])
@pytest.mark.parametrize("negatives", ["all", "hardest", "selective"])
def test_two_equal_views_are_one(loss, negatives):
    objective = objective_of(interaction="none", base_loss=loss, negatives=negatives)
    images, captions = batch_of(5, lengths=(9, 8, 7, 6, 5))
    totals = [
        objective(each, captions, torch.arange(5), use_graph=False, hardest=True).total
        for each in (images, images._replace(second_view=images.embedding + 0))
    ]
    close(totals[1], totals[0].detach(), absolute=1e-5)
    check = [torch.autograd.grad(total, captions.embedding, retain_graph=True) for total in totals]
    close(check[1][0], check[0][0], absolute=1e-5)


def test_a_worse_view_makes_the_base_loss_larger_and_no_other_term():
    objective = objective_of(topk=4, base_loss="infonce", gnn_loss="vse", decorrelation=0.1)
    images, captions = batch_of(5, lengths=(9, 8, 7, 6, 5))
    worse = images._replace(second_view=torch.nn.functional.normalize(normal(5, 16, seed=9), dim=1))
    one, two = (
        objective(each, captions, torch.arange(5), use_graph=True, hardest=True).terms
        for each in (images, worse)
    )
    assert {name for name in one if one[name] != two[name]} == {"base"}
    assert one.keys() == two.keys() > {"graph", "decorrelation"}


def test_a_caption_has_the_worse_view_of_its_image_and_the_closer_one_of_others():
    views = torch.tensor([[[0.9, 0.1], [0.2, 0.3]], [[0.5, 0.4], [0.0, 0.8]]])
    close(worst_views(views), [[0.5, 0.4], [0.2, 0.3]])
    loss = hinge_loss(views, find_positives(torch.arange(2)), 0.2, "hardest", worst_views(views))
    # images: (0 + 0.1) / 2 + (0.1 + 0) / 2; captions: 0 and 0.3
    close(loss.mean(), 0.1 + 0.3, absolute=1e-6)


OPTIONS = (
    "--dataset demo --num_epochs 1 --batch_size 30 --embed_size 16 --nhead 2 --workers 0 "
    "--save_results 0 --log_step 1 --warmup 2 --views 2"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=24, dev=10, test=10)  # four steps


def test_a_run_with_two_views_trains_with_the_graph(data, tmp_path):
    folder = fit(OPTIONS, data, tmp_path / "run", "--base_loss", "infonce+vse")
    log = (folder / "train.txt").read_text()
    assert "graph " in log.splitlines()[-1] and "skipped" not in log


@pytest.mark.parametrize("given, expected", [
    ("", ["--views 2", "--base_loss trip", "--base_loss vse"]),
    ("--base_loss vse --size_augment 0", ["--views 2", "--size_augment 0"]),
    ("--method scan --size_augment 1", ["--views 2", "--similarity scan"]),
])  # fmt: skip
def test_what_cannot_have_views_is_refused(data, tmp_path, refusal, given, expected):
    refusal(
        train.main, *OPTIONS, *given.split(), "--data_path", data, "--logger_name", tmp_path / "r",
        expected=expected,
    )  # fmt: skip
    assert not (tmp_path / "r").exists()
