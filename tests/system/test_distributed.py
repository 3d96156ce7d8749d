"""Several processes compute what one computes: steps, data, tables;
and none waits for another in vain."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from damage import configure
from helpers import PROCESS_TIMEOUT, events, make_data, read, shared
from published import golden, small_bert, small_model, small_objective
from test_golden import golden_batch

import eval as evaluation
import train
from benchmarks.scaling import own_shard
from graph_lib import Objective
from lib.data.dataset import TrainingPairs
from lib.model import splits
from lib.model.network import HREM
from lib.system import distributed
from lib.system.errors import InputError
from lib.training import engine, logs, optim

STEPS, GRAPH_FROM, HARDEST_FROM = 6, 3, 4


def in_process(rank, size, function, folder):
    torch.set_num_threads(1)  # a forked process must not use the threads of its parent
    os.environ |= dict(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size)
    )
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=(Path(folder) / "port").read_text())
    try:
        with distributed.process_group():
            found = function()
    except (SystemExit, InputError) as error:
        found = error
    torch.save(found, Path(folder) / f"{rank}.pt")


def in_processes(size, function):
    """What `function()` returned, or what ended it, in each of `size` processes;
    fails where one of them hangs."""
    with tempfile.TemporaryDirectory() as folder:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        (Path(folder) / "port").write_text(str(store.port))
        del store
        fork = multiprocessing.get_context("fork")
        started = [
            fork.Process(target=in_process, args=(rank, size, function, folder))
            for rank in range(size)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(PROCESS_TIMEOUT)
            if process.is_alive():
                process.kill()
        assert [process.exitcode for process in started] == [0] * size
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def golden_setting():
    """The golden model, its objective and six batches."""
    data = golden("steps.npz")
    batches = [golden_batch(data, which, second_set=False) for which in range(STEPS)]
    return small_model(), small_objective(5, base_loss="vse", gnn_loss="vse"), batches


def tiny_setting(mask_padding=False, **options):
    """A model of little width, its objective, and the golden batches in a vocabulary of 90."""
    torch.manual_seed(0)
    reader = small_bert(vocab_size=90, hidden_size=24, num_attention_heads=3, intermediate_size=32)
    model = HREM(reader, 48, 16, 4, dropout=0.0, mask_padding=mask_padding)
    batches = [batch._replace(pieces=batch.pieces % 90) for batch in golden_setting()[2]]
    return (
        model,
        Objective(16, heads=4, dropout=0.0, topk=5, mask_padding=mask_padding, **options),
        batches,
    )


def trajectory(setting):
    """Six steps. Returns losses, gradient norms, by step and name the gradients,
    and the weights in the end."""
    model, objective, batches = setting()
    optimizer = optim.build(model, objective, learning_rate=5e-4)
    replicas = distributed.wrap_ddp(engine.BatchLoss(model, objective))
    named = dict(model.named_parameters()) | dict(objective.named_parameters())
    reports, gradients = [], []

    def on_step(step, report, *times):
        reports.append(report)
        gradients.append(
            {name: value.grad.clone() for name, value in named.items() if value.grad is not None}
        )

    for which, batch in enumerate(batches):
        engine.train_epoch(
            model, objective, optimizer, [own_shard(batch)], step=which, seed=0, warmup=GRAPH_FROM,
            hardest=which >= HARDEST_FROM, grad_clip=2.0, device="cpu", on_step=on_step,
            replicas=replicas,
        )  # fmt: skip
    norm = model.image_encoder.mlp[1]
    weights = named | dict(
        mean=norm.running_mean, variance=norm.running_var, count=norm.num_batches_tracked
    )
    return dict(
        losses=torch.stack([report.loss for report in reports]),
        terms=[report.terms for report in reports],
        norms=torch.stack([report.gradient_norm for report in reports]),
        gradients=gradients,
        weights={name: value.detach() for name, value in weights.items()},
    )


def check_same_steps(size, setting):
    run = partial(trajectory, setting)
    alone, *found = run(), *in_processes(size, run)
    for several in found:
        for name in ("losses", "norms"):
            torch.testing.assert_close(several[name], alone[name], rtol=1e-4, atol=1e-6)
        assert [terms.keys() for terms in several["terms"]] == [
            terms.keys() for terms in alone["terms"]
        ]
        for step, (ours, theirs) in enumerate(zip(several["gradients"], alone["gradients"])):
            # before the graph takes part its parameters have none, and do not move
            assert ours.keys() == theirs.keys()
            for name in ours:
                difference, scale = (
                    (ours[name] - theirs[name]).abs().max(),
                    theirs[name].abs().max(),
                )
                assert difference < 1e-3 * scale + 1e-6, (step, name)
        for name, value in alone["weights"].items():
            largest = sum(step[name].abs() for step in alone["gradients"] if name in step)
            # Adam moves by its learning rate what has no gradient but rounding, as the biases of
            # attention's keys.
            is_rounding = torch.as_tensor((name == "mean") | (largest < 1e-5))
            difference, tolerance = (several["weights"][name] - value).abs(), 1e-3 * value.abs()
            assert (difference <= tolerance + torch.where(is_rounding, 4e-3, 1e-4)).all(), name
    for several in found[1:]:
        assert all(
            torch.equal(value, found[0]["weights"][name])
            for name, value in several["weights"].items()
        )


VARIANTS = {
    "hinges": dict(base_loss="vse", gnn_loss="vse"),
    "drawn negatives": dict(base_loss="trip", gnn_loss="trip"),
    "masked padding": dict(mask_padding=True),
    "contrastive, standalone, not normalised": dict(
        base_loss="infonce", gnn_loss="infonce", interaction="standalone", norm_input=False
    ),
    "intra alone": dict(relation="intra"),
    "no relevance": dict(use_relevance=False),
    "no graph": dict(interaction="none", base_loss="vse"),
}
QUICK = [
    ("hinges", 2),
    ("drawn negatives", 2),
    ("masked padding", 3),
    ("contrastive, standalone, not normalised", 2),
]


@pytest.mark.parametrize("name, size", QUICK)
def test_six_steps_are_those_of_one_process(name, size):
    check_same_steps(size, partial(tiny_setting, **VARIANTS[name]))


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_six_steps_are_those_of_one_process_with_any_options(size, options):
    check_same_steps(size, partial(tiny_setting, **options))


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 3])
def test_six_golden_steps_are_those_of_one_process(size):
    check_same_steps(size, golden_setting)


OPTIONS = (
    "--dataset demo --num_epochs 2 --batch_size 30 --embed_size 32 --nhead 2 --warmup 6 "
    "--log_step 4 --dropout 0 --learning_rate 0.0001 --base_loss vse --gnn_loss vse --workers 0 "
    "--save_results 0"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small demo data set whose BERT drops nothing out."""
    folder = make_data(tmp_path_factory, train=30, dev=30, test=30)
    configure(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)(folder / "demo_precomp")
    return folder


def fit(data, folder, *more):
    return train.main([*OPTIONS, "--data_path", str(data), "--logger_name", str(folder), *more])


def numbers(text):
    return torch.tensor([float(number) for number in re.findall(r"\d+\.\d+", text)])


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    fit(data, folder)
    return shared(folder)


def check_same_losses(found, expected):
    """The logs of two runs tell the same losses, of the same steps."""
    ours, theirs = ((folder / "train.txt").read_text() for folder in (found, expected))
    for left, right in zip(
        *(re.findall(r"step .*: loss .*, gradient", text) for text in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(numbers(left), numbers(right), rtol=1e-3, atol=1e-3)


def test_a_run_of_two_processes_is_that_of_one(data, alone, tmp_path):
    first, second = in_processes(2, partial(fit, data, tmp_path / "two"))
    saved = json.loads((tmp_path / "two" / "metrics.json").read_text())["test"]["scores"]
    # the second process knows what the first has counted and saved
    for (result,) in (first, second):
        assert {label: scores.rsum for label, scores in result.scores.items()} == pytest.approx(
            {label: scores["rsum"] for label, scores in saved.items()}
        )
    check_same_losses(tmp_path / "two", alone)
    assert (
        "2 processes, 15 pairs of a batch in each" in (tmp_path / "two" / "train.txt").read_text()
    )
    weights = [read(folder, "last.pth")["model"] for folder in (tmp_path / "two", alone)]
    assert weights[0].keys() == weights[1].keys()
    assert sorted(path.name for path in alone.iterdir() if "tfevents" not in path.name) == sorted(
        path.name for path in (tmp_path / "two").iterdir() if "tfevents" not in path.name
    )
    assert len(list((tmp_path / "two").glob("*tfevents*"))) == 1  # one process writes
    assert pictures(tmp_path / "two") == pictures(alone) != []


def pictures(folder):
    """(tag, step) of the graphs that TensorBoard shows."""
    found = events(folder)
    return [
        (tag, image.step) for tag in sorted(found.Tags()["images"]) for image in found.Images(tag)
    ]


def test_neighbours_meet_in_the_batches_of_two_processes_too(data, tmp_path):
    more = "--batch_sampling", "neighbour", "--batch_clusters", "3", "--num_epochs", "1"
    in_processes(2, partial(fit, data, tmp_path / "two", *more))
    fit(data, tmp_path / "one", *more)
    check_same_losses(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("size", [2, 3])
def test_an_evaluation_of_several_processes_is_that_of_one(data, alone, tmp_path, size):
    written = {}
    for processes in (1, size):
        folder = tmp_path / str(processes)
        shutil.copytree(alone, folder)
        command = [
            "--model_path",
            str(folder),
            "--data_path",
            str(data),
            "--split",
            "train",
            "--save_results",
            "1",
        ]
        run = partial(evaluation.main, [*command, "--export", str(folder / "export"), "--report"])
        assert run() is None if processes == 1 else in_processes(size, run) == [None] * size
        files = ["train.md", "results_demo+split=train.npy"]
        files += ["export/image_embeddings.npy", "export/caption_embeddings.npy"]
        written[processes] = [(folder / name).read_bytes() for name in files]
    assert written[1] == written[size]


def test_a_search_of_two_processes_is_answered_by_the_first(data, alone, tmp_path, capfd):
    copied = shutil.copytree(alone, tmp_path / "run")
    command = [
        "--model_path",
        str(copied),
        "--data_path",
        str(data),
        "--query",
        "a red ball",
        "--topk",
        "3",
    ]
    assert in_processes(2, partial(evaluation.main, command)) == [None, None]
    assert capfd.readouterr().out.count("best of 30 images") == 1


def test_an_evaluation_that_cannot_be_ends_all_with_its_message(data, alone):
    command = ["--model_path", str(alone), "--data_path", str(data), "--split", "nowhere"]
    first, second = in_processes(2, partial(evaluation.main, command))
    assert "nowhere" in str(first) and second.code == 2


@pytest.mark.long
def test_a_compiled_run_is_that_of_one_that_is_not(data, alone, tmp_path):
    fit(data, tmp_path / "compiled", "--compile", "1")
    check_same_losses(tmp_path / "compiled", alone)
    model = read(tmp_path / "compiled", "last.pth")["model"]
    assert model.keys() == read(alone, "last.pth")["model"].keys()


def test_a_run_of_two_goes_on_in_one_and_in_three(data, alone, tmp_path):
    ended = in_processes(2, partial(stopped, data, tmp_path / "run"))
    assert [error.code for error in ended] == [143, 143]  # one of them got the signal
    assert read(tmp_path / "run", "last.pth")["step"] == 3
    assert (
        len(
            in_processes(
                3, partial(fit, data, tmp_path / "run", "--resume", "auto", "--num_epochs", "1")
            )
        )
        == 3
    )
    fit(data, tmp_path / "run", "--resume", "auto")
    check_same_losses(tmp_path / "run", alone)


def stopped(data, folder):
    """A run in which the last process gets a signal after the third step."""
    add = logs.StepLog.add

    def add_and_signal(log, epoch, step_in_epoch, step, *more):
        add(log, epoch, step_in_epoch, step, *more)
        if step == 3 and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    logs.StepLog.add = add_and_signal  # in a process of its own
    fit(data, folder)


def with_an_image_of_nan():
    """A step whose data are bad in the second process alone."""

    def batches():
        yield "good"
        if distributed.rank() == 1:
            raise InputError("image 7 holds NaN")
        yield "good"

    return list(distributed.synchronised_iterator(batches()))


def test_what_one_process_meets_ends_all_with_its_message():
    first, *others = in_processes(3, with_an_image_of_nan)
    assert isinstance(first, distributed.AllRanksError) and str(first) == "image 7 holds NaN"
    assert [error.code for error in others] == [2, 2]


def nested():
    with distributed.raise_on_all_ranks():
        if distributed.rank() == 1:
            raise InputError("no such folder")
        return distributed.broadcast_from_main(lambda: "computed")


def test_an_error_is_heard_by_those_who_wait_inside():
    first, other = in_processes(2, nested)
    assert str(first) == "no such folder" and other.code == 2


def agreements():
    found = distributed.map_sharded(lambda item: (item, distributed.rank()), range(5), "items")
    rows = torch.arange(6.0).reshape(3, 2)[distributed.rank() :: distributed.world_size()]
    return dict(
        largest=distributed.all_reduce_max(distributed.rank()),
        shares=found,
        rows=distributed.gather(rows),
        broadcast=distributed.broadcast_from_main(distributed.rank),
        in_turn=distributed.main_process_first(distributed.rank),
        agreed=[
            bool(distributed.all_ranks_agree(torch.tensor(value)))
            for value in (True, distributed.rank() == 0)
        ],
    )


@pytest.mark.parametrize("size", [1, 3])
def test_what_is_shared(size):
    for rank, found in enumerate(in_processes(size, agreements) if size > 1 else [agreements()]):
        assert found["largest"] == size - 1 and found["broadcast"] == 0 and found["in_turn"] == rank
        assert found["shares"] == [(item, item % size) for item in range(5)]
        assert torch.equal(found["rows"], torch.arange(6.0).reshape(3, 2))
        assert found["agreed"] == [True, size == 1]


def test_a_batch_that_the_processes_do_not_divide_is_refused(data, tmp_path):
    first, *others = in_processes(3, partial(fit, data, tmp_path / "run", "--batch_size", "31"))
    assert "--batch_size 31 is not a multiple of the 3 processes" in str(
        first
    ) and "--batch_size 33" in str(first)
    assert [error.code for error in others] == [2, 2] and not (tmp_path / "run").exists()


def test_the_published_switch_prints_the_command(refusal):
    command = "torchrun --nproc_per_node 1 train.py --dataset coco --batch_size 256"
    refusal(
        train.main,
        "--dataset",
        "coco",
        "--multi_gpu",
        "1",
        "--batch_size",
        "256",
        expected=[command],
    )


def test_the_shares_of_a_batch_make_the_batch(data):
    split = splits.load_split(data, "demo", "train", data / "demo_precomp" / "bert")
    item = 3, np.arange(7, 37)
    whole, pairs = TrainingPairs(split, seed=1)[item], TrainingPairs(split, seed=1)
    for rank in range(3):
        pairs.shard = slice(rank, None, 3)
        found = pairs[item]
        for name in found._fields:
            expected = getattr(whole, name)
            assert torch.equal(
                getattr(found, name), expected if name == "image_ids" else expected[rank::3]
            ), name


def torchrun(*arguments):
    """Start torchrun on train.py with the options of this file, one thread a process."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, arguments), *OPTIONS],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


TRAIN = Path(train.__file__)


@pytest.mark.long
def test_torchrun_starts_a_run_again_whose_process_was_killed(data, alone, tmp_path):
    command = (
        TRAIN,
        "--data_path",
        data,
        "--logger_name",
        tmp_path / "run",
        "--resume",
        "auto",
        "--save_step",
        "1",
    )
    process = torchrun("--standalone", "--nproc_per_node", "2", "--max-restarts", "1", *command)
    said = []
    for line in process.stdout:
        said.append(line)
        # said before it is saved: it may come again, and is not killed again
        if line.startswith("epoch 0 step 4:"):
            os.kill(worker(process.pid, rank=1), signal.SIGKILL)
            break
    said += process.stdout
    assert process.wait() == 0, "".join(said)
    going_on = [line for line in said if line.startswith("going on from")]
    assert len(going_on) == 1 and re.search(r"step [3-9],", going_on[0])
    check_same_losses(tmp_path / "run", alone)


def worker(launcher, rank):
    """The process that torchrun, a process id, started as the one of this rank."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            is_child = f"PPid:\t{launcher}\n" in (environment.parent / "status").read_text()
            if is_child and f"RANK={rank}" in environment.read_text().split("\0"):
                return int(environment.parent.name)
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    raise LookupError(f"no process of rank {rank} under {launcher}")


@pytest.mark.long
def test_two_nodes_train_as_one(data, alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    meeting = (
        "--nnodes",
        "2",
        "--nproc_per_node",
        "1",
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        endpoint,
    )
    command = TRAIN, "--data_path", data, "--logger_name", tmp_path / "run"
    nodes = [torchrun(*meeting, "--local_addr", "127.0.0.1", *command) for _ in range(2)]
    said = [node.communicate(timeout=PROCESS_TIMEOUT)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sum("2 processes, 15 pairs" in text for text in said) == 1  # one of them speaks
    check_same_losses(tmp_path / "run", alone)


@pytest.mark.long
def test_torchrun_ends_with_the_message_of_the_process_that_failed(data, tmp_path):
    command = (
        TRAIN,
        "--data_path",
        data,
        "--logger_name",
        tmp_path / "run",
        "--bert_path",
        tmp_path / "no_bert",
    )
    process = torchrun("--standalone", "--nproc_per_node", "2", *command)
    said = process.communicate(timeout=PROCESS_TIMEOUT)[0]
    assert (
        process.returncode == 1
        and said.count("no_bert: found neither") == 1
        and "exitcode  : 2" in said
    )
