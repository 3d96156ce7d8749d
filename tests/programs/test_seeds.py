"""Several seeds in one command, and the table over them; presets of options."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import make_data, shared

import arguments
import eval as evaluation
import train
from lib.system.errors import InputError
from lib.training import presets

OPTIONS = (
    "--dataset demo --num_epochs 1 --batch_size 30 --embed_size "
    "16 --nhead 2 --warmup 2 --save_results 0"
)
CELL = r"-?\d+\.\d"


def parse(*argv):
    parser = arguments.training_parser()
    return parser, arguments.parse_training(parser, [*argv])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=24, dev=10, test=20)


def fit(data, folder, *more):
    return train.main(
        [*OPTIONS.split(), "--data_path", str(data), "--logger_name", str(folder), *more]
    )


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A folder of three seeds, and what training returned."""
    folder = tmp_path_factory.mktemp("runs") / "name"
    results = fit(data, folder, "--seeds", "0", "10", "2")
    return shared(folder), results


@pytest.fixture
def runs(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "name")


def rows(text):
    """The numbers of a table by the label of their row."""
    found = re.findall(rf"^\| (.*?) \|((?: {CELL} \|){{11}})$", text, flags=re.MULTILINE)
    return {label: [float(cell) for cell in re.findall(CELL, cells)] for label, cells in found}


def test_each_seed_has_a_run_folder_and_a_result(trained, data, tmp_path):
    folder, results = trained
    assert sorted(path.name for path in folder.iterdir()) == ["seed0", "seed10", "seed2"]
    fit(data, tmp_path / "alone", "--seed", "2")
    alone, together = tmp_path / "alone", folder / "seed2"
    assert (alone / "eval.txt").read_bytes() == (together / "eval.txt").read_bytes()
    differing = set((alone / "Parameters.txt").read_text().split("\n")) ^ set(
        (together / "Parameters.txt").read_text().split("\n")
    )
    assert {line.split(":")[0] for line in differing} == {"logger_name", "model_name"}
    for seed, result in zip((0, 10, 2), results, strict=True):
        entry = json.loads((folder / f"seed{seed}" / "metrics.json").read_text())["test"]
        assert (
            entry["seeds"] == [seed] and entry["scores"]["20"]["rsum"] == result.scores["20"].rsum
        )
        assert 0 < result.seconds_a_step < 60


def test_checkpoints_of_several_seeds_lie_in_the_folder_of_models(data, tmp_path):
    fit(data, tmp_path / "logs", "--model_name", str(tmp_path / "models"), "--seeds", "3")
    assert (tmp_path / "models" / "seed3" / "model_best.pth").exists()
    assert (tmp_path / "logs" / "seed3" / "test.md").exists() and not (
        tmp_path / "logs" / "model_best.pth"
    ).exists()


def test_a_finished_seed_is_found_before_any_is_trained(runs, data):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    with pytest.raises(InputError, match=r"seed2/last.pth: .*--overwrite 1"):
        fit(data, runs, "--seeds", "5", "2")
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_evaluation_of_several_seeds_gives_each_mean_deviation_and_ensemble(runs, capsys):
    evaluation.main(["--model_path", str(runs), "--save_results", "1"])
    printed = capsys.readouterr().out
    found = rows(printed)
    names = ("seed 0", "seed 2", "seed 10", "mean", "standard deviation", "ensemble")
    assert list(found) == [f"20, {name}" for name in names]
    assert (
        "ensemble of 3 models (mean of similarities)" in printed
        and (runs / "seeds.md").read_text() in printed
    )
    for seed in (0, 2, 10):
        assert (
            found[f"20, seed {seed}"] == rows((runs / f"seed{seed}" / "test.md").read_text())["20"]
        )
    exact = [
        json.loads((runs / f"seed{seed}" / "metrics.json").read_text())["test"]["scores"]
        for seed in (0, 2, 10)
    ]
    rsums = [scores["20"]["rsum"] for scores in exact]
    mean = sum(rsums) / 3
    deviation = (sum((rsum - mean) ** 2 for rsum in rsums) / 2) ** 0.5
    assert found["20, mean"][-1] == pytest.approx(mean, abs=0.051)
    assert (
        found["20, standard deviation"][-1] == pytest.approx(deviation, abs=0.051) and deviation > 0
    )
    ranks = [scores["20"]["t2i"]["meanr"] for scores in exact]
    assert found["20, mean"][-2] == pytest.approx(np.mean(ranks), abs=0.051)
    assert found["20, standard deviation"][-2] == pytest.approx(np.std(ranks, ddof=1), abs=0.051)

    entry = json.loads((runs / "metrics.json").read_text())["seeds"]
    assert entry["seeds"] == [0, 2, 10] and entry["split"] == "test"
    assert [entry["scores"][f"20, seed {seed}"]["rsum"] for seed in (0, 2, 10)] == rsums
    saved = np.load(runs / "results_demo+models=seeds.npy")
    capsys.readouterr()
    evaluation.main([str(runs / f"seed{seed}") for seed in (0, 2, 10)] + ["--save_results", "1"])
    assert rows(capsys.readouterr().out)["20"] == found["20, ensemble"]
    (path,) = (runs / "seed0").glob("results_demo+models=*.npy")
    np.testing.assert_array_equal(np.load(path)["sims"], saved["sims"])


def test_another_split_of_several_seeds_has_a_table_of_its_own(runs):
    evaluation.main([str(runs), "--split", "dev"])
    assert "split dev" in (runs / "seeds_dev.md").read_text() and not (runs / "seeds.md").exists()


def test_one_seed_has_a_mean_and_no_deviation(runs, capsys):
    shutil.rmtree(runs / "seed2")
    shutil.rmtree(runs / "seed10")
    evaluation.main([str(runs)])
    found = rows(capsys.readouterr().out)
    assert (
        list(found) == ["20, seed 0", "20, mean", "20, ensemble"]
        and len(set(map(tuple, found.values()))) == 1
    )


def test_a_seed_without_a_checkpoint_is_no_silent_gap(runs):
    (runs / "seed2" / "model_best.pth").unlink()
    with pytest.raises(InputError, match="seed2/model_best.pth: no such checkpoint"):
        evaluation.main([str(runs)])


def test_a_run_folder_that_holds_seeds_is_itself_evaluated(runs, capsys):
    shutil.copy(runs / "seed2" / "model_best.pth", runs)
    evaluation.main([str(runs)])
    assert list(rows(capsys.readouterr().out)) == ["20"]


@pytest.mark.parametrize("order", ["first", "last", "between"])
def test_a_run_may_stand_anywhere_on_the_command_line(runs, data, capsys, order):
    run, options = [str(runs / "seed0")], [["--data_path", str(data)], ["--split", "dev"]]
    argv = {
        "first": [run, *options],
        "last": [*options, run],
        "between": [options[0], run, options[1]],
    }[order]
    evaluation.main(sum(argv, []))
    assert "split dev" in capsys.readouterr().out


def test_runs_with_and_without_the_option_are_one_ensemble(runs, capsys):
    evaluation.main([str(runs / "seed0"), "--model_path", str(runs / "seed2")])
    assert "ensemble of 2 models" in capsys.readouterr().out


def test_neighbours_train(data, tmp_path):
    fit(data, tmp_path / "run", "--batch_sampling", "neighbour", "--batch_clusters", "5")
    log = (tmp_path / "run" / "train.txt").read_text()
    assert (
        "batches of 5 clusters x 6 images; k-means found 5 clusters" in log
        and "4 steps an epoch" in log
    )


@pytest.mark.parametrize("method", presets.METHODS)
def test_a_method_sets_options_that_exist_to_values_that_are_allowed(method):
    actions = {action.dest: action for action in parse()[0]._actions}
    for name, value in presets.METHODS[method].items():
        assert name in actions, f"{method} sets {name}, which is no option"
        action = actions[name]
        assert action.choices is None or value in action.choices
        assert action.nargs != 0 or value is action.const
        assert action.type is None or action.type(str(value)) == value


@pytest.mark.parametrize("method", presets.METHODS)
@pytest.mark.parametrize("dataset", ["f30k", "demo"])
def test_a_method_sets_its_options_and_no_other(method, dataset):
    plain, chosen = (
        vars(parse("--dataset", dataset, *more)[1]) for more in ([], ["--method", method])
    )
    expected = presets.method_defaults(method, dataset)
    if dataset == "demo":  # which has its own schedule
        expected = {name: value for name, value in expected.items() if name not in presets.DEMO}
    assert chosen == plain | expected | {"method": method}


def test_the_methods_are_those_of_their_papers():
    assert presets.METHODS["hrem"] == {} and parse()[1].method == "hrem"
    assert presets.METHODS["hrem-standalone"] == {"interaction": "standalone"}
    for method, pooling in (("vsepp", "mean"), ("gpo", "gpo")):
        options = parse("--method", method)[1]
        assert (options.interaction, options.pooling, options.base_loss) == ("none", pooling, "vse")
        assert options.max_violation == (method == "vsepp") and options.vse_mean_warmup_epochs == 1


def test_an_option_given_by_hand_wins_over_the_method():
    options = parse("--base_loss", "trip", "--method", "vsepp", "--vse_mean_warmup_epochs", "3")[1]
    assert (
        options.base_loss == "trip"
        and options.max_violation
        and options.vse_mean_warmup_epochs == 3
    )


def test_no_option_is_both_the_demos_and_a_methods():
    assert not {name for settings in presets.METHODS.values() for name in settings} & set(
        arguments.DEMO
    )


def test_the_seed_is_0_unless_given():
    assert [parse(*more)[1].seed for more in ([], ["--seed", "0"], ["--seed", "7"])] == [0, 0, 7]
