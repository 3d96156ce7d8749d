"""What data and models are known by: hashes that a run records,
and that tell whether kept results are still true.

Features are told by their sizes and the rows of some images, for a file may hold 33 GB; captions,
their pieces, region counts and weights are hashed whole. The same contents elsewhere, or with every
image repeated, give the same hashes.
"""

# N images, C captions, R regions, D region feature size

import numpy as np

from ..system.cache import digest
from ..system.console import one_line
from ..system.errors import InputError

SAMPLED_IMAGES = 32  # of a split, evenly spaced
PROBE = "A man's café: x-ray, 3,000 DOGS 狗 naïve"  # shows how a tokeniser cuts
SAMPLED_VALUES = 256  # of each weight of BERT
FILES = dict(  # what a difference is found in; pieces come last: they differ wherever captions do
    images="{split}_ims.npy",
    region_counts="{split}_num_regions.npy",
    features="{split}_ims.npy",
    captions="{split}_caps.txt",
    caption_images="{split}_caps_images.txt",
    pieces=None,
)
BERT_SETTINGS = (  # of its configuration, what changes its output
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob",
)  # fmt: skip


def of_split(data):
    """A dict of hashes and sizes of a `lib.data.dataset.RetrievalDataset`, by the keys of FILES."""
    sample = np.unique(np.linspace(0, data.num_images - 1, SAMPLED_IMAGES).astype(np.int64))
    pieces, special = data.captions, tuple(data.captions.special)
    counts = data.num_regions[data.stored_images]
    return dict(
        images=f"{data.num_images} images x {data.regions.shape[1]} regions x {data.region_dim}",
        # before features, of which true regions are hashed
        region_counts=digest(counts.astype("<i8")),
        features=digest(*(data.unchecked_regions(image).astype("<f4") for image in sample)),
        captions=data.caption_digest,
        caption_images=digest(data.caption_images.astype("<i8")),
        pieces=digest(pieces.pieces, pieces.word_starts, pieces.caption_starts, special),
    )


def of_tokeniser(tokeniser):
    """A hash of the words or pieces of a tokeniser and of how it cuts a text,
    whatever the version of its library."""
    backend = tokeniser.backend_tokenizer
    words = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(PROBE))
    return digest(sorted(backend.get_vocab().items()), words)


def bert_settings(bert):
    """What of the configuration of a transformers BertModel changes its output, as text."""
    return ", ".join(f"{name} {getattr(bert.config, name)}" for name in BERT_SETTINGS)


def check_reader(path, recorded, bert_path, found):
    """Refuse a BERT that is not the one that a model was trained with, although its sizes fit.

    recorded: the settings and the tokeniser that the checkpoint at `path` names, a dict, or None
    where it does not; found: those at `bert_path`. Raises InputError.
    """
    for name in found:
        if recorded and recorded.get(name, found[name]) != found[name]:
            raise InputError(
                f"--bert_path {bert_path}: other {name} than the BERT that {path} was trained "
                f"with (found {_short(found[name])}, expected {_short(recorded[name])}); give "
                "that BERT"
            )


def of_bert(bert):
    """Settings of a transformers BertModel and a hash of values of each of its weights: a dict."""
    weights = []
    for name, weight in sorted(bert.state_dict().items()):
        values = weight.detach().cpu().flatten()
        weights += [
            name,
            tuple(weight.shape),
            values[:: max(len(values) // SAMPLED_VALUES, 1)].numpy(),
        ]
    return dict(settings=bert_settings(bert), weights=digest(*weights))


def check_same(first, other):
    """Refuse two splits that are not the same, whatever cuts their captions.
    Raises InputError naming a file."""
    ours, theirs = of_split(first), of_split(other)
    name = next((name for name in ours if name != "pieces" and ours[name] != theirs[name]), None)
    if name:
        file = FILES[name].format(split=other.split)
        raise InputError(
            f"{other.folder / file}: other {name.replace('_', ' ')} than in {first.folder} (found "
            f"{_short(theirs[name])}, expected {_short(ours[name])}): models of an ensemble are "
            "evaluated on the same data; give --data_path"
        )


def of_model(model, options):
    """A hash of the weights of a `network.HREM` as they are in memory,
    and of the options that it was built with."""
    weights = [
        part
        for name, weight in model.state_dict().items()
        for part in (name, weight.detach().cpu().numpy())
    ]
    bert = getattr(model.text_encoder, "bert", None)
    settings = sorted((name, str(value)) for name, value in options.items())
    return digest(settings, bert and bert_settings(bert), *weights)


def of_run(splits, bert=None):
    """What `check_resumed` compares: {name of a split: of_split(...)},
    and under "bert" what training starts from."""
    found = {data.split: of_split(data) for data in splits if data is not None}
    return found | ({"bert": of_bert(bert)} if bert is not None else {})


def check_resumed(path, saved, found, folder, bert_path, is_allowed):
    """Compare the fingerprints of the run that `path` holds, `saved`,
    with those of this command's data, `found`.

    saved, found: of `of_run`; saved: None in files from before fingerprints; folder: of the data;
    is_allowed: a difference is told and not refused (--allow_changed_data). Returns lines to print.
    Raises InputError naming the file that differs.
    """
    if saved is None:
        return [
            (
                f"{path}: does not say which data the run began with: "
                "whether these are the same is not checked"
            )
        ]
    if not isinstance(saved, dict) or not all(isinstance(part, dict) for part in saved.values()):
        raise InputError(
            f"{path}: damaged: its fingerprints of the data are no "
            "table; expected those train.py wrote"
        )
    missing = [
        f"{part} {name}"
        for part in found
        for name in found[part]
        if name not in saved.get(part, ())
    ]
    differences = [
        (
            f"{_place(part, name, folder, bert_path)}: other {name.replace('_', ' ')} than when "
            f"the run began (found {_short(found[part][name])}, expected "
            f"{_short(saved[part][name])})"
        )
        for part in found
        for name in _differing(saved.get(part, {}), found[part])
    ]
    if differences and not is_allowed:
        raise InputError(
            f"{differences[0]}. Give --data_path and --bert_path of the data that {path} was "
            "trained on, or --allow_changed_data 1 to go on with these"
        )
    notes = [
        f"{path}: does not say these of the data, so they are not checked: {', '.join(missing)}"
    ] * bool(missing)
    return notes + [f"warning: {difference}" for difference in differences]


def is_same(saved, found):
    """Whether two fingerprints of a split, or of BERT, differ in nothing that both of them hold."""
    return all(saved[name] == found[name] for name in saved.keys() & found.keys())


def _differing(saved, found):
    names = [name for name in found if name in saved and saved[name] != found[name]]
    return [name for name in names if name != "pieces" or "captions" not in names]


def _place(part, name, folder, bert_path):
    file = FILES.get(name)
    return folder / file.format(split=part) if file else f"--bert_path {bert_path}, {part}"


def _short(value):
    return one_line(str(value)[:12] if len(str(value)) == 64 else value)
