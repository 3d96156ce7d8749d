"""The measurement of what the graph does to a trained model."""

import pytest
from helpers import fit, make_data

from benchmarks import graph_effect
from lib.system.errors import InputError

OPTIONS = "--dataset demo --num_epochs 1 --batch_size 30 --embed_size 16 --nhead 2 --warmup 2 "


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=24, dev=10, test=10)


def test_gradients_losses_and_relevance_of_both_splits(data, tmp_path, capfd):
    run = fit(f"{OPTIONS} --workers 0 --save_results 0".split(), data, tmp_path / "run")
    capfd.readouterr()
    graph_effect.main([str(run / "last.pth"), "--pairs", "8", "--batches", "2"])
    rows = [line.strip("| ").split(" | ") for line in capfd.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["train", "dev"]
    for row in rows:
        values = dict(zip(graph_effect.COLUMNS, (float(cell.split(" ± ")[0]) for cell in row[1:])))
        assert min(values[name] for name in values if name != "cosine") > 0
        assert -1 <= values["cosine"] <= 1


def test_a_run_without_a_graph_is_refused(data, tmp_path):
    run = fit(
        f"{OPTIONS} --workers 0 --save_results 0 --interaction none".split(), data, tmp_path / "run"
    )
    with pytest.raises(InputError, match="the run has no graph"):
        graph_effect.main([str(run / "last.pth")])
