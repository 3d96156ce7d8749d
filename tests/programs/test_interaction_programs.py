"""Both programs with each choice of the instance level."""

import re

import pytest
from helpers import evaluate, make_data, read
from test_programs import fit

import arguments
from lib.training import run_parts


def test_the_command_line_reaches_the_objective(tmp_path):
    parser = arguments.training_parser()
    command = (
        "--interaction standalone --relation inter --relevance 0 --distance l2sq --gnn_loss "
        "infonce --embed_size 16"
    ).split() + ["--logger_name", str(tmp_path)]
    objective = run_parts.build_objective(arguments.parse_training(parser, command))
    assert (
        len(objective.standalone.i2t) == 1
        and len(objective.standalone.i2i) == 0
        and objective.infonce
    )
    relations = objective.relations
    assert relations.distance == objective.options.distance == "l2sq"
    assert not relations.use_relevance
    assert relations.threshold == 0.5 and relations.use_connection
    options = arguments.parse_training(parser, [*command, "--relevance", "1", "--connection", "0"])
    relations = run_parts.build_objective(options).relations
    assert not relations.use_connection and relations.use_relevance


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=12, dev=6, test=6)


@pytest.mark.parametrize(
    "options, parameters, terms",
    [
        ("--interaction standalone", 0.03, {"cross", "graph", "regulariser"}),
        ("--interaction standalone --relation intra --distance l2sq", 0.01, {"cross", "graph"}),
        ("--relation inter --connection 0", 0.01, {"cross", "graph", "regulariser"}),
        ("--relation intra --relevance 0", 0.01, {"cross", "graph"}),
        (
            "--base_loss infonce --gnn_loss infonce --precision bf16",
            0.01,
            {"cross", "graph", "regulariser"},
        ),
        ("--interaction none --gnn_loss infonce", 0.0, set()),
    ],
)
def test_programs_train_and_evaluate_every_choice(
    data, tmp_path, options, parameters, terms, capsys
):
    folder = fit(data, tmp_path / "run", "--num_epochs", "1", "--warmup", "1", *options.split())
    log = (folder / "train.txt").read_text()
    assert f"instance graph {parameters:.2f} M" in log and "skipped" not in log
    assert ("no instance graph" in log) == (not terms) and ("graph from step 1 on" in log) == bool(
        terms
    )
    assert set(re.findall("cross|graph(?= [0-9])|regulariser", log.splitlines()[-1])) == terms
    moments = read(folder)["optimizer"]["state"]
    assert len(moments) == len([*read(folder)["model"]]) - 3 + len(read(folder)["objective"])
    before = (folder / "test.md").read_bytes()
    evaluate("--model_path", folder)
    assert "rsum" in capsys.readouterr().out and (folder / "test.md").read_bytes() == before
