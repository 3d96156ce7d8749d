"""Small connections between the parts of a run that no formula shows: precision, processes,
data that do not fit."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import make_data
from processes import in_processes
from test_optim import bad_batch, batch_of, setting, step

from lib.data import sampling
from lib.data.dataset import RetrievalDataset
from lib.evaluation import encoding
from lib.model import bert
from lib.system import distributed
from lib.system.errors import InputError
from lib.training import engine
from lib.training.logs import NullLog, StepLog, StepReport


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Ten images of 1 to 10 regions, 30 stored for each; tests leave it as it is."""
    folder = make_data(tmp_path_factory, train=4, dev=4, test=10) / "demo_precomp"
    np.save(folder / "test_num_regions.npy", np.arange(1, 11))
    array = np.load(folder / "test_ims.npy")
    for image, regions in enumerate(array):
        regions[image + 1 :] = 1e6  # junk where the padding is
    np.save(folder / "test_ims.npy", array)
    return RetrievalDataset(folder, "test", bert.tokeniser(folder / "bert"))


# Precision


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_low_precision_is_of_the_encoders_alone(precision):
    model, objective, optimizer = setting(base_loss="vse", gnn_loss="vse")
    seen = {}

    def note(name, inputs):
        sides = inputs if name == "objective" else ()
        dtypes = {
            getattr(side, field).dtype
            for side in sides[:2]
            for field in ("embedding", "unnormalised")
        }
        seen[name] = torch.is_autocast_enabled("cpu"), dtypes

    for name, module in (
        ("model", model),
        ("objective", objective),
        ("relations", objective.relations),
    ):
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
    step(model, objective, optimizer, batch_of(), precision=precision)
    assert seen == {
        "model": (precision == "bf16", set()),
        "objective": (False, {torch.float32}),
        "relations": (False, set()),
    }


# What is not finite


@pytest.mark.parametrize("side", ["image_encoder", "text_encoder"])
def test_embeddings_that_are_not_finite_are_not_evaluated(split, side):
    model = SimpleNamespace(eval=lambda: None, similarity=None)
    for name in ("image_encoder", "text_encoder"):
        value = float("nan") if name == side else 1.0
        encode = lambda rows, lengths, value=value, **_: SimpleNamespace(
            embedding=torch.full((len(rows), 4), value)
        )
        setattr(model, name, encode)
    with pytest.raises(InputError, match="NaN or Inf in the embeddings of the test split"):
        encoding.similarities(model, split, torch.device("cpu"))


def test_running_statistics_of_a_step_that_was_not_finite_are_not_taken():
    """Only the gradient is not finite: the statistics would be, and still they are not taken."""
    model, objective, optimizer = setting()
    before = copy.deepcopy(dict(model.named_buffers()))
    model.text_encoder.projection.bias.register_hook(lambda gradient: gradient * float("inf"))
    assert not step(model, objective, optimizer, batch_of()).is_finite
    assert before and all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_steps_that_were_not_finite_are_counted_in_a_row():
    parts, skipped = setting(), torch.zeros((), dtype=torch.int32)
    counts = []
    for batch in (bad_batch(), bad_batch(), batch_of(), batch_of(1), bad_batch()):
        step(*parts, batch, skipped=skipped)
        counts.append(int(skipped))
    assert counts == [1, 2, 0, 0, 1]


# Data


def test_means_of_regions_are_of_the_true_ones(split):
    found = sampling.mean_regions(split)
    for image, mean in enumerate(found):
        np.testing.assert_allclose(mean, split.image_regions(image).mean(0), atol=1e-4)


# The log


def report_of(loss, is_finite=True, connected=None, **terms):
    terms = {name: torch.tensor(value) for name, value in terms.items()}
    return StepReport(
        torch.tensor(loss),
        terms,
        torch.tensor(2 * loss),
        torch.tensor(is_finite),
        None if connected is None else torch.tensor(connected),
    )


def test_the_log_averages_the_finite_steps_and_counts_the_others():
    lines, curves = [], []
    log = NullLog()
    log.train = lambda text, times="": lines.append(text)
    log.scalars = lambda values, step: curves.append((step, values))
    step_log = StepLog(log, 4)
    nan = float("nan")
    for number, report in enumerate(
        (
            report_of(1.0, base=1.0),
            report_of(2.0, base=1.5, graph=4.0),
            report_of(nan, False, base=nan, graph=nan),
            report_of(6.0, base=5.0, graph=8.0),
        ),
        1,
    ):
        step_log.add(0, number, number, 0.1, report, 0.5, 1.0)
    assert lines == [
        (
            "epoch 0 step 4: loss 3.0000 (base 2.5000, graph 6.0000), gradient 6.000, rate 0.1; "
            "skipped 1 steps that were not finite (1 so far) in base, graph"
        )
    ]
    ((at, values),) = curves
    assert (
        at == 4
        and values["Loss"] == 3
        and values["Loss_graph"] == 6
        and values["batch_time"] == 1.0
    )
    assert (
        values["data_time"] == 0.5 and values["lr"] == 0.1 and values["step"] == values["Iter"] == 4
    )


@pytest.fixture
def told():
    """A log that keeps its lines and its curves: (log, lines, curves)."""
    log, lines, curves = NullLog(), [], []
    log.train = lambda text, times="": lines.append(text)
    log.scalars = lambda values, step: curves.append(values)
    return log, lines, curves


def test_a_line_has_the_mean_share_of_the_steps_with_a_graph(told):
    log, lines, curves = told
    step_log = StepLog(log, 3)
    for number, report in enumerate(
        (
            *[report_of(1.0, base=1.0)] * 4,
            report_of(1.0, connected=0.25, base=1.0),
            report_of(float("nan"), False, connected=0.5, base=1.0),
        ),
        1,
    ):
        step_log.add(0, number, number, 0.1, report, 0.5, 1.0)
    assert "connected" not in lines[0] and "(base 1.0000), connected 37.5 %, grad" in lines[1]
    assert "graph/connected" not in curves[0] and curves[1]["graph/connected"] == 37.5


@pytest.mark.parametrize("all_connected, shares, expected", [
    (False, (0.5, 0.001, 0.999), []), (False, (0.0, 0.0, 0.5, 0.0), [0]),
    (False, (1.0, 0.5, 1.0), [100]), (False, (1.0, 0.0, 1.0, 0.0), [100, 0]),
    (True, (1.0, 1.0), []), (True, (1.0, 0.0), [0]),
])  # fmt: skip
@pytest.mark.parametrize("is_resumed", [False, True])
def test_nothing_or_all_connected_is_a_warning_once(
    told, all_connected, shares, expected, is_resumed
):
    log, lines, _ = told
    step_log = StepLog(log, 1, all_connected=all_connected)
    for number, share in enumerate(shares):
        if is_resumed:
            step_log = StepLog(log, 1, step_log.state(), all_connected)
        step_log.add(0, number, number, 0.1, report_of(1.0, connected=share, base=1.0), 0.5, 1.0)
    warnings = [line for line in lines if line.startswith("warning")]
    assert [int(line.split()[1]) for line in warnings] == expected
    assert len(lines) == len(shares) + len(expected)


def test_the_state_of_an_older_log_knows_no_connection(told):
    log, lines, _ = told
    step_log = StepLog(log, 2)
    step_log.add(0, 1, 1, 0.1, report_of(1.0, base=1.0), 0.5, 1.0)
    older = step_log.state()
    del older["warned"], older["reports"][0]["connected"]
    step_log = StepLog(log, 2, older)
    step_log.add(0, 2, 2, 0.1, report_of(3.0, connected=1.0, base=1.0), 0.5, 1.0)
    assert lines[0].startswith("epoch 0 step 2: loss 2.0000 (base 1.0000), connected 100 %, grad")
    assert lines[1].startswith("warning: 100 %") and len(lines) == 2


# Several processes


def share_in_a_step():
    """The share that is connected in a step, of this process's shard of a batch."""
    model, objective, _ = setting(base_loss="vse", gnn_loss="vse", threshold=0.25)
    model.eval()
    loss = engine.batch_loss(
        model, objective, own_shard(batch_of()), use_graph=True, hardest=False, precision="fp32"
    )
    return float(loss.connected)


def test_every_process_counts_the_connections_of_the_whole_batch():
    assert in_processes(2, share_in_a_step) == [0.25, 0.25]


def drawn_in_a_step():
    """What the encoders and the objective would drop in a step of two processes:
    random numbers drawn inside each."""
    model, objective, _ = setting(base_loss="vse", gnn_loss="vse")
    found = {}
    for name, module in (("model", model), ("objective", objective)):
        module.register_forward_pre_hook(lambda *_, name=name: found.update({name: torch.rand(8)}))
    engine.seed_step(0, 3)
    engine.batch_loss(
        model, objective, own_shard(batch_of()), use_graph=True, hardest=False, precision="fp32"
    )
    return found


def own_shard(batch):
    own = distributed.shard()
    return batch._replace(
        **{name: getattr(batch, name)[own] for name in batch._fields if name != "image_ids"}
    )


def test_each_process_drops_units_of_its_own_in_the_encoders_and_the_same_ones_in_the_graph():
    first, second = in_processes(2, drawn_in_a_step)
    assert not torch.equal(first["model"], second["model"])
    assert torch.equal(first["objective"], second["objective"])


def test_what_is_gathered_is_the_whole_batch_on_both_sides():
    """The objective is given the rows of all shards: embeddings, unnormalised ones,
    fragments by the relations."""
    alone = given_to_the_objective()
    for found in in_processes(2, given_to_the_objective):
        for name, rows in alone.items():
            torch.testing.assert_close(found[name], rows, atol=1e-5, rtol=1e-4, msg=name)


def given_to_the_objective():
    model, objective, _ = setting(base_loss="vse", gnn_loss="vse")
    model.eval()  # each shard alone would have other statistics of its batch
    found = {}

    def note(_, inputs):
        for side, encoded in zip(("images", "captions"), inputs):
            for field in ("embedding", "unnormalised"):
                found[f"{side}.{field}"] = getattr(encoded, field).detach().clone()

    objective.register_forward_pre_hook(note)
    engine.batch_loss(
        model, objective, own_shard(batch_of()), use_graph=True, hardest=False, precision="fp32"
    )
    return found


@pytest.mark.parametrize("nodes, is_apart", [("1", True), ("2", False)])
def test_a_restart_does_not_read_what_the_processes_before_left_in_the_store(
    monkeypatch, nodes, is_apart
):
    """torchrun's store outlives the processes that it starts again;
    those of several nodes must find each other."""
    stores, agent = [], dist.HashStore()
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(agent, 0, 2)]))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, store, rank, world_size: stores.append(store)
    )
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for restart in ("0", "1"):
        for name, value in (
            ("WORLD_SIZE", "2"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("LOCAL_RANK", "0"),
            ("GROUP_WORLD_SIZE", nodes),
            ("TORCHELASTIC_RESTART_COUNT", restart),
        ):
            monkeypatch.setenv(name, value)
        with distributed.process_group():
            assert stores
    stores[0].set("address", "of the first start")
    assert stores[0].check(["address"]) and stores[1].check(["address"]) is not is_apart
