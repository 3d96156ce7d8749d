"""Build the demo data, a small synthetic data set for a first training on a CPU within minutes.

The images are not photographs but toy scenes: a few coloured things on a background
(lib/data/demo_scenes.py). Each scene has the contents of real data sets: 36 region features, as a
detector would find them (lib/data/demo_regions.py), and five captions in plain English
(lib/data/demo_captions.py). A small untrained BERT belongs to it (lib/data/demo_bert.py). Nothing
is downloaded; everything depends only on a seed. The task is not trivial: features are noisy,
captions are incomplete, many scenes differ from another one in a single respect, and the two main
things of a dev or test scene never occur together in a training scene.
"""

# R regions, D region feature size

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..system.files import find_temporaries, lock
from .demo_bert import write_bert
from .demo_captions import captions
from .demo_regions import appearance, regions
from .demo_scenes import generator_of, scenes
from .demo_settings import FEATURES, REGIONS, SIZES_OF_SPLITS
from .layout import write_lines


def build_once(folder: Path | str) -> None:
    """Build the data set if it does not exist. One of several processes builds, the others wait."""
    with _building(Path(folder)):
        if not Path(folder).exists():
            build(folder)


def build(folder: Path | str, seed: int = 0, sizes: Mapping[str, int] = SIZES_OF_SPLITS) -> None:
    """Create `folder` and write the data set, the same bytes for the same seed and sizes.

    sizes: number of images of each split. Each split has SPLIT_ims.npy (N, R, D) float32,
    SPLIT_boxes.npy (N, R, 4) float32, SPLIT_caps.txt with 5N lines, and SPLIT_ids.txt with N lines;
    bert/ is an untrained BERT and its tokeniser. Raises FileExistsError if the folder exists.
    """
    folder = Path(folder)
    _refuse_existing(folder)
    with _building(folder):
        _refuse_existing(folder)  # another process may have built it in the meantime
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.part")
        # so that a killed build leaves no incomplete data set, and does not block the next build
        partial.mkdir()
        try:
            (partial / "bert").mkdir()
            first_id = 0
            with tqdm(
                total=sum(sizes.values()), desc="demo data", unit="image", disable=None
            ) as progress:
                for split, size in sizes.items():
                    _write_split(partial, split, seed, range(first_id, first_id + size), progress)
                    first_id += size
            write_bert(partial / "bert", seed)
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial)
            raise


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise FileExistsError(f"{folder} already exists: remove it to build the demo data again")


@contextlib.contextmanager
def _building(folder: Path) -> Iterator[None]:
    """Let one process at a time build the data set, and first remove the files of killed builds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{folder.name}.lock"), wait=True):
        for path, name in find_temporaries(folder.parent).items():
            if name == folder.name and path.is_dir():
                shutil.rmtree(path)
        yield


def _write_split(folder: Path, split: str, seed: int, ids: range, progress: tqdm) -> None:
    """Write the files of a split of len(ids) images."""
    vectors = appearance(seed)
    features: np.ndarray = np.empty((len(ids), REGIONS, FEATURES), dtype=np.float32)
    boxes: np.ndarray = np.empty((len(ids), REGIONS, 4), dtype=np.float32)
    lines: list[str] = []
    of_regions = generator_of(seed, f"{split} regions")
    of_captions = generator_of(seed, f"{split} captions")
    for index, scene in enumerate(scenes(split, seed, len(ids))):
        found = regions(scene, vectors, of_regions)
        features[index], boxes[index] = found.features, found.boxes.clip(0, 1)
        lines += captions(scene, of_captions)
        progress.update()
    np.save(folder / f"{split}_ims.npy", features)
    np.save(folder / f"{split}_boxes.npy", boxes)
    write_lines(folder / f"{split}_caps.txt", lines)
    write_lines(folder / f"{split}_ids.txt", ids)
