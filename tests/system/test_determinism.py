"""--deterministic 1: cuBLAS is told before CUDA starts, or the run is refused with the reason.
No GPU is needed."""

import os

import pytest
import torch

import train
from lib.system import devices
from lib.system.errors import InputError

NAME = "CUBLAS_WORKSPACE_CONFIG"
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No setting of cuBLAS, CUDA not started; everything as before afterwards."""
    monkeypatch.setenv(NAME, "")  # remembered, so that what a test sets is taken away again
    monkeypatch.delenv(NAME)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    yield monkeypatch
    torch.use_deterministic_algorithms(False)


def setting():
    return os.environ.get(NAME)


def test_cublas_is_told_before_cuda_starts():
    devices.prepare_determinism()
    assert setting() == ":4096:8"
    devices.set_determinism(True, GPU)
    assert torch.are_deterministic_algorithms_enabled()
    devices.set_determinism(False, GPU)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_setting_that_is_deterministic_stays(environment):
    environment.setenv(NAME, ":16:8")
    devices.prepare_determinism()
    devices.set_determinism(True, GPU)
    assert setting() == ":16:8"


@pytest.mark.parametrize("value", [":4096:2:16:8", ":0:0", "", "4096:8"])
def test_a_setting_that_is_not_deterministic_is_refused(environment, value):
    environment.setenv(NAME, value)
    devices.prepare_determinism()
    with pytest.raises(
        InputError, match=f"found {NAME}='{value}' .*expected .*:4096:8 or :16:8.*; unset {NAME}"
    ):
        devices.set_determinism(True, GPU)
    assert not torch.are_deterministic_algorithms_enabled()
    devices.set_determinism(True, CPU)  # no cuBLAS, nothing to refuse
    devices.set_determinism(False, GPU)


def test_cuda_that_was_started_without_it_is_refused(environment):
    environment.setattr(torch.cuda, "is_initialized", lambda: True)
    devices.prepare_determinism()
    assert setting() is None
    with pytest.raises(
        InputError, match="CUDA was started in this process before .*start the run in a new process"
    ):
        devices.set_determinism(True, GPU)


@pytest.mark.parametrize("options, expected", [
    (["--deterministic", "1"], ":4096:8"), (["--deterministic=1"], ":4096:8"), ([], None),
])  # fmt: skip
def test_the_program_tells_cublas_before_processes_are_joined(environment, options, expected):
    class Reached(Exception):
        pass

    def joined():
        raise Reached(setting())

    environment.setattr(train.distributed, "process_group", joined)
    with pytest.raises(Reached, match=f"^{expected}$"):
        train.main([*options, "--dataset", "demo"])


def test_a_gpu_with_another_setting_ends_the_run_in_one_line(environment, whole, tmp_path, refusal):
    environment.setenv(NAME, ":0:0")
    environment.setattr(devices, "choose_device", lambda *chosen: GPU)
    refusal(
        train.main, "--dataset", "demo", "--data_path", whole, "--logger_name", tmp_path / "run",
        "--deterministic", 1,
        expected=["--deterministic 1", NAME, "unset"],
    )  # fmt: skip
    assert not (tmp_path / "run").exists()
