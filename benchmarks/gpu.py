"""Measure everything on one GPU, and write one Markdown file."""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parents[1]

# title -> command after "python -m", for the published sizes and for a try on a CPU
SECTIONS = {
    "Training step": (
        "benchmarks.step --batch_size 128 256 --precision fp32 tf32 bf16",
        "benchmarks.step --batch_size 8",
    ),
    "Profile of a training step": (
        "benchmarks.profile_step --precision fp32 bf16",
        "benchmarks.profile_step --batch_size 8",
    ),
    "Cross-modal relations": (
        "benchmarks.relations --batch_size 64 128 256 512",
        "benchmarks.relations --batch_size 8 16",
    ),
    "Cross-modal relations, larger batches": (
        "benchmarks.relations --batch_size 1024 2048 --yardstick 0",
        "benchmarks.relations --batch_size 32 --yardstick 0",
    ),
    "Memory of the relations, counted without a GPU": (
        "benchmarks.memory --parts relations --batch_size 64 128 256 512 1024 2048",
        "benchmarks.memory --parts relations --batch_size 8",
    ),
    "Cross-attention": (
        "benchmarks.cross_attention --batch_size 64 128 --rounds 3",
        "benchmarks.cross_attention --batch_size 4",
    ),
    "Cross-attention, larger batches": (
        "benchmarks.cross_attention --batch_size 256 512 1024 2048 --yardstick 0 --rounds 2",
        "benchmarks.cross_attention --batch_size 8 --yardstick 0",
    ),
    "Training step of SCAN, and an evaluation by cross-attention": (
        "benchmarks.cross_attention --batch_size 0 --steps 128 --images 1000 --rounds 1",
        "benchmarks.cross_attention --batch_size 0 --steps 4 --images 4 --rounds 1",
    ),
    "Encoding": ("benchmarks.encoding --images 1000", "benchmarks.encoding --images 8"),
    "Ranking from embeddings": (
        "benchmarks.ranking --images 5000 --embeddings 1 --rounds 3",
        "benchmarks.ranking --images 100 --embeddings 1",
    ),
    "Loading": (
        "benchmarks.loader --rounds 2",
        "benchmarks.loader --images 20 --batches 2 --batch_size 8",
    ),
    "Training step with `--compile 1`": (
        "benchmarks.step --precision fp32 bf16 --compile 1",
        "",
    ),
    "Tests on a GPU": ("pytest -m gpu -n 8", "pytest -m gpu tests/gpu/test_golden_on_gpu.py"),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--small", action="store_true", help="small sizes, to try it on a CPU")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), metavar="TITLE",
                        choices=SECTIONS, help="only these parts")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8, help="stop after this time")
    parser.add_argument("--commit", default=None, help="default: what git says")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    options.out.write_text(head(options.commit or commit()))
    for title in options.sections:
        command = SECTIONS[title][options.small]
        if not command:
            continue
        found = run(command.split(), deadline)
        with open(options.out, "a") as file:
            file.write(f"\n## {title}\n\n    python -m {command}\n\n{found.strip()}\n")
        print(f"{title}: written", flush=True)


def head(revision):
    """Title, hardware and versions, as Markdown."""
    has_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if has_gpu else platform.processor() or "CPU"
    memory = ""
    if has_gpu:
        memory = f", {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
    return (
        f"# {device}, {datetime.date.today()}\n\n"
        f"{device}{memory}; {os.cpu_count()} CPU cores; Python {platform.python_version()}, torch "
        f"{torch.__version__}, CUDA {torch.version.cuda}, transformers {transformers.__version__}; "
        f"commit {revision}.\n"
    )


def commit():
    """The commit of the working tree, and whether it has changes."""
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run(command, deadline):
    """Output of a section, or why there is none. A section that fails does not end the others."""
    environment = os.environ | {"HREM_TEST_GPU": "1", "PYTHONWARNINGS": "ignore"}
    try:
        found = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True,
            text=True, timeout=max(deadline - time.monotonic(), 1),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode()
        return f"{output}\n\n**Stopped after {error.timeout:.0f} seconds.**"
    if found.returncode:
        last = "\n".join(found.stderr.strip().splitlines()[-15:])
        return (
            f"{found.stdout}\n\n**Failed with exit status {found.returncode}.**\n\n```\n{last}\n```"
        )
    return found.stdout


if __name__ == "__main__":
    main()
