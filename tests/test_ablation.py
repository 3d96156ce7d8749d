"""The ablation runs its rows, resumes, notes what fails, and writes its table and log."""

import json
import re

import pytest

import arguments
import graph_lib
import train
from benchmarks import ablation
from lib import demo
from lib.errors import InputError

SMALL = "--batch_size 30 --embed_size 16 --nhead 2 --warmup 2"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    demo.build(folder / "demo_precomp", sizes={"train": 24, "dev": 10, "test": 20})
    return folder


@pytest.fixture
def ablate(data, tmp_path, monkeypatch):
    """Run it with small rows; returns its table, a list of cells by row, and the lines of its log."""
    monkeypatch.setattr(ablation, "ROWS", {
        "small": SMALL, "neighbours": f"{SMALL} --batch_sampling neighbour --batch_clusters 3",
        "broken": f"{SMALL} --nhead 3", "never": SMALL,
    })  # fmt: skip

    def run(*argv):
        ablation.main(["--data_path", str(data), "--runs", str(tmp_path), "--device", "cpu", *argv])
        lines = (tmp_path / "ablation.md").read_text().splitlines()
        cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
        log = tmp_path / "ablation.log"
        return {row[0]: row[1:] for row in cells}, log.read_text().splitlines() if log.exists() else []

    return run


def test_rows_are_trained_noted_and_not_trained_again(ablate, tmp_path, monkeypatch):
    found, log = ablate("--rows", "small", "broken", "neighbours", "--seeds", "1", "--epochs", "1")
    assert list(found) == ["small", "neighbours", "broken"]
    for row in ("small", "neighbours"):
        options, seeds, rsum, i2t, t2i, seconds = found[row]
        entry = json.loads((tmp_path / row / "seed0" / "metrics.json").read_text())["test"]
        scores = entry["scores"]["20"]
        assert options == f"`{ablation.ROWS[row]}`" and seeds == "1" and 0 < float(seconds) < 60
        expected = scores["rsum"], scores["i2t"]["r1"], scores["t2i"]["r1"]
        assert [float(cell) for cell in (rsum, i2t, t2i)] == pytest.approx(expected, abs=0.051)
        assert entry["options"][0]["num_epochs"] == 1
    assert found["broken"][1].startswith("0; seed 0 FAILED: InputError: --nhead 3 does not divide --embed_size 16")
    assert len(log) == 3 and [line.split()[0] for line in log] == ["small", "broken", "neighbours"]
    assert re.search(r"seed 0: rsum [\d.]+, I2T R@1 [\d.]+, T2I R@1 [\d.]+, [\d.]+ s a step; .*torch", log[0])
    assert "FAILED: InputError: --nhead 3" in log[1]

    monkeypatch.setattr(train, "main", lambda argv: 1 / 0)  # what is not finished fails now, otherwise than before
    again, log = ablate("--rows", "small", "broken", "--seeds", "1", "--epochs", "1")
    assert {row: again[row] for row in ("small", "neighbours")} == {row: found[row] for row in ("small", "neighbours")}
    assert again["broken"][1] == "0; seed 0 FAILED: ZeroDivisionError: division by zero" and len(log) == 4


def finish(folder, rsum, seconds=None):
    """What a finished run leaves for the table."""
    folder.mkdir(parents=True)
    scores = {"500": dict(rsum=rsum, i2t=dict(r1=rsum / 10), t2i=dict(r1=rsum / 20))}
    (folder / "metrics.json").write_text(json.dumps({"test": {"scores": scores}}))
    if seconds:
        (folder / "times.json").write_text(json.dumps({"seconds_a_step": seconds}))


def test_a_cell_is_mean_and_sample_deviation_over_the_finished_seeds(ablate, tmp_path):
    for seed, rsum in enumerate((100, 110, 130)):
        finish(tmp_path / "small" / f"seed{seed}", rsum, seconds=0.1)
    (tmp_path / "small" / "seed3").mkdir()  # begun, not finished
    found, log = ablate("--rows", "small", "--seeds", "3", "--epochs", "1")
    cells = ["3", "113.3 ± 15.3", "11.3 ± 1.5", "5.7 ± 0.8", "0.100 ± 0.000"]
    assert found == {"small": [f"`{SMALL}`", *cells]} and not log


def test_only_a_whole_ablation_replaces_the_kept_table(ablate, data, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "HERE", tmp_path / "kept")
    finish(tmp_path / "small" / "seed0", 100)
    finish(tmp_path / "neighbours" / "seed0", 90)
    ablate("--rows", "small", "--seeds", "1", "--epochs", "1")
    assert not (tmp_path / "kept").exists()
    ablate("--rows", "small", "--seeds", "1")
    table = (tmp_path / "kept" / "ablation.md").read_text()
    assert (
        "| small |" in table and "| neighbours |" in table and "| never |" not in table
    )  # what else is finished stays


def test_a_run_that_ends_early_is_begun_again(ablate, tmp_path):
    folder = tmp_path / "small" / "seed0"
    folder.mkdir(parents=True)
    (folder / "model_best.pth").write_bytes(b"of an epoch before the interruption")
    found, _ = ablate("--rows", "small", "--seeds", "1", "--epochs", "1")
    assert found["small"][1] == "1"


@pytest.mark.parametrize("row", ablation.ROWS)
def test_every_row_is_a_command_line_of_its_own(row):
    def options(given):
        parser = arguments.training_parser()
        graph_lib.add_options(parser)
        return vars(arguments.parse_training(parser, ["--dataset", "demo", *given.split()]))

    rows = {name: options(given) for name, given in ablation.ROWS.items() if name in ("hrem", row)}
    assert row == "hrem" or rows[row] != rows["hrem"]


@pytest.mark.parametrize("argv, message", [
    (["--rows", "nothing"], "'nothing'"), (["--seeds", "0"], "found '0'"), (["--epochs", "0"], "found '0'"),
])  # fmt: skip
def test_a_wrong_command_line_is_refused(ablate, argv, message):
    with pytest.raises(InputError, match=message):
        ablate(*argv)
