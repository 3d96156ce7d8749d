"""Functions run in several processes, as torchrun starts them."""

import multiprocessing
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import PROCESS_TIMEOUT

from lib.system import distributed
from lib.system.errors import InputError


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
