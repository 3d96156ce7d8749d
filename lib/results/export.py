"""Export embeddings as plain files, for a nearest-neighbour index or any other program."""

# N images, C captions, E embedding

from pathlib import Path

import numpy as np

from ..evaluation.similarity import Similarity
from ..system.errors import InputError
from ..system.files import atomic_write
from .search import SplitIndex

README = """# Embeddings

{title}

| file | content |
|---|---|
| `image_embeddings.npy` | float32 ({num_images}, {dim}), one row per image |
| `caption_embeddings.npy` | float32 ({num_captions}, {dim}), one row per caption |
| `image_ids.txt` | the id of each image{no_ids} |
| `caption_images.txt` | for each caption, the row of its image (from 0) |
| `captions.txt` | the captions |

{lengths} The dot product of the rows of an image and a caption is their similarity:

    import numpy as np
    images, captions = np.load("image_embeddings.npy"), np.load("caption_embeddings.npy")
    best = (images @ captions[0]).argsort()[::-1][:5]    # image rows, best first

Retrieval with these embeddings (R@K in percent):

{table}
"""


FILES = (
    "image_embeddings.npy",
    "caption_embeddings.npy",
    "image_ids.txt",
    "caption_images.txt",
    "captions.txt",
    "README.md",
)


def write(
    folder: Path | str,
    similarity: Similarity,
    index: SplitIndex,
    title: str,
    table: str,
) -> None:
    """Write all embeddings of a split into `folder`, or none.

    folder: new or empty. Raises InputError if the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _write(folder, similarity, index, title, table)
    except InputError:  # so that the same command finds an empty folder again
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        raise


def _write(folder, similarity, index, title, table):
    images, captions = similarity.images.numpy(), similarity.captions.numpy()
    for name, rows in (("image_embeddings", images), ("caption_embeddings", captions)):
        with atomic_write(folder / f"{name}.npy") as file:
            np.save(file, rows, allow_pickle=False)
    lines = {
        "image_ids": index.ids,
        "caption_images": index.caption_images,
        "captions": index.captions,
    }
    for name, values in lines.items():
        with atomic_write(folder / f"{name}.txt") as file:
            file.write("".join(f"{value}\n" for value in values).encode())
    is_unit = all(
        np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3) for rows in (images, captions)
    )
    text = README.format(
        title=title,
        table=table,
        num_images=len(images),
        num_captions=len(captions),
        dim=images.shape[1],
        no_ids="" if index.has_ids else " (the data have no ids, so these are row numbers)",
        lengths="Rows have unit length."
        if is_unit
        else "Rows do not have unit length, because the model does not normalise them.",
    )
    with atomic_write(folder / "README.md") as file:
        file.write(text.encode())
