"""Bootstrap intervals against loops over samples and images, and eval.py --bootstrap."""

import json

import numpy as np
import pytest
from damage import OPTIONS

import eval as evaluation
import train
from lib.data import demo
from lib.evaluation import bootstrap, metrics
from lib.evaluation.bootstrap import compare, hits, intervals


def matrix(num_images, seed):
    """Similarities (N, 5N) of a model that knows something."""
    noise = np.random.default_rng(seed).standard_normal((num_images, 5 * num_images))
    return (noise + 2 * np.eye(num_images).repeat(5, axis=1)).astype(np.float32)


def naive_table(similarities, images):
    """The seven numbers of a table over the queries of `images` (with repetitions),
    ranks against everything."""
    hit = np.zeros(6)
    for image in images:
        order = np.argsort(-similarities[image], kind="stable")
        best = min(list(order).index(5 * image + which) for which in range(5))
        hit[:3] += [best < k for k in (1, 5, 10)]
        for caption in range(5 * image, 5 * image + 5):
            rank = list(np.argsort(-similarities[:, caption], kind="stable")).index(image)
            hit[3:] += [(rank < k) / 5 for k in (1, 5, 10)]
    hit *= 100 / len(images)
    return [*hit, hit.sum()]


def table(scores):
    return [*scores.image_to_text[:3], *scores.text_to_image[:3], scores.rsum]


def test_the_mean_of_the_hits_is_the_table():
    similarities = matrix(12, seed=0)
    found = hits(similarities)
    assert found.shape == (12, 6)
    np.testing.assert_allclose(
        [*found.mean(0), found.mean(0).sum()], naive_table(similarities, range(12))
    )
    np.testing.assert_allclose(
        found.mean(0), table(metrics.scores(metrics.ranks(similarities)))[:6]
    )


def test_the_mean_of_the_hits_of_folds_is_the_mean_table():
    similarities = matrix(12, seed=1)
    expected = table(metrics.fold_scores(similarities, 3))
    np.testing.assert_allclose(hits(similarities, 3).mean(0), expected[:6])
    assert not np.allclose(hits(similarities).mean(0), expected[:6])


@pytest.mark.parametrize("samples", [1, 7, 100, 250])
def test_intervals_are_the_loop_over_samples(samples):
    similarities = matrix(9, seed=2)
    generator = np.random.default_rng(5)
    tables = []
    for _ in range(samples):
        counts = generator.multinomial(9, [1 / 9] * 9)
        tables.append(naive_table(similarities, np.arange(9).repeat(counts)))
    found = intervals(hits(similarities), samples, seed=5)
    assert list(found) == ["i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum"]
    for column, (one, expected) in enumerate(
        zip(found.values(), naive_table(similarities, range(9)))
    ):
        drawn = sorted(table[column] for table in tables)
        assert one.value == pytest.approx(expected)
        assert one.low == pytest.approx(np.percentile(drawn, 2.5))
        assert one.high == pytest.approx(np.percentile(drawn, 97.5))


def test_intervals_have_the_width_of_theory():
    """R@1 of independent queries: about 1.96 standard errors on either side."""
    per_image = np.zeros((400, 6))
    per_image[:100] = 100
    found = intervals(per_image, 4000)["i2t_r1"]
    error = 100 * np.sqrt(0.25 * 0.75 / 400)
    assert found.value == 25
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.1)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.1)


def test_the_seed_decides_and_how_samples_are_cut_does_not(monkeypatch):
    per_image = hits(matrix(10, seed=3))
    first = intervals(per_image, 150)
    assert intervals(per_image, 150) == first and intervals(per_image, 150, seed=1) != first
    monkeypatch.setattr(bootstrap, "SAMPLES_PER_BLOCK", 7)
    assert intervals(per_image, 150) == first


def test_two_models_are_compared_on_the_same_samples():
    first, second = matrix(15, seed=4), matrix(15, seed=5)
    mean = (first + second) / 2
    found = compare([first, second], mean, {"15": 1}, 200)
    assert list(found) == ["15", "15, model 1", "15, model 2", "15, model 1 - model 2"]
    assert found["15"] == intervals(hits(mean), 200)
    paired = found["15, model 1 - model 2"]
    generator, tables = np.random.default_rng(0), []
    for _ in range(200):
        images = np.arange(15).repeat(generator.multinomial(15, [1 / 15] * 15))
        tables.append(np.subtract(naive_table(first, images), naive_table(second, images)))
    np.testing.assert_allclose(
        [one.low for one in paired.values()], np.percentile(tables, 2.5, axis=0), atol=1e-9
    )
    same = compare([first, first], first, {"15": 1}, 50)["15, model 1 - model 2"]
    assert all(one == (0, 0, 0) for one in same.values())


def test_one_model_and_three_get_the_intervals_of_their_table():
    models = [matrix(10, seed) for seed in range(3)]
    for given in (models[:1], models):
        mean = sum(given) / len(given)
        assert compare(given, mean, {"10": 1, "2 (mean of 5 folds)": 5}, 20) == {
            "10": intervals(hits(mean), 20),
            "2 (mean of 5 folds)": intervals(hits(mean, 5), 20),
        }


def test_the_program_prints_and_saves_intervals(tmp_path, capsys):
    demo.build(tmp_path / "data" / "demo_precomp", sizes={"train": 40, "dev": 10, "test": 10})
    paths = []
    for seed in ("0", "1"):
        paths += ["--model_path", str(tmp_path / seed)]
        train.main(
            [
                *OPTIONS,
                "--seed",
                seed,
                "--data_path",
                str(tmp_path / "data"),
                "--logger_name",
                str(tmp_path / seed),
            ]
        )
    capsys.readouterr()
    evaluation.main([*paths[:2], "--bootstrap", "30"])
    printed = capsys.readouterr().out
    saved = np.load(tmp_path / "0" / "results_demo.npy")["sims"]
    expected = bootstrap.markdown({"10": intervals(hits(saved), 30)}, 30)
    assert (
        expected in printed and expected in (tmp_path / "0" / "test+with=bootstrap.md").read_text()
    )
    entry = json.loads((tmp_path / "0" / "metrics.json").read_text())["test+with=bootstrap"][
        "bootstrap"
    ]
    assert entry["10"]["rsum"] == list(intervals(hits(saved), 30)["rsum"])

    evaluation.main([*paths, "--bootstrap", "30"])
    assert "| 10, model 1 - model 2 |" in capsys.readouterr().out
    entries = json.loads((tmp_path / "0" / "metrics.json").read_text())
    (ensemble,) = (name for name in entries if name.startswith("ensemble_test+models="))
    assert "10, model 1 - model 2" in entries[ensemble]["bootstrap"]
