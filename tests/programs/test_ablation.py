"""The ablation runs its rows, resumes, notes what fails, and writes its table and log."""

import json

import pytest
from helpers import make_data

import arguments
import train
from benchmarks import ablation, curves
from lib.system.errors import InputError
from lib.system.run_folder import RunFolder

SMALL = "--batch_size 30 --embed_size 16 --nhead 2 --warmup 2"
SCHEDULE = "--num_epochs 1"  # of a quick look with --epochs 1
RSUMS = (100, 110, 130)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=24, dev=10, test=20)


@pytest.fixture
def ablate(data, tmp_path, monkeypatch):
    """Run it with small rows; returns its table, a list of cells by row,
    and the entries of its log."""
    monkeypatch.setattr(ablation, "ROWS", {
        "small": SMALL, "neighbours": f"{SMALL} --batch_sampling neighbour --batch_clusters 3",
        "broken": f"{SMALL} --nhead 3", "never": SMALL,
    })  # fmt: skip

    def run(*argv):
        ablation.main(["--data_path", str(data), "--runs", str(tmp_path), "--device", "cpu", *argv])
        lines = (tmp_path / "ablation.md").read_text().splitlines()
        cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
        log = tmp_path / "ablation.log"
        entries = map(json.loads, log.read_text().splitlines() if log.exists() else [])
        return {row[0]: row[1:] for row in cells}, list(entries)

    return run


def test_rows_are_trained_noted_and_not_trained_again(ablate, tmp_path, monkeypatch):
    found, log = ablate("--rows", "small", "broken", "neighbours", "--seeds", "3", "--epochs", "1")
    assert list(found) == ["small", "neighbours", "broken"]
    for row in ("small", "neighbours"):
        options, seeds, rsum, i2t, t2i, _, seconds = found[row]
        entry = json.loads((tmp_path / row / "seed3" / "metrics.json").read_text())["test"]
        scores = entry["scores"]["20"]
        assert options == f"`{ablation.ROWS[row]}`" and seeds == "1" and 0 < float(seconds) < 60
        expected = scores["rsum"], scores["i2t"]["r1"], scores["t2i"]["r1"]
        assert [float(cell) for cell in (rsum, i2t, t2i)] == pytest.approx(expected, abs=0.051)
        assert entry["options"][0]["num_epochs"] == 1
    assert found["broken"][1].startswith(
        "0; seed 3 FAILED: InputError: --nhead 3: the number of heads does not divide "
        "--embed_size 16"
    )
    assert [(entry["row"], entry["seed"]) for entry in log] == [
        ("small", 3),
        ("broken", 3),
        ("neighbours", 3),
    ]
    assert len(log[0]["dev rsum"]) == 1 and log[0]["dev rsum"][0] > 0
    assert log[0]["options"] == SMALL and "torch" in log[0]["hardware"] and "rsum" not in log[1]

    # what is not finished fails now, otherwise than before
    monkeypatch.setattr(train, "main", lambda argv: 1 / 0)
    again, log = ablate("--rows", "small", "broken", "--seeds", "3", "--epochs", "1")
    assert {row: again[row] for row in ("small", "neighbours")} == {
        row: found[row] for row in ("small", "neighbours")
    }
    assert (
        again["broken"][1] == "0; seed 3 FAILED: ZeroDivisionError: division by zero"
        and len(log) == 4
    )


def note(folder, *seeds, row="small", options=SMALL, schedule=SCHEDULE, rsum=None):
    """Lines of a log: of runs of these seeds, their rsums told by `RSUMS`."""
    folder.mkdir(exist_ok=True)
    with open(folder / "ablation.log", "a") as log:
        for seed in seeds:
            value = rsum or RSUMS[seed]
            found = {
                "rsum": value,
                "I2T R@1": value / 10,
                "T2I R@1": value / 20,
                "s a step": 1 / value,
            }
            log.write(
                json.dumps(dict(row=row, options=options, schedule=schedule, seed=seed) | found)
                + "\n"
            )


def test_a_cell_is_mean_and_sample_deviation_over_the_seeds(ablate, tmp_path):
    note(tmp_path, 2, 0, 1)
    found, log = ablate("--rows", "small", "--seeds", "0", "1", "2", "--epochs", "1")
    cells = ["3", "113.3 ± 15.3", "11.3 ± 1.5", "5.7 ± 0.8", "", "0.008"]
    assert found == {"small": [f"`{SMALL}`", *cells]} and len(log) == 3


def test_a_row_is_compared_with_the_first_seed_by_seed(ablate, tmp_path):
    note(tmp_path, 0, 1)
    note(tmp_path, 2, 1, row="neighbours", options=ablation.ROWS["neighbours"])  # 130, 110
    found, _ = ablate("--rows", "small", "--seeds", "0", "--epochs", "1")
    assert found["neighbours"][5] == "0.0"  # of seed 1, which both have
    note(tmp_path, 2, rsum=100)
    found, _ = ablate("--rows", "small", "--seeds", "0", "--epochs", "1")
    assert found["neighbours"][5] == "15.0 ± 21.2" and found["small"][5] == ""


def test_runs_with_other_options_than_the_row_has_now_do_not_count(ablate, tmp_path):
    note(tmp_path, 1, options="--pooling mean")
    note(tmp_path, 2, schedule="--num_epochs 7")
    note(tmp_path, 0, row="gone")
    found, log = ablate("--rows", "small", "--seeds", "1", "--epochs", "1")
    assert found["small"][1] == "1" and float(found["small"][2]) != RSUMS[1] and len(log) == 4


def test_seeds_come_before_rows(ablate, monkeypatch):
    monkeypatch.setattr(train, "main", lambda argv: 1 / 0)
    _, log = ablate("--rows", "small", "neighbours", "--seeds", "4", "2", "--epochs", "1")
    order = [(entry["row"], entry["seed"]) for entry in log]
    assert order == [("small", 4), ("neighbours", 4), ("small", 2), ("neighbours", 2)]


def test_only_a_whole_ablation_goes_into_the_kept_files(ablate, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    monkeypatch.setattr(ablation, "HERE", kept)
    ablate("--rows", "small", "--seeds", "0", "--epochs", "1")
    assert not kept.exists()
    note(kept, 0, schedule=ablation.SCHEDULE)
    note(kept, 1, row="neighbours", options=ablation.ROWS["neighbours"], schedule=ablation.SCHEDULE)
    ablate("--rows", "small", "--seeds", "0")
    table = (kept / "ablation.md").read_text()
    # what else is there stays
    assert "| small |" in table and "| neighbours |" in table and "| never |" not in table
    assert f"`{ablation.SCHEDULE}`" in table


def test_a_run_that_ended_early_is_begun_again(ablate, tmp_path):
    folder = tmp_path / "small" / "seed0"
    folder.mkdir(parents=True)
    RunFolder(folder).claim("model_best.pth")
    (folder / "model_best.pth").write_bytes(b"of an epoch before the interruption")
    found, _ = ablate("--rows", "small", "--seeds", "0", "--epochs", "1")
    assert found["small"][1] == "1"


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"row": "small", "seed": 0}', "small seed 0: rsum 3.5"]
)
def test_a_log_of_another_form_is_refused(ablate, tmp_path, line):
    note(tmp_path, 0)
    with open(tmp_path / "ablation.log", "a") as log:
        log.write(line + "\n")
    before = (tmp_path / "ablation.log").read_bytes()
    with pytest.raises(InputError, match=r"ablation\.log: line 2 is not what this program writes"):
        ablate("--rows", "small", "--epochs", "1")
    assert (tmp_path / "ablation.log").read_bytes() == before


def test_the_table_in_the_repository_is_that_of_its_log():
    found = ablation.outcomes(ablation.HERE / "ablation.log", ablation.SCHEDULE)
    table = ablation.table(found, f"demo, `{ablation.SCHEDULE}`")
    assert (ablation.HERE / "ablation.md").read_text(encoding="utf-8") == table
    # the page words the head of the table differently
    rows = table.split("\n\n")[1].split("\n", 2)[2]
    assert "| hrem |" in rows and rows in (ablation.HERE.parent / "docs" / "ablation.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("row", ablation.ROWS)
def test_every_row_is_a_command_line_of_its_own(row):
    def options(given):
        parser = arguments.training_parser()
        return vars(arguments.parse_training(parser, ["--dataset", "f30k", *given.split()]))

    schedule = f"{ablation.SCHEDULE} --decay_rate 0.2 --seed 1"  # a cosine has no decay
    rows = {name: options(ablation.arguments_of(name, schedule)) for name in {"hrem", row}}
    assert all(found["num_epochs"] == 4 and found["seed"] == 1 for found in rows.values())
    assert row == "hrem" or rows[row] != rows["hrem"]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--rows", "nothing"], "'nothing'"),
        (["--seeds", "-1"], "found '-1'"),
        (["--epochs", "0"], "found '0'"),
    ],
)
def test_a_wrong_command_line_is_refused(ablate, argv, message):
    with pytest.raises(InputError, match=message):
        ablate(*argv)


def test_curves_are_drawn_from_the_log(tmp_path):
    log, out = tmp_path / "a.log", tmp_path / "a.svg"
    entries = [("x", 0, [1.0, 2.0]), ("x", 1, [2.0, 4.0]), ("y", 0, [5.0, 6.0]), ("x", 0, [3, 3])]
    lines = [json.dumps({"row": row, "seed": seed, "dev rsum": dev}) for row, seed, dev in entries]
    log.write_text("\n".join([*lines, json.dumps({"row": "z", "seed": 0, "failed": "why"})]))
    found = curves.read_curves(log)
    assert {row: values.tolist() for row, values in found.items()} == {
        "x": [[3, 3], [2, 4]], "y": [[5, 6]],
    }  # fmt: skip
    curves.main([str(log), "--out", str(out)])
    assert "x (2)" in out.read_text() and "y (1)" in out.read_text()
    with pytest.raises(InputError, match="no curve of z"):
        curves.main([str(log), "--rows", "z", "--out", str(out)])
