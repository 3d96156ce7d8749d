"""A training batch from one worker, features in the page cache,
against loading a sample at a time."""

import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader
from transformers import BertTokenizerFast

from benchmarks import common
from benchmarks.reference import OnePairAtATime, collate
from lib.data.batches import TrainingPairs, batches, training_loader
from lib.data.dataset import RetrievalDataset

HEADER = common.header("batch", "batches", "one at a time", "one at a time / batches")
WORDS = [f"{a}{b}{c}" for a in "bcdfgklmnprst" for b in "aeiou" for c in "bdgklmnprst"]


def main():
    options = common.arguments(__doc__, batch_size=[128], images=2000, batches=30)
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        split, texts, tokeniser = make_split(Path(folder), options.images)
        for batch_size in options.batch_size:
            measure(split, texts, tokeniser, batch_size, options)


def make_split(folder, num_images):
    """A split of random features and captions of real lengths, written and opened again."""
    generator = np.random.default_rng(0)
    shape = (num_images, common.REGIONS, common.REGION_DIM)
    np.save(folder / "train_ims.npy", generator.random(shape, dtype=np.float32))
    lengths = common.caption_lengths(5 * num_images, generator) - 2
    texts = [" ".join(generator.choice(WORDS, size=length)) for length in lengths]
    (folder / "train_caps.txt").write_text("\n".join(texts) + "\n")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokeniser = BertTokenizerFast(str(folder / "vocab.txt"))
    return RetrievalDataset(folder, "train", tokeniser), texts, tokeniser


def seconds_a_batch(loader, count):
    """Mean over `count` batches, the first ones left out: the worker has to start."""
    iterator, found = iter(loader), []
    for _ in itertools.islice(iterator, 4):
        pass
    for _ in range(count):
        started = time.perf_counter()
        next(iterator)
        found.append(time.perf_counter() - started)
    return float(np.mean(found))


def measure(split, texts, tokeniser, batch_size, options):
    """Print the row of one batch size."""
    ours, theirs = [], []
    for _ in range(options.rounds):
        loader = training_loader(TrainingPairs(split, seed=0), batch_size, workers=1)
        ours.append(seconds_a_batch(batches(loader), options.batches))
        plain = OnePairAtATime(split, texts, tokeniser)
        loader = DataLoader(
            plain, batch_size, shuffle=True, num_workers=1, collate_fn=collate, drop_last=True
        )
        theirs.append(seconds_a_batch(loader, options.batches))
    ours, theirs = float(np.median(ours)), float(np.median(theirs))
    common.print_row(
        batch_size,
        f"{ours:.4f} s",
        f"{theirs:.4f} s",
        f"{theirs / ours:.1f}",
        common.hardware("cpu"),
    )


if __name__ == "__main__":
    main()
