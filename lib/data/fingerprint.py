"""Fingerprints of data and models: hashes that runs record and that validate cached results.

Only the sizes and sampled rows of features are hashed, because a file may hold 33 GB. Captions,
their pieces, region counts and weights are hashed completely. The same contents in another folder,
or with every image repeated, have the same hashes.
"""

# N images, C captions, R regions, D region feature size

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..system.cache import digest
from ..system.console import one_line
from ..system.errors import InputError

if TYPE_CHECKING:
    from torch import nn

Fingerprints = dict[str, dict[str, str]]  # by split, or "bert", and by name
SAMPLED_IMAGES = 32  # of a split, evenly spaced
PROBE = "A man's café: x-ray, 3,000 DOGS 狗 naïve"  # text whose tokens are hashed
SAMPLED_VALUES = 256  # of each weight of BERT
# the file of each hash; pieces are last because they also differ if captions do
FILES: dict[str, str | None] = dict(
    images="{split}_ims.npy",
    region_counts="{split}_num_regions.npy",
    features="{split}_ims.npy",
    captions="{split}_caps.txt",
    caption_images="{split}_caps_images.txt",
    pieces=None,
)
BERT_SETTINGS = (  # settings of its configuration that change its output
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob",
)  # fmt: skip


class Split(Protocol):
    """The part of `lib.data.dataset.RetrievalDataset` that fingerprints need."""

    folder: Path
    split: str
    regions: Any  # lib.data.region_file.RegionFile
    num_regions: np.ndarray
    stored_images: np.ndarray
    captions: Any  # lib.data.captions.Captions
    caption_digest: str
    caption_images: np.ndarray

    @property
    def num_images(self) -> int: ...
    @property
    def region_dim(self) -> int: ...
    def unchecked_regions(self, image: int) -> np.ndarray: ...


def of_split(data: Split) -> dict[str, str]:
    """Hashes and sizes of a split, by the keys of FILES."""
    sample = np.unique(np.linspace(0, data.num_images - 1, SAMPLED_IMAGES).astype(np.int64))
    pieces, special = data.captions, tuple(data.captions.special)
    counts = data.num_regions[data.stored_images]
    return dict(
        images=f"{data.num_images} images x {data.regions.shape[1]} regions x {data.region_dim}",
        # before features, because only true regions are hashed there
        region_counts=digest(counts.astype("<i8")),
        features=digest(*(data.unchecked_regions(image).astype("<f4") for image in sample)),
        captions=data.caption_digest,
        caption_images=digest(data.caption_images.astype("<i8")),
        pieces=digest(pieces.pieces, pieces.word_starts, pieces.caption_starts, special),
    )


def of_tokeniser(tokeniser: Any) -> str:  # lib.data.captions.Tokeniser
    """Hash the vocabulary of a tokeniser and its words of PROBE, for any version of its library."""
    backend = tokeniser.backend_tokenizer
    words = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(PROBE))
    return digest(sorted(backend.get_vocab().items()), words)


def bert_settings(bert: Any) -> str:
    """Settings of a transformers BertModel that change its output, as text."""
    return ", ".join(f"{name} {getattr(bert.config, name)}" for name in BERT_SETTINGS)


def check_reader(
    path: Path | str,
    recorded: Mapping[str, str] | None,
    bert_path: object,
    found: Mapping[str, str],
) -> None:
    """Raise InputError if a BERT is not the one that a model was trained with.

    recorded: settings and tokeniser in the checkpoint at `path`, or None if it has none; found:
    those of the BERT at `bert_path`.
    """
    for name in found:
        if recorded and recorded.get(name, found[name]) != found[name]:
            raise InputError(
                f"--bert_path {bert_path}: other {name} than the BERT that {path} was trained "
                f"with (found {_short(found[name])}, expected {_short(recorded[name])}); give "
                "that BERT"
            )


def of_bert(bert: Any) -> dict[str, str]:
    """Settings of a transformers BertModel, and a hash of sampled values of each weight."""
    weights: list[Any] = []
    for name, weight in sorted(bert.state_dict().items()):
        values = weight.detach().cpu().flatten()
        weights += [
            name,
            tuple(weight.shape),
            values[:: max(len(values) // SAMPLED_VALUES, 1)].numpy(),
        ]
    return dict(settings=bert_settings(bert), weights=digest(*weights))


def check_same(first: Split, other: Split) -> None:
    """Raise InputError, with a file, if two splits differ. Their tokenisers may differ."""
    expected, found = of_split(first), of_split(other)
    for name, file in FILES.items():
        if file is None or expected[name] == found[name]:
            continue
        raise InputError(
            f"{other.folder / file.format(split=other.split)}: other {name.replace('_', ' ')} than "
            f"in {first.folder} (found {_short(found[name])}, expected {_short(expected[name])}): "
            "models of an ensemble are evaluated on the same data; give --data_path"
        )


def of_model(model: "nn.Module", options: Mapping[str, Any]) -> str:
    """Hash the weights of a `network.HREM` in memory, and the options that it was built with."""
    weights = [
        part
        for name, weight in model.state_dict().items()
        for part in (name, weight.detach().cpu().numpy())
    ]
    bert = getattr(model.text_encoder, "bert", None)
    settings = sorted((name, str(value)) for name, value in options.items())
    return digest(settings, bert and bert_settings(bert), *weights)


def of_run(splits: Iterable[Split | None], bert: Any = None) -> Fingerprints:
    """Fingerprints that `check_resumed` compares, by split; "bert": those of the initial BERT."""
    found = {data.split: of_split(data) for data in splits if data is not None}
    return found | ({"bert": of_bert(bert)} if bert is not None else {})


def check_resumed(
    path: Path | str,
    saved: Any,
    found: Fingerprints,
    folder: Path,
    bert_path: Path | str,
    is_allowed: bool,
) -> list[str]:
    """Compare the saved fingerprints of a run with those of the current data.

    path: checkpoint of the run; saved: from `of_run`, as read from the checkpoint, or None if it
    has no fingerprints; found: from `of_run`; folder: of the data; is_allowed: whether differences
    are reported instead of refused (--allow_changed_data). Returns lines to print. Raises
    InputError, with the file that differs.
    """
    if saved is None:
        return [
            f"{path}: does not record the data of the run, so changes of the data are not found"
        ]
    if not isinstance(saved, dict) or not all(isinstance(part, dict) for part in saved.values()):
        raise InputError(
            f"{path}: damaged: found data fingerprints that are not a table of tables, "
            "expected those that train.py writes; restore this file"
        )
    differences = _describe_differences(saved, found, folder, bert_path)
    if differences and not is_allowed:
        raise InputError(
            f"{differences[0]}. Give --data_path and --bert_path of the data that {path} was "
            "trained on, or --allow_changed_data 1 to resume with these"
        )
    missing = _missing(saved, found)
    notes = [f"warning: {difference}" for difference in differences]
    if missing:
        notes.insert(
            0,
            f"{path}: does not record these properties of the data, so they are not checked: "
            f"{', '.join(missing)}",
        )
    return notes


def _missing(saved: Fingerprints, found: Fingerprints) -> list[str]:
    """The fingerprints that were not saved, such as "train images"."""
    return [
        f"{part} {name}"
        for part in found
        for name in found[part]
        if name not in saved.get(part, ())
    ]


def _describe_differences(
    saved: Fingerprints, found: Fingerprints, folder: Path, bert_path: Path | str
) -> list[str]:
    """One message for each fingerprint that differs."""
    return [
        f"{_place(part, name, folder, bert_path)}: other {name.replace('_', ' ')} than when the "
        f"run began (found {_short(found[part][name])}, expected {_short(saved[part][name])})"
        for part in found
        for name in _differing(saved.get(part, {}), found[part])
    ]


def is_same(saved: Mapping[str, str], found: Mapping[str, str]) -> bool:
    """Whether two fingerprints of a split, or of BERT, agree in all keys that both have."""
    return all(saved[name] == found[name] for name in saved.keys() & found.keys())


def _differing(saved: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    names = [name for name in found if name in saved and saved[name] != found[name]]
    return [name for name in names if name != "pieces" or "captions" not in names]


def _place(part: str, name: str, folder: Path, bert_path: Path | str) -> str:
    file = FILES.get(name)
    return str(folder / file.format(split=part)) if file else f"--bert_path {bert_path}, {part}"


def _short(value: Any) -> str:
    return one_line(str(value)[:12] if len(str(value)) == 64 else value)
