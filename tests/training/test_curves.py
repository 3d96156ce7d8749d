"""What validations leave beside scalars: pictures of the graph, histograms of similarities,
the table at the end."""

import re
import shutil
from functools import partial

import helpers
import numpy as np
import pytest
import torch
from helpers import events, make_data, read, shared
from pages import read_png
from test_resume import Stopped, stop_at_step

import arguments
import graph_lib
from lib.data.batches import Batch
from lib.evaluation import metrics, tiles
from lib.model import checkpoint, network
from lib.system import images, run_folder
from lib.training import engine, logs, reporting, run_parts, validations

OPTIONS = (
    "--dataset demo --num_epochs 2 --batch_size 30 --embed_size 32 --nhead 2 --warmup 8 "
    "--log_step 4 --val_step 5 --save_results 0 --learning_rate 0.002 --workers 0 --save_step 3 "
    "--topk 20"
).split()
VALIDATED = [5, 10, 15, 20]
PICTURES = ("graph/connection", "graph/relevance")
HISTOGRAMS = ("similarity/true", "similarity/hardest_captions", "similarity/hardest_images")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=60, dev=12, test=10)


fit = partial(helpers.fit, OPTIONS)


@pytest.fixture(scope="module")
def drawn():
    """What every validation found while `run` was trained: step -> (similarities, relations)."""
    return {}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory, drawn):
    """A finished run; tests leave it as it is."""
    with pytest.MonkeyPatch.context() as patched:
        keep, draw = drawn, reporting.log_pictures

        def note(state, similarities):
            draw(state, similarities)
            keep[state.step] = similarities[:, :], directly(state)

        patched.setattr(reporting, "log_pictures", note)
        return shared(fit(data, tmp_path_factory.mktemp("run") / "run"))


@torch.no_grad()
def directly(state):
    """Connection and relevance of the 12 images of dev with their first captions,
    put in place pair by pair."""
    split = state.data.validation
    captions = sorted(range(0, 60, 5), key=lambda caption: -split.captions.lengths[caption])
    images = torch.tensor(captions) // 5
    regions, region_lengths = split.image_block(0, 12)
    pieces, piece_lengths = split.caption_block(captions)
    batch = Batch(regions[images], region_lengths[images], pieces, piece_lengths, images)
    model = state.model.eval()
    relations = state.objective.relations(*model(batch, least_pieces=state.objective.pieces_read))
    matrices = torch.zeros(2, 24, 24)
    for (top, left), block in zip(((0, 0), (0, 12), (12, 0), (12, 12)), relations):
        for row in range(12):
            for column in range(12):
                at = top + int(images[row]), left + int(images[column])
                matrices[0][at], matrices[1][at] = (
                    block.connection[row, column],
                    block.relevance[row, column],
                )
    return matrices.numpy()


def test_the_graph_is_drawn_once_it_takes_part(run):
    found = events(run)
    assert set(found.Tags()["images"]) == set(PICTURES)
    for name in PICTURES:
        assert [image.step for image in found.Images(name)] == [10, 15, 20]
        assert {(image.height, image.width) for image in found.Images(name)} == {(24, 24)}


def test_pictures_hold_the_relations(run, drawn):
    found = events(run)
    scale = {
        end: {one.step: one.value for one in found.Scalars(f"graph/relevance_{end}")}
        for end in ("lowest", "highest")
    }
    for connection, relevance in zip(*(found.Images(name) for name in PICTURES)):
        is_connected, expected = drawn[connection.step][1]
        np.testing.assert_array_equal(read_png(connection.encoded_image_string), 255 * is_connected)
        assert 0 < is_connected.mean() < 1
        pixels = read_png(relevance.encoded_image_string).astype(float)
        low, high = scale["lowest"][relevance.step], scale["highest"][relevance.step]
        assert (low, high) == pytest.approx((expected.min(), expected.max()), abs=1e-5)
        np.testing.assert_allclose(pixels, 255 * (expected - low) / (high - low), atol=0.51)
        assert (
            pixels.min() == 0
            and pixels.max() == 255
            and (relevance.height, relevance.width) == (24, 24)
        )


def naive_pairs(similarities):
    """True pairs and hardest negatives by loops."""
    images, captions = similarities.shape
    true = [similarities[caption // 5, caption] for caption in range(captions)]
    of_images = [
        max(similarities[i, c] for c in range(captions) if c // 5 != i) for i in range(images)
    ]
    of_captions = [
        max(similarities[i, c] for i in range(images) if i != c // 5) for c in range(captions)
    ]
    return true, of_images, of_captions


@pytest.mark.parametrize("num_images, tile", [(2, 250), (7, 3), (6, 3), (5, 1)])
def test_pairs_and_hardest_negatives_by_loops(monkeypatch, num_images, tile):
    monkeypatch.setattr(tiles, "TILE_IMAGES", tile)
    similarities = (
        np.random.default_rng(num_images)
        .normal(size=(num_images, 5 * num_images))
        .astype(np.float32)
    )
    before = similarities.copy()
    for found, expected in zip(metrics.pair_similarities(similarities), naive_pairs(similarities)):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(similarities, before)


def test_one_image_has_no_negatives(tmp_path):
    found = metrics.pair_similarities(np.arange(5, dtype=np.float32)[None])
    np.testing.assert_array_equal(found.true, np.arange(5))
    assert np.isneginf(found.hardest_captions).all() and np.isneginf(found.hardest_images).all()
    logs.RunLog(tmp_path).histograms(found._asdict(), 3)
    assert events(tmp_path).Tags()["histograms"] == ["true"]


def test_histograms_hold_every_pair(run, drawn):
    found = events(run)
    assert set(found.Tags()["histograms"]) == set(HISTOGRAMS)
    for name, position, count in zip(HISTOGRAMS, range(3), (60, 12, 60)):
        points = found.Histograms(name)
        assert [point.step for point in points] == VALIDATED
        for point in points:
            values, told = (
                np.ravel(naive_pairs(drawn[point.step][0])[position]),
                point.histogram_value,
            )
            assert told.num == sum(told.bucket) == len(values) == count
            assert (told.min, told.max, told.sum, told.sum_squares) == pytest.approx(
                (values.min(), values.max(), values.sum(), np.square(values).sum()), rel=1e-5
            )
            limits = np.array(told.bucket_limit)
            below = [(values.astype(float) < limit - 1e-6).sum() for limit in limits]
            beneath = [(values.astype(float) < limit + 1e-6).sum() for limit in limits]
            assert all(a <= b <= c for a, b, c in zip(below, np.cumsum(told.bucket), beneath))


@pytest.mark.parametrize("options", ["--interaction none", "--warmup 11"])
def test_without_a_graph_nothing_is_drawn_of_it(data, tmp_path, options):
    found = events(fit(data, tmp_path / "run", "--num_epochs", "1", *options.split())).Tags()
    assert found["images"] == [] and set(found["histograms"]) == set(HISTOGRAMS)
    assert not any(name.startswith("graph/") for name in found["scalars"])


@pytest.mark.parametrize("options", [
    "--interaction standalone --relation inter --mask_padding 1", "--relation intra",
    "--relevance 0 --connection 0",
    "--text_encoder bigru --word_dim 16",
], ids=lambda options: options)  # fmt: skip
def test_other_graphs_are_drawn(data, tmp_path, options):
    found = events(
        fit(data, tmp_path / "run", "--num_epochs", "1", "--warmup", "0", *options.split())
    )
    connection, relevance = (
        read_png(found.Images(name)[-1].encoded_image_string) for name in PICTURES
    )
    own = np.kron(np.eye(2), np.ones((12, 12))).astype(bool)  # the blocks within a modality
    if "inter" in options.split():
        assert not connection[own].any() and connection[~own].any()
    if "intra" in options.split():
        assert connection[own].any() and not connection[~own].any()
    assert relevance.any() == ("--relevance" not in options) and set(np.unique(connection)) <= {
        0,
        255,
    }
    assert (connection == 255).all() == ("--connection" in options)


def test_at_most_64_pairs_and_no_more_than_a_batch_are_drawn(data, tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "MOST_DRAWN", 7)
    assert events(fit(data, tmp_path / "a", "--num_epochs", "1")).Images(PICTURES[0])[0].width == 14
    monkeypatch.undo()
    found = events(fit(data, tmp_path / "b", "--num_epochs", "1", "--batch_size", "10"))
    assert {image.width for image in found.Images(PICTURES[0])} == {
        20
    } and reporting.MOST_DRAWN == 64


def test_drawing_changes_nothing_of_a_run(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "log_pictures", lambda state, similarities: None)
    plain = fit(data, tmp_path / "run")
    for name in (run_folder.LAST, run_folder.BEST):
        ours, theirs = (read(folder, name) for folder in (run, plain))
        for part in ("model", "objective"):
            assert ours[part].keys() == theirs[part].keys()
            assert all(torch.equal(ours[part][key], theirs[part][key]) for key in ours[part])
    for name in ("train.txt", "eval.txt"):
        assert (run / name).read_text() == (plain / name).read_text().replace(str(plain), str(run))


def test_drawing_draws_no_random_number(data, run, monkeypatch):
    parser = arguments.training_parser()
    argv = [*OPTIONS, "--data_path", str(data), "--logger_name", str(run)]
    (options,) = arguments.runs(arguments.parse_training(parser, argv))
    run_parts.choose_conventions(options, {})
    split, objective = (
        run_parts.open_data(options, options.bert_path).validation,
        run_parts.build_objective(options),
    )
    model = network.load_model(
        run / run_folder.BEST, checkpoint.load(run / run_folder.BEST), options.bert_path, 128, "cpu"
    )
    model.train()
    before = (
        torch.get_rng_state(),
        {name: value.clone() for name, value in model.state_dict().items()},
    )
    found = graph_lib.relation_matrices(model, objective, split, 5, "cpu")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())
    assert found.relevance.shape == (10, 10) and not found.relevance.requires_grad


def test_pictures_and_histograms_are_not_doubled_by_resuming(run, data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at_step(patched, 11)  # saved at step 9: the validation at step 10 comes again
        with pytest.raises(Stopped):
            fit(data, folder)
    fit(data, folder, "--resume", "auto")
    ours, theirs = events(folder), events(run)
    for name in PICTURES:
        read = [
            [(one.step, one.encoded_image_string) for one in found.Images(name)]
            for found in (ours, theirs)
        ]
        assert read[0] == read[1]
    for name in HISTOGRAMS:
        read = [
            [(one.step, one.histogram_value) for one in found.Histograms(name)]
            for found in (ours, theirs)
        ]
        assert read[0] == read[1]
    assert (folder / "eval.txt").read_text() == (run / "eval.txt").read_text()


def test_nothing_is_computed_without_tensorboard_logger(data, tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "TensorBoard", None)
    monkeypatch.setattr(logs, "WHY_NO_TENSORBOARD", "none here", raising=False)
    monkeypatch.setattr(metrics, "pair_similarities", None)
    folder = fit(data, tmp_path / "run", "--num_epochs", "1")
    log = logs.RunLog(tmp_path / "other")
    log.images({"a": np.zeros((2, 2, 1), np.uint8)}, 1)
    log.histograms({"a": np.zeros(3)}, 1)
    assert (folder / "test.md").exists() and not [
        *folder.glob("events*"),
        *(tmp_path / "other").glob("events*"),
    ]


def test_without_pillow_images_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logs, "can_encode", lambda: False)
    monkeypatch.setattr(logs, "encode_png", None)
    log = logs.RunLog(tmp_path)
    assert "TensorBoard images are not written" in capsys.readouterr().out
    log.images({"a": np.zeros((2, 2, 1), np.uint8)}, 1)
    log.scalars({"b": 1.0}, 1)
    log.tensorboard._writer.close()
    assert events(tmp_path).Tags()["images"] == []


def test_greys_and_colours_go_into_a_png():
    values = np.array([[0.5, -1.0], [0.0, 1.0], [-0.5, 0.25]])
    pixels = images.to_grey(values)
    np.testing.assert_array_equal(pixels[..., 0], [[191, 0], [128, 255], [64, 159]])
    np.testing.assert_array_equal(read_png(images.encode_png(pixels)), pixels[..., 0])
    assert not images.to_grey(np.ones((2, 2))).any()
    colours = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(read_png(images.encode_png(colours)), colours)


def test_training_goes_on_in_training_mode(monkeypatch):
    """The step after a validation has dropout again, in the graph too."""
    model, objective = torch.nn.Dropout(), torch.nn.Dropout()
    modes = []
    monkeypatch.setattr(
        engine,
        "training_step",
        lambda *given, **settings: modes.append((given[0].training, given[1].training)),
    )
    engine.train_epoch(
        model, objective, None, [torch.zeros(1)] * 3, step=0, seed=0, warmup=0, hardest=False,
        grad_clip=1.0, device="cpu", on_step=lambda *told: (model.eval(), objective.eval()),
    )  # fmt: skip
    assert modes == [(True, True)] * 3


def table(folder):
    """The table of validations in eval.txt: its lines' cells."""
    lines = (
        (folder / "eval.txt").read_text().split("validations; ")[1].split("\n\n")[1].splitlines()
    )
    assert len({len(line) for line in lines}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_has_a_row_for_each_validation(run):
    text = (run / "eval.txt").read_text()
    header, rule, *rows = table(run)
    assert header == ["epoch", "step", "I2T R@1", "R@5", "R@10", "T2I R@1", "R@5", "R@10", "rsum"]
    assert all(re.fullmatch("-+:", cell) for cell in rule)
    told = [line for line in text.splitlines() if line.startswith("epoch")]
    expected = [[*re.findall(r"(?:^epoch|step|R@\d+|rsum) ([\d.]+)", line)] for line in told]
    assert [[row[0].removeprefix("* "), *row[1:]] for row in rows] == expected and [
        int(row[1]) for row in rows
    ] == VALIDATED
    (best,) = (number for number, row in enumerate(rows) if row[0].startswith("* "))
    assert best == max(number for number, line in enumerate(told) if line.endswith("(best so far)"))
    saved = read(run)
    assert int(rows[best][1]) == saved["step"] and float(rows[best][-1]) == pytest.approx(
        saved["best_rsum"], abs=0.051
    )
    assert text.index("demo, split dev: 4 validations") < text.index("demo, split test")
    assert "validations" not in (run / "test.md").read_text()


def test_the_table_is_printed(run, data, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    fit(data, folder, "--resume", "auto")
    printed = capsys.readouterr().out
    assert "\n".join((run / "eval.txt").read_text().splitlines()[4:]) in printed
    assert (folder / "eval.txt").read_text() == (run / "eval.txt").read_text()


def test_a_later_validation_of_the_same_rounded_rsum_is_the_best():
    recalls = [10.0] * 6
    found = [validations.Validation(n, 5 * n, "dev", recalls, 60.0, n in (0, 2)) for n in range(4)]
    averaged = found[2]._replace(is_average=True)
    assert "| * 2 averaged |   10 |" in validations.markdown_of_validations([averaged])
    starred = [
        line for line in validations.markdown_of_validations(found).splitlines() if "*" in line
    ]
    assert starred == ["|   * 2 |   10 |    10.0 | 10.0 | 10.0 |    10.0 | 10.0 | 10.0 | 60.0 |"]
    assert "*" not in validations.markdown_of_validations(
        [one._replace(is_best=False) for one in found]
    )


def test_validations_are_read_from_the_log(tmp_path):
    assert validations.read_validations(tmp_path) == []
    (tmp_path / "eval.txt").write_text(
        "epoch 3 step 40 dev: image to text R@1 1.0 R@5 2.5 R@10 3.0 median 7 mean 8.5; text to "
        "image R@1 4.0 R@5 5.0 R@10 6.5 median 9 mean 9.9; rsum 22.0 (best so far)\n\nanother "
        "line\n| 5 | 1.0 |\nepoch 4 step 50 dev: image"
    )
    assert validations.read_validations(tmp_path) == [
        validations.Validation(3, 40, "dev", [1.0, 2.5, 3.0, 4.0, 5.0, 6.5], 22.0, True)
    ]


def test_a_run_that_goes_on_elsewhere_without_a_validation_has_no_table(run, data, tmp_path):
    folder = fit(data, tmp_path / "second", "--resume", str(run))
    assert "validations" not in (folder / "eval.txt").read_text() and (folder / "test.md").exists()
