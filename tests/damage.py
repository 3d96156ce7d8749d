"""Damage to a data folder, a BERT or a run folder,
and what a folder holds: for tests of bad input."""

import json
import shutil

import numpy as np
import torch

OPTIONS = (
    "--dataset demo --num_epochs 1 --batch_size 20 --embed_size 16 --nhead 2 --workers 0 --warmup 0"
).split()
TRAIN, CAPTIONS, WEIGHTS = "train_ims.npy", "train_caps.txt", "bert/model.safetensors"


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def edit(name, change):
    """Damage: replace a file's bytes by change(bytes)."""

    def damage(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def regions(split, change):
    """Damage: replace the array of a split by change(array)."""

    def damage(folder):
        path = folder / f"{split}_ims.npy"
        np.save(path, change(np.load(path)))

    return damage


def poison(split, image, *values):
    def change(array):
        array[image, 1, : len(values)] = values
        return array

    return regions(split, change)


def configure(**settings):
    return edit(
        "bert/config.json", lambda content: json.dumps(json.loads(content) | settings).encode()
    )


def remove(name):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def weights_as_pickle(content):
    def damage(folder):
        (folder / "bert" / "model.safetensors").unlink()
        (folder / "bert" / "pytorch_model.bin").write_bytes(content)

    return damage


def saved_with(path, **entries):
    """A checkpoint whose entries are replaced."""
    torch.save(torch.load(path, weights_only=True) | entries, path)
