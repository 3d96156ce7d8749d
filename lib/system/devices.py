"""The device that a program computes on, kernels that give the same bits again,
too little memory."""

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from .errors import InputError, first_sentence

# what torch says of a CPU's
OUT_OF_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory")
CUBLAS_WORKSPACE, DETERMINISTIC_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


def choose_device(name: str = "auto", gpu_id: int = 0) -> torch.device:
    """The torch device of --device and --gpu-id. Raises InputError if it does not exist."""
    if name == "auto":
        name = f"cuda:{gpu_id}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("this program runs on CPUs and CUDA GPUs")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {name}: not usable here ({first_sentence(error)}); expected auto, cpu, "
            f"cuda or cuda:N; CUDA GPUs found: {torch.cuda.device_count()}"
        ) from error
    return device


def prepare_determinism() -> None:
    """Make cuBLAS deterministic. cuBLAS reads this setting once, so call this before the first CUDA
    call.

    A setting of the user is kept; `set_determinism` refuses one that is not deterministic.
    """
    if not torch.cuda.is_initialized():
        os.environ.setdefault(CUBLAS_WORKSPACE, DETERMINISTIC_WORKSPACES[0])


def set_determinism(enabled: bool, device: torch.device) -> None:
    """Allow only deterministic kernels, or all kernels. Raises InputError if cuBLAS is not
    deterministic on `device`."""
    found = os.environ.get(CUBLAS_WORKSPACE)
    if enabled and device.type == "cuda" and found not in DETERMINISTIC_WORKSPACES:
        expected = f"expected {CUBLAS_WORKSPACE}={' or '.join(DETERMINISTIC_WORKSPACES)}"
        if found is None:
            raise InputError(
                "--deterministic 1: CUDA was started in this process before the option was read "
                f"(found no {CUBLAS_WORKSPACE}), {expected} in the environment from the start; "
                "start the run in a new process"
            )
        raise InputError(
            f"--deterministic 1: found {CUBLAS_WORKSPACE}={found!r} in the environment, "
            f"{expected}: matrix products on a GPU differ from run to run otherwise; unset "
            f"{CUBLAS_WORKSPACE}"
        )
    torch.use_deterministic_algorithms(enabled)


@contextlib.contextmanager
def memory_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn out-of-memory errors of the machine or its GPU into an InputError with this remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        is_memory = isinstance(
            error, (MemoryError, torch.OutOfMemoryError)
        ) or OUT_OF_MEMORY.search(str(error))
        if not is_memory:
            raise
        raise InputError(
            f"out of memory at {what} ({first_sentence(error)}), expected it to fit: {remedy}"
        ) from error
