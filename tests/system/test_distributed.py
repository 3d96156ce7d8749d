"""Several processes compute what one computes: runs, data, tables;
and none waits for another in vain."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import configure
from helpers import PROCESS_TIMEOUT, events, make_data, read, shared
from processes import in_processes

import eval as evaluation
import train
from lib.data.batches import TrainingPairs
from lib.model import splits
from lib.system import distributed
from lib.system.errors import InputError
from lib.training import logs

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
    assert "--batch_size 31: the processes cannot share the batch equally" in str(
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
    resuming = [line for line in said if line.startswith("resuming from")]
    assert len(resuming) == 1 and re.search(r"step [3-9],", resuming[0])
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
