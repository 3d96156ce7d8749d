"""Both programs on a GPU: a few epochs of the demo in every precision, tables equal to the CPU's,
bitwise resume, too little memory, one process under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from damage import OPTIONS
from helpers import PROCESS_TIMEOUT, evaluate, fit, read, same

import train
from lib.model.options import PRECISIONS

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
GPU = ["--device", "cuda"]


def run(*command, expected_status=0):
    """A program of its own: what cuBLAS is told counts before CUDA starts in a process."""
    environment = {name: os.environ[name] for name in os.environ if "CUBLAS" not in name}
    found = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=PROCESS_TIMEOUT,
    )  # fmt: skip
    assert found.returncode == expected_status, found.stdout + found.stderr
    return found.stdout


def all_finite(folder):
    weights = read(folder)["model"].values()
    return all(bool(value.isfinite().all()) for value in weights)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_six_epochs_learn(whole, tmp_path, precision):
    more = ["--num_epochs", 6, "--learning_rate", 2e-3, "--precision", precision]
    folder = fit([*OPTIONS, *GPU], whole, tmp_path / "run", *more)
    assert all_finite(folder)
    results = json.loads((folder / "metrics.json").read_text()).values()
    found = [scores["rsum"] for result in results for scores in result["scores"].values()]
    assert len(found) == 1 and found[0] > 180  # 160 by chance: 10 images


def test_the_table_of_a_gpu_is_that_of_a_cpu(copied, whole, capsys):
    tables = []
    for device in ("cpu", "cuda"):
        capsys.readouterr()
        evaluate("--model_path", copied / "model_best.pth", "--data_path", whole,
                 "--dataset", "demo", "--device", device)  # fmt: skip
        tables.append([line for line in capsys.readouterr().out.splitlines() if "R@" in line])
    assert tables[0] and tables[0] == tables[1]


def test_a_resumed_run_is_the_whole_run_bit_for_bit(whole, tmp_path):
    command = ["train.py", *OPTIONS, *GPU, "--deterministic", 1, "--data_path", whole]
    for name, epochs in (("whole", [2]), ("again", [2]), ("resumed", [1, 2])):
        for number in epochs:
            run(*command, "--logger_name", tmp_path / name, "--num_epochs", number,
                "--resume", "auto")  # fmt: skip
    whole_run = read(tmp_path / "whole", "last.pth")
    for name in ("again", "resumed"):
        found = read(tmp_path / name, "last.pth")
        for part in ("model", "objective", "optimizer"):
            assert same(found[part], whole_run[part]), (name, part)


def test_too_little_memory_ends_in_one_line(whole, tmp_path, refusal):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        refusal(
            train.main, *OPTIONS, *GPU, "--data_path", whole, "--logger_name", tmp_path / "run",
            "--embed_size", 4096, expected=["out of memory", "--batch_size"],
        )  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_one_process_under_torchrun_is_the_run_without(whole, tmp_path):
    """NCCL starts, gathers and averages; with one process the losses are those of no process
    group."""
    command = ["train.py", *OPTIONS, *GPU, "--data_path", whole, "--deterministic", 1]
    run(*command, "--logger_name", tmp_path / "alone")
    run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1, *command,
        "--logger_name", tmp_path / "torchrun")  # fmt: skip
    alone, one = (read(tmp_path / name)["model"] for name in ("alone", "torchrun"))
    for name, value in alone.items():
        torch.testing.assert_close(one[name], value, atol=1e-5, rtol=1e-4)


def test_compiled_encoders_train(whole, tmp_path):
    more = ["--compile", 1, "--num_epochs", 1]
    folder = fit([*OPTIONS, *GPU], whole, tmp_path / "run", *more)
    assert all_finite(folder)
