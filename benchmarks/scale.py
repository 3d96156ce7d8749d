"""Opening and training on features the size of COCO's (a sparse file),
and cutting its captions: time and memory."""

import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
from transformers import BertConfig, BertModel, BertTokenizerFast

from benchmarks import common
from graph_lib import Objective
from lib.data.batches import TrainingPairs, batches, training_loader
from lib.data.dataset import RetrievalDataset
from lib.model.network import HREM
from lib.model.options import ModelOptions
from lib.training import engine, optim

HEADER = common.header(
    "images, captions",
    "features",
    "cut captions",
    "open again",
    "step after that",
    "memory held",
    "of it mapped file",
)
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwxz" for vowel in "aeiou"]
MOST_WORDS = 25_000  # different words in the captions, about as many as COCO has


def main():
    options = common.arguments(__doc__, images=[113287], steps=5, batch_size=128)
    print(HEADER)
    for num_images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), num_images, options)


def make_split(folder, num_images):
    """Features of zeros that take no room on disk, captions of real lengths,
    and a tokeniser that cuts their words."""
    shape = (num_images, common.REGIONS, common.REGION_DIM)
    np.lib.format.open_memmap(folder / "train_ims.npy", mode="w+", dtype=np.float32, shape=shape)
    generator = np.random.default_rng(0)
    words = np.array(
        [
            "".join(parts)
            for parts in itertools.islice(itertools.product(SYLLABLES, repeat=3), MOST_WORDS)
        ]
    )
    lengths = common.caption_lengths(5 * num_images, generator) - 2
    drawn = words[generator.zipf(1.5, size=lengths.sum()) % len(words)]
    with open(folder / "train_caps.txt", "w") as file:
        for caption in np.split(drawn, np.cumsum(lengths)[:-1]):
            file.write(" ".join(caption) + "\n")
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *SYLLABLES,
        *(f"##{part}" for part in SYLLABLES),
    ]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return BertTokenizerFast(str(folder / "vocab.txt"))


def measure(folder, num_images, options):
    """Print the row of one size."""
    tokeniser = make_split(folder, num_images)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        split = RetrievalDataset(folder, "train", tokeniser)
        seconds.append(time.perf_counter() - started)
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokeniser), num_hidden_layers=1, hidden_size=64, num_attention_heads=2
        )
    )
    small = ModelOptions(embed_size=64, nhead=2)
    model, objective = HREM(bert, options=small).train(), Objective(small).train()
    optimizer = optim.build(model, objective, 5e-4)
    loader = training_loader(TrainingPairs(split, seed=0), options.batch_size, workers=1)
    started = time.perf_counter()
    for batch in itertools.islice(batches(loader), options.steps):
        engine.training_step(model, objective, optimizer, batch, use_graph=True)
    step = (time.perf_counter() - started) / options.steps
    size = (folder / "train_ims.npy").stat().st_size / 1e9
    common.print_row(
        f"{num_images}, {split.num_captions}",
        f"{size:.1f} GB",
        *(f"{value:.1f} s" for value in seconds),
        f"{step:.2f} s",
        f"{common.resident('VmRSS'):.0f} MB",
        f"{common.resident('RssFile'):.0f} MB",
        common.hardware("cpu"),
    )


if __name__ == "__main__":
    main()
