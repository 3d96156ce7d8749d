"""What every benchmark needs: the published configuration, interleaved timing, memory,
and the row it prints."""

import argparse
import ctypes
import datetime
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel

from graph_lib import Objective
from lib.data.batches import Batch
from lib.data.dataset import pad_pieces
from lib.model.network import HREM

REGIONS, REGION_DIM, EMBED_SIZE = 36, 2048, 1024
# gamma: 13.4 pieces on average, 27 the longest of 128
SHORTEST_CAPTION, CAPTION_SHAPE, CAPTION_SCALE = 4, 4.5, 2.09


def arguments(description, **extra):
    """Parse a benchmark's command line: --device, --rounds, and `extra` of name -> default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--rounds", type=int, default=5, help="interleaved repetitions; the median counts"
    )
    for name, default in extra.items():
        kind = (
            dict(type=type(default[0]), nargs="+")
            if isinstance(default, list)
            else dict(type=type(default))
        )
        parser.add_argument(f"--{name}", default=default, **kind)
    return parser.parse_args()


def caption_lengths(count, generator):
    """Word pieces of `count` captions, [CLS] and [SEP] included, distributed as in Flickr30K."""
    drawn = SHORTEST_CAPTION + generator.gamma(CAPTION_SHAPE, CAPTION_SCALE, size=count)
    return np.round(drawn).astype(np.int64)


def random_captions(lengths, generator):
    """Ids of captions of these lengths, a list of arrays,
    from the vocabulary of bert-base-uncased."""
    return [generator.integers(1000, 30000, size=length) for length in lengths]


def random_batch(batch_size, seed=0):
    """A training batch of the published configuration:
    36 regions of which a fifth is dropped, sorted captions."""
    generator = np.random.default_rng(seed)
    pieces, piece_lengths = pad_pieces(
        random_captions(-np.sort(-caption_lengths(batch_size, generator)), generator)
    )
    region_lengths = torch.from_numpy(generator.binomial(REGIONS, 0.8, size=batch_size))
    regions = torch.from_numpy(
        generator.random((batch_size, int(region_lengths.max()), REGION_DIM), dtype=np.float32)
    )
    regions *= (torch.arange(regions.size(1)) < region_lengths[:, None])[:, :, None]
    return Batch(regions, region_lengths, pieces, piece_lengths, torch.arange(batch_size))


def bert_base():
    """bert-base-uncased's architecture with random weights:
    what it costs does not depend on them."""
    torch.manual_seed(0)
    return BertModel(BertConfig(), add_pooling_layer=False)


def published_model(device):
    """Model and objective of the published configuration, in training mode, on `device`."""
    model = HREM(bert_base(), REGION_DIM).to(device)
    return model.train(), Objective().to(device).train()


def interleaved(functions, rounds, device="cpu", calls=1):
    """Median seconds per call of each function of a dict. The functions take turns; a turn is
    `calls` calls in a row, and the first of rounds + 1 turns is for warming up."""
    seconds = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            synchronise(device)
            started = time.perf_counter()
            for _ in range(calls):
                function()
            synchronise(device)
            if turn:
                seconds[name].append((time.perf_counter() - started) / calls)
    return {name: statistics.median(found) for name, found in seconds.items()}


def synchronise(device):
    """Wait for a GPU; nothing on a CPU."""
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(function, device="cpu"):
    """MB at the peak of a call, as (beyond what was held before, in all)."""
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return (peak - before) / 1e6, peak / 1e6
    # Linux: give back what is free, so that using it again counts
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before, resident("VmHWM")


class _Operations(TorchDispatchMode):
    """Counts what PyTorch does inside, views left out."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not operation.is_view
        return operation(*args, **(kwargs or {}))


def operations(function):
    """How many operations a call hands to the device; on a GPU each launches a kernel, or a few."""
    with _Operations() as found:
        function()
    return found.count


def resident(field):
    """A memory field of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1e3
    raise KeyError(field)


def hardware(device):
    """Device, versions, load and date: what a figure means nothing without."""
    if str(device).startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        lines = (
            Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        )
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        name = f"{torch.get_num_threads()} cores of {models[0] if models else platform.processor()}"
    load = f"load {os.getloadavg()[0]:.1f}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}; {versions}; {load}; {datetime.date.today()}"


def header(*columns):
    """The Markdown head of a benchmark's table; its last column says where and when it ran."""
    columns = *columns, "hardware, versions, load, date"
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def print_row(*cells):
    """A Markdown row."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
