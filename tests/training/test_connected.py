"""What a run tells of the connections of its graph: lines, a curve, warnings, soft pictures."""

import re
from functools import partial

import helpers
import numpy as np
import pytest
import torch
from helpers import events, make_data, read, shared
from pages import read_png
from test_curves import OPTIONS, PICTURES
from test_resume import Stopped, stop_at_step

import graph_lib
from lib.objective.relation import InstanceRelations
from lib.system import run_folder

fit = partial(helpers.fit, OPTIONS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=60, dev=12, test=10)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run; tests leave it as it is."""
    return shared(fit(data, tmp_path_factory.mktemp("run") / "run"))


def test_lines_and_curves_have_the_share_that_is_connected(run):
    lines = [
        line for line in (run / "train.txt").read_text().splitlines() if line.startswith("epoch")
    ]
    told = [re.search(r"\), connected (\S+) %, gradient", line) for line in lines]
    assert [match is not None for match in told] == [
        int(line.split()[3][:-1]) > 8 for line in lines
    ]
    points = events(run).Scalars("graph/connected")
    assert [float(match[1]) for match in told if match] == [
        float(f"{point.value:.3g}") for point in points
    ]
    assert points and all(50 <= point.value < 55 for point in points)
    assert "warning" not in (run / "train.txt").read_text()


@pytest.mark.parametrize("options, warnings", [("--threshold 1", 1), ("--connection 0", 0)])
def test_a_graph_that_is_connected_throughout_is_a_warning(data, tmp_path, options, warnings):
    folder = fit(data, tmp_path / "run", "--warmup", "0", *options.split())
    text = (folder / "train.txt").read_text()
    assert text.count("connected 100 %") > 1 and text.count("warning: 100 %") == warnings


def test_soft_connections_are_drawn_in_greys(data, tmp_path, monkeypatch):
    drawn, draw = [], graph_lib.relation_matrices
    monkeypatch.setattr(
        graph_lib, "relation_matrices", lambda *given: drawn.append(draw(*given)) or drawn[-1]
    )
    monkeypatch.setattr(
        InstanceRelations,
        "connect",
        lambda self, block, closeness: torch.sigmoid(4 * closeness) * (closeness > 0),
    )
    found = events(
        fit(data, tmp_path / "run", "--warmup", "0", "--num_epochs", "1", "--relation", "inter")
    )
    pixels = read_png(found.Images(PICTURES[0])[-1].encoded_image_string)
    weights = drawn[-1].connection.numpy()
    np.testing.assert_allclose(pixels, 255 * weights, atol=0.51)
    assert not weights[:12, :12].any() and len(np.unique(pixels)) > 10


def test_a_run_saved_before_connections_were_counted_goes_on(run, data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at_step(patched, 13)  # saved at step 12, the last line at step 10
        with pytest.raises(Stopped):
            fit(data, folder)
    content = read(folder, run_folder.LAST)
    step_log = content["position"]["step_log"]
    assert step_log["reports"] and step_log.pop("warned") == []
    for report in step_log["reports"]:
        del report["connected"]
    torch.save(content, folder / run_folder.LAST)
    fit(data, folder, "--resume", "auto")
    ours, theirs = ((path / "train.txt").read_text() for path in (folder, run))
    assert ours == theirs.replace(str(run), str(folder))
