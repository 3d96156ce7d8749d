"""How a run is put together: three epochs of a COCO-like folder with options of its own,
step by step.

Every training step is recorded as `engine.training_step` is called; what the options must do to it
is stated here.
"""

import copy
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import fit, make_data, read, same

from lib.evaluation import encoding, metrics
from lib.objective.options import ObjectiveOptions
from lib.system import run_folder
from lib.training import engine

EPOCHS, STEPS, LOG_STEP, WARMUP = 3, 6, 4, 5  # steps of an epoch
# the learning rate, and what those of BERT and of the graph are times it
RATE, BERT, GRAPH = 0.002, 0.1, 3.0
OPTIONS = (
    f"--dataset coco_mini --num_epochs {EPOCHS} --batch_size 20 --embed_size 16 --nhead 2 "
    f"--workers 0 --warmup {WARMUP} --log_step {LOG_STEP} --learning_rate {RATE} --lr_schedules 1 "
    f"2 --decay_rate 0.5 --graph_lr_factor {GRAPH} --base_loss vse --gnn_loss trip "
    "--vse_mean_warmup_epochs 1 --dropout 0.3 --margin 0.3 --mask_weight 1.5 --threshold 0.4 "
    "--topk 6 --reg_loss_weight 7 --num_layers_enc 2 --mask_repeat 0 --norm_input 0 --distance "
    "l2sq --grad_clip 0.7 --residual_weight 0.6"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The demo data as a folder of COCO's kind, with as many regions an image as there are,
    20 to 36."""
    folder = make_data(tmp_path_factory, train=24, dev=10, test=10)
    (folder / "demo_precomp").rename(folder / "coco_mini_precomp")
    for path in list((folder / "coco_mini_precomp").glob("test_*")):
        shutil.copy(path, path.with_name(path.name.replace("test_", "testall_")))
    counts = np.random.default_rng(0).integers(20, 37, 24)
    np.save(folder / "coco_mini_precomp" / "train_num_regions.npy", counts)
    return folder


def run(data, folder, *more):
    """Train into `folder`. Returns what was recorded of every step,
    and the module of the last one."""
    steps, compute = [], engine.training_step

    def training_step(model, objective, optimizer, batch, **settings):
        before = copy.deepcopy(model.state_dict()) if not steps else None
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        noise = torch.random.get_rng_state()
        report = compute(model, objective, optimizer, batch, **settings)
        steps.append(SimpleNamespace(
            batch=copy.deepcopy(batch), settings=settings, rates=rates, report=report, noise=noise,
            before=before, model=model, objective=objective,
        ))  # fmt: skip
        return report

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "training_step", training_step)
        bert = data / "coco_mini_precomp" / "bert"
        fit(OPTIONS, data, folder, "--bert_path", bert, *more)
    return steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "seed0"


@pytest.fixture(scope="module")
def steps(data, folder):
    return run(data, folder)


@pytest.fixture(scope="module")
def of_seed_1(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("runs") / "seed1", "--seed", "1", "--num_epochs", "2")


def epochs(steps):
    return [steps[start : start + STEPS] for start in range(0, len(steps), STEPS)]


def order(steps):
    """The images of each batch of an epoch; inside a batch the lengths of captions,
    which vary, decide the order."""
    return [sorted(step.batch.image_ids.tolist()) for step in steps]


def shown(steps, image, of):
    """What an epoch shows of an image, once for each of its captions,
    in an order that says nothing."""
    found = []
    for step in steps:
        for row in np.flatnonzero(step.batch.image_ids == image):
            found.append(of(step.batch, row))
    return sorted(found)


def regions_of(batch, row):
    return batch.regions[row, : batch.region_lengths[row]].flatten().tolist()


def words_of(batch, row):
    return batch.pieces[row, : batch.piece_lengths[row]].tolist()


def share_changed(left, right, of):
    """How many of the images one epoch shows in another way than another."""
    return np.mean([shown(left, image, of) != shown(right, image, of) for image in range(24)])


# The schedule


def test_every_step_has_the_settings_of_its_epoch(steps):
    assert len(steps) == EPOCHS * STEPS
    for number, step in enumerate(steps):
        epoch = number // STEPS
        assert step.settings["use_graph"] is (number >= WARMUP)
        assert step.settings["hardest"] is (epoch >= 1)
        assert step.settings["grad_clip"] == 0.7 and step.settings["precision"] == "fp32"
        rate = RATE * 0.5**epoch
        assert step.rates == pytest.approx(
            {"encoders": rate, "bert": BERT * rate, "relations": GRAPH * rate}
        )
        assert step.report.is_finite


def test_the_options_reach_the_objective(steps):
    objective, model = steps[0].objective, steps[0].model
    assert objective.options == ObjectiveOptions(
        base_loss="vse", gnn_loss="trip", margin=0.3, longest_distance=1.9, mask_repeat=0,
        norm_input=0, cross_loss=1, reg_loss_weight=7.0, interaction="fusion",
        distance="l2sq", num_layers_enc=2, mask_weight=1.5, threshold=0.4, topk=6,
    )  # fmt: skip
    assert objective.pieces_read == 6
    relations, fusion = objective.relations, objective.fusion
    assert (relations.threshold, relations.distance, relations.cross_modal.topk) == (0.4, "l2sq", 6)
    assert fusion.mask_weight == 1.5 and len(fusion.layers) == 2
    dropped = {
        module.p
        for part in (model.image_encoder, fusion)
        for module in part.modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert dropped == {0.3}
    assert {layer.self_attn.dropout for layer in fusion.layers} == {0.3}
    assert {layer.self_attn.num_heads for layer in fusion.layers} == {2}


def test_precision_and_hardest_negatives_reach_every_step(data, tmp_path):
    found = run(
        data, tmp_path / "run", "--precision", "bf16", "--max_violation", "--num_epochs", "1"
    )
    assert {(step.settings["precision"], step.settings["hardest"]) for step in found} == {
        ("bf16", True)
    }


def test_terms_join_with_the_graph(steps):
    for step in steps:
        expected = (
            {"base", "cross", "graph", "regulariser"} if step.settings["use_graph"] else {"base"}
        )
        assert step.report.terms.keys() == expected


# Order, dropped regions, altered words


def test_every_epoch_shows_every_pair_once_in_another_order(steps):
    orders = [order(epoch) for epoch in epochs(steps)]
    assert all(sorted(sum(found, [])) == sorted(5 * list(range(24))) for found in orders)
    assert len(set(map(str, orders))) == EPOCHS


@pytest.mark.parametrize("of, least", [(regions_of, 0.99), (words_of, 0.5)])
def test_every_epoch_drops_other_regions_and_alters_other_words(steps, of, least):
    first, second, third = epochs(steps)
    for left, right in ((first, second), (first, third), (second, third)):
        assert share_changed(left, right, of) > least


def test_without_size_augment_all_regions_are_shown_and_words_still_altered(data, steps, tmp_path):
    found = run(data, tmp_path / "run", "--size_augment", "0", "--num_epochs", "2")
    first, second = epochs(found)
    counts = np.load(data / "coco_mini_precomp" / "train_num_regions.npy")
    for step in found:
        np.testing.assert_array_equal(step.batch.region_lengths, counts[step.batch.image_ids])
    assert (
        share_changed(first, second, regions_of) == 0
        and share_changed(first, second, words_of) > 0.5
    )
    dropped = [step.batch.region_lengths.numpy() < counts[step.batch.image_ids] for step in steps]
    assert np.mean(np.concatenate(dropped)) > 0.9


# The seed


def test_the_seed_decides_all_that_is_random(steps, of_seed_1):
    ours, theirs = epochs(steps)[:2], epochs(of_seed_1)
    before = [found[0].before["image_encoder.projection.weight"] for found in (steps, of_seed_1)]
    assert not torch.equal(*before)
    noise = {
        step.noise.numpy().tobytes() for found in (steps[: 2 * STEPS], of_seed_1) for step in found
    }
    assert len(noise) == 4 * STEPS  # dropout and drawn negatives: of each step of each seed its own
    for left in ours:
        for right in theirs:  # of another epoch too: seed 1 is not seed 0 an epoch later
            assert order(left) != order(right)
            assert (
                share_changed(left, right, regions_of) > 0.99
                and share_changed(left, right, words_of) > 0.5
            )


def test_the_same_seed_repeats_all_of_it(data, steps, tmp_path):
    again = run(data, tmp_path / "run", "--num_epochs", "1")
    assert same(again[0].before, steps[0].before)
    for left, right in zip(again, steps):
        assert same(tuple(left.batch), tuple(right.batch)) and torch.equal(left.noise, right.noise)
        assert torch.equal(left.report.loss, right.report.loss)


# The log


def logged(folder):
    """Step -> the numbers of its line in train.txt."""
    found = {}
    for line in (folder / "train.txt").read_text().splitlines():
        if match := re.match(r"epoch \d+ step (\d+): (.*)", line):
            found[int(match[1])] = {
                name: float(value) for name, value in re.findall(r"(\w+) (-?[\d.]+)", match[2])
            }
    return found


def test_a_line_of_the_log_is_the_mean_of_its_steps_and_a_term_of_those_that_have_it(folder, steps):
    lines, first = logged(folder), 0
    assert list(lines) == [4, 6, 10, 12, 16, 18]
    for last, numbers in lines.items():
        some = steps[first:last]
        assert numbers["loss"] == pytest.approx(
            np.mean([float(step.report.loss) for step in some]), rel=1e-3
        )
        norms = [float(step.report.gradient_norm) for step in some]
        assert numbers["gradient"] == pytest.approx(np.mean(norms), rel=1e-3)
        for term in ("base", "cross", "graph", "regulariser"):
            values = [float(step.report.terms[term]) for step in some if term in step.report.terms]
            assert (term in numbers) is bool(values)
            if values:
                assert numbers[term] == pytest.approx(np.mean(values), rel=1e-3, abs=1e-4)
        first = last
    # the line of step 6 has both kinds of steps
    assert WARMUP < 6 and "graph" in lines[6] and "graph" not in lines[4]


# Which model is reported


@pytest.fixture(scope="module")
def judged(data, tmp_path_factory):
    """A run whose validations are the same twice, and then worse: its folder,
    and the models that were evaluated."""
    folder, evaluated, compute = tmp_path_factory.mktemp("runs") / "run", [], encoding.similarities

    def similarities(model, dataset, *more):
        evaluated.append((dataset.split, copy.deepcopy(model.state_dict())))
        found = compute(model, dataset, *more)
        if dataset.split == "dev":
            found = copy.copy(found)
            found.images, found.captions = torch.eye(10), torch.eye(10).repeat_interleave(5, dim=0)
            if len(evaluated) == EPOCHS:
                found.captions = found.captions.roll(5, dims=0)
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoding, "similarities", similarities)
        run(data, folder)
    return folder, evaluated


def test_the_first_of_the_best_validations_is_kept_and_reported(judged, data):
    folder, evaluated = judged
    assert [split for split, _ in evaluated] == ["dev"] * EPOCHS + ["testall"]
    first, second, last, reported = (state for _, state in evaluated)
    assert not same(first, second) and not same(second, last)
    assert same(reported, first) and same(read(folder)["model"], first)
    assert same(read(folder, run_folder.LAST)["model"], last)
    assert read(folder)["epoch"] == 1 and read(folder)["best_rsum"] == 600
    text = (folder / "eval.txt").read_text()
    assert [float(rsum) for rsum in re.findall(r"dev: .*rsum (\d+\.\d)", text)] == [600, 600, 160]
    assert re.findall(r"^epoch (\d) .*best so far", text, flags=re.MULTILINE) == ["0"]
    assert "(after 1 epochs)" in (folder / "testall.md").read_text()


def test_the_table_is_that_of_the_reported_model(judged):
    folder = judged[0]
    sims = np.load(folder / "results_coco_mini.npy", allow_pickle=True)["sims"]
    scores = json.loads((folder / "metrics.json").read_text())["testall"]["scores"]
    whole = metrics.scores(metrics.ranks(sims))
    folds = metrics.fold_scores(sims)
    assert sorted(table["rsum"] for table in scores.values()) == pytest.approx(
        sorted([whole.rsum, folds.rsum])
    )
