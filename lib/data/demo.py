"""A small image-text data set made from nothing but a seed,
for a first training on a CPU within minutes.

It takes the place of photographs with toy scenes: a few coloured things on a background. A scene
yields what the real data sets give: 36 region features, as a detector would find them, and five
captions in plain English. Nothing is downloaded. The task is real all the same: the features are
noisy, the captions partial, many scenes have a near twin that differs in one respect, and the two
main things of every dev and test scene never meet in a training scene. Below come the numbers and
words it is made from, then scenes, captions, regions, and a small untrained BERT.
"""

# R regions, D region feature size, T things of a scene

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save
from tqdm import tqdm

from ..system.files import find_temporaries, lock

SIZES_OF_SPLITS = {"train": 2000, "dev": 200, "test": 500}  # images
REGIONS, FEATURES, CAPTIONS_PER_IMAGE = 36, 128, 5

# How hard the task is.
# more: the two that captions speak of are harder to find among the others
FEWEST_THINGS, MOST_THINGS = 2, 5
# of scenes that differ from the one before in one respect; more: more hard negatives
VARIANT_SHARE = 1 / 3
# of pairs of (colour, kind) kept for dev and test; more: less of the pairs seen in training
HELD_OUT_SHARE = 0.2
# chance that a phrase names it; less: vaguer captions
MENTION = {"size": 0.3, "colour": 0.8, "material": 0.3}
# of captions about the two main things; less: captions speak of different things
MAIN_PAIR_SHARE = 0.85
# chance that a caption says how its things stand; less: mirrored twins read alike
RELATION_MENTION = 0.85
PLACE_MENTION = 0.25  # chance that a caption names the background; less: vaguer captions
THIRD_MENTION = 0.2  # chance that a caption names one more thing; less: vaguer captions
# in a feature; less: harder
STRENGTH = {"kind": 1.0, "colour": 0.8, "size": 0.5, "material": 0.6, "background": 0.8}
BOX_STRENGTH = 1.5  # of a box's position and size in its feature; less: relations are harder to see
# one draw a thing, shared by its boxes, so that averaging does not help; more: harder
INSTANCE_NOISE = 0.7
DETECTOR_NOISE = 1.0  # one draw a box; more: harder, as long as a thing has few boxes
# chance that the detector misses a thing; more: captions speak of things unseen
MAIN_MISS, OTHER_MISS = 0.01, 0.1
SPARSITY = 0.8  # subtracted before the ReLU; more: more zeros, and weak evidence is lost

# How boxes lie. Positions and boxes are in the unit square, y pointing down.
SIDES = {"small": 0.1, "medium": 0.16, "large": 0.24}  # of a thing's outline
SHORTEST_DISTANCE = 0.18  # between two things
NEAR, FAR = 0.3, 0.5  # no farther than, no nearer than
# a thing is left of another if it is this many times as far to the left as it is up or down
CLEARNESS = 2
# boxes around two things, boxes anywhere; the others are on one thing
PAIR_REGIONS, GROUND_REGIONS = 6, 8
BOX_JITTER = 0.25  # the most that an edge is off, in sides of the box

# A caption uses any word of a row for the row's key.
KINDS = {
    "ball": ("ball", "sphere"), "cube": ("cube", "block"), "cup": ("cup", "mug"),
    "chair": ("chair", "seat"), "dog": ("dog", "puppy"), "cat": ("cat", "kitten"),
    "car": ("car", "automobile"), "tree": ("tree",), "lamp": ("lamp", "lantern"), "book": ("book",),
    "bottle": ("bottle", "flask"), "house": ("house", "cottage"), "boat": ("boat", "ship"),
    "bird": ("bird",), "teapot": ("teapot", "kettle"), "clock": ("clock",),
}  # fmt: skip
COLOURS = {
    "red": ("red", "crimson"), "green": ("green",), "blue": ("blue",),
    "yellow": ("yellow", "golden"), "purple": ("purple", "violet"), "orange": ("orange",),
    "black": ("black",), "white": ("white",),
}  # fmt: skip
SIZES = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium",),
    "large": ("large", "big", "huge"),
}
MATERIALS = {
    "wood": ("wooden",),
    "metal": ("metal", "metallic"),
    "plastic": ("plastic",),
    "glass": ("glass",),
}
BACKGROUNDS = {
    "kitchen": ("in a kitchen",),
    "garden": ("in a garden",),
    "beach": ("on a beach", "on the sand"),
    "street": ("in a street", "on the road"),
    "meadow": ("in a meadow", "on the grass"),
    "snow": ("in the snow",),
    "forest": ("in a forest", "in the woods"),
    "carpet": ("on a carpet", "on the rug"),
}
RELATIONS = {
    "left": ("to the left of", "left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "underneath"),
    "near": ("next to", "close to", "beside"),
    "far": ("far from", "far away from", "a long way from"),
}
RELATED = (
    "{first} {relation} {second}",
    "{first} is {relation} {second}",
    "there is {first} {relation} {second}",
    "there is {second}, and {first} {relation} it",
    "{second} with {first} {relation} it",
    "{relation} {second} is {first}",
    "{second} and, {relation} it, {first}",
)
UNRELATED = (
    "{first} and {second}",
    "{first} together with {second}",
    "one can see {first} and {second}",
)
THIRD = (", and also {third}", ", with {third} in the scene", "; there is {third} too")
ENDINGS = (".", ".", ".", "", "", "!")
PIECES = {  # the words that the vocabulary lacks, and what WordPiece makes of them
    "wooden": "wood ##en", "metallic": "metal ##lic", "golden": "gold ##en", "teapot": "tea ##pot",
    "automobile": "auto ##mobile", "underneath": "under ##neath", "woods": "wood ##s",
}  # fmt: skip

LOOKS = {"kind": KINDS, "colour": COLOURS, "size": SIZES, "material": MATERIALS}
BERT = {
    "model_type": "bert", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 256, "max_position_embeddings": 64, "type_vocab_size": 2,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip


class Thing(NamedTuple):
    """One thing: keys of KINDS, COLOURS, SIZES and MATERIALS, and the position of its centre."""

    kind: str
    colour: str
    size: str
    material: str
    x: float
    y: float


class Scene(NamedTuple):
    """2 to 5 things, the two main ones first, on a background (a key of BACKGROUNDS).

    change: the field of a main thing that differs from the previous scene ("position": the two
    have changed places), or "".
    """

    background: str
    things: tuple
    change: str


class Regions(NamedTuple):
    """The output of the detector: features (R, D) float32; boxes (R, 4) of left, top, right,
    bottom; owners (R,).

    An owner is the index of the thing in a box, or -1 if the box has two things or none.
    """

    features: np.ndarray
    boxes: np.ndarray
    owners: np.ndarray


def build_once(folder: Path) -> None:
    """Build the data set if it is missing. With several processes, the main one builds and the
    others wait."""
    with _building(Path(folder)):
        if not Path(folder).exists():
            build(folder)


def build(folder: Path | str, seed: int = 0, sizes: Mapping[str, int] = SIZES_OF_SPLITS) -> None:
    """Write the data set into the new folder `folder`. The bytes depend on seed and sizes (images
    by split) only.

    For each split: SPLIT_ims.npy (N, R, D) float32, SPLIT_caps.txt with 5N lines, SPLIT_ids.txt
    with N lines; and bert/, an untrained BERT with its tokeniser. Raises FileExistsError if the
    folder exists.
    """
    folder = Path(folder)
    _refuse_existing(folder)
    with _building(folder):
        _refuse_existing(folder)  # another process may have built it meanwhile
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.part")
        # a killed build never leaves half a data set, nor is it in the way of the next
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
            _write_bert(partial / "bert", seed)
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial)
            raise


def _refuse_existing(folder):
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: remove it to build the demo data again")


@contextlib.contextmanager
def _building(folder):
    """Only one process at a time is inside; what killed builds have left is removed first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{folder.name}.lock"), wait=True):
        for path, name in find_temporaries(folder.parent).items():
            if name == folder.name and path.is_dir():
                shutil.rmtree(path)
        yield


def _write_split(folder, split, seed, ids, progress):
    vectors, features, lines = (
        appearance(seed),
        np.empty((len(ids), REGIONS, FEATURES), dtype=np.float32),
        [],
    )
    seeing, telling = _generator(seed, f"{split} regions"), _generator(seed, f"{split} captions")
    for index, scene in enumerate(scenes(split, seed, len(ids))):
        features[index] = regions(scene, vectors, seeing).features
        lines += captions(scene, telling)
        progress.update()
    np.save(folder / f"{split}_ims.npy", features)
    _write_lines(folder / f"{split}_caps.txt", lines)
    _write_lines(folder / f"{split}_ids.txt", ids)


def _write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _generator(seed, purpose):
    """A stream of random numbers of its own for every purpose: none shifts when another changes."""
    return np.random.default_rng([seed, *purpose.encode()])


def _pick(options, generator):
    return options[generator.integers(len(options))]


def scenes(split: str, seed: int = 0, size: int | None = None) -> list[Scene]:
    """The first `size` scenes of a split, or all, in the order of its images."""
    generator, meetings = _generator(seed, f"{split} scenes"), _meetings(seed)
    found: list[Scene] = []
    while len(found) < (SIZES_OF_SPLITS[split] if size is None else size):
        is_variant = bool(found) and generator.random() < VARIANT_SHARE
        background, spots = _pick(list(BACKGROUNDS), generator), _draw_spots(generator)
        scene = None
        # only looks are drawn again
        while scene is None or not _is_allowed(scene.things, split, meetings):
            scene = (
                _vary(found[-1], generator)
                if is_variant
                else _furnish(background, spots, generator)
            )
        found.append(scene)
    return found


def relations(first: Thing, second: Thing) -> list[str]:
    """The keys of RELATIONS that clearly hold between the first thing and the second."""
    right, down = first.x - second.x, first.y - second.y
    distance = np.hypot(right, down)
    holds = {
        "left": -right >= CLEARNESS * abs(down),
        "right": right >= CLEARNESS * abs(down),
        "above": -down >= CLEARNESS * abs(right),
        "below": down >= CLEARNESS * abs(right),
        "near": distance <= NEAR,
        "far": distance >= FAR,
    }
    return [name for name, is_true in holds.items() if is_true]


def _meetings(seed):
    """The split to which each unordered pair of (colour, kind) belongs:
    {frozenset of two: split}."""
    looks = [(colour, kind) for colour in COLOURS for kind in KINDS]
    pairs = [
        frozenset((look, other)) for index, look in enumerate(looks) for other in looks[:index]
    ]
    shares = (1 - HELD_OUT_SHARE, HELD_OUT_SHARE / 3, HELD_OUT_SHARE * 2 / 3)
    drawn = _generator(seed, "meetings").choice(("train", "dev", "test"), size=len(pairs), p=shares)
    return dict(zip(pairs, drawn.tolist(), strict=True))


def _is_allowed(things, split, meetings):
    """Training scenes show no held-out pair at all;
    the main things of others are a pair held out for their split."""
    looks = [(thing.colour, thing.kind) for thing in things]
    if len(set(looks)) < len(looks):  # "a red cup" should be one thing
        return False
    looks = looks if split == "train" else looks[:2]
    return all(
        meetings[frozenset((a, b))] == split for index, a in enumerate(looks) for b in looks[:index]
    )


def _draw_spots(generator):
    """Places (T, 2) for 2 to 5 things, none upon another,
    such that a direction is clear between the first two."""
    count = generator.integers(FEWEST_THINGS, MOST_THINGS + 1)
    while True:
        spots = generator.uniform(0.13, 0.87, size=(count, 2)).round(3)
        distances = np.hypot(*(spots[:, None] - spots).T)[np.triu_indices(count, 1)]
        shorter, longer = sorted(abs(spots[0] - spots[1]))
        if distances.min() >= SHORTEST_DISTANCE and longer >= CLEARNESS * shorter:
            return spots.tolist()


def _furnish(background, spots, generator):
    things = [
        Thing(*(_pick(list(values), generator) for values in LOOKS.values()), *spot)
        for spot in spots
    ]
    return Scene(background, tuple(things), "")


def _vary(scene, generator):
    """The same scene but for one attribute of one main thing,
    or with its two main things in exchanged places."""
    things, change = list(scene.things), _pick([*LOOKS, "position"], generator)
    if change == "position":
        first, second = things[:2]
        things[:2] = first._replace(x=second.x, y=second.y), second._replace(x=first.x, y=first.y)
    else:
        which = generator.integers(2)
        others = [value for value in LOOKS[change] if value != getattr(things[which], change)]
        things[which] = things[which]._replace(**{change: _pick(others, generator)})
    return Scene(scene.background, tuple(things), change)


def captions(scene: Scene, generator: np.random.Generator) -> list[str]:
    """Five different true captions of a scene, 5 to 25 words each."""
    sentences: list[str] = []
    while len(sentences) < CAPTIONS_PER_IMAGE:
        sentence = _sentence(scene, generator)
        if sentence not in sentences and 5 <= len(sentence.split()) <= 25:
            sentences.append(sentence)
    # as people do
    typings = [lambda text: text[0].upper() + text[1:]] * 20 + [str.lower] * 12 + [str.upper]
    return [
        _pick(typings, generator)(sentence) + _pick(ENDINGS, generator) for sentence in sentences
    ]


def _sentence(scene, generator):
    is_main = generator.random() < MAIN_PAIR_SHARE
    order = generator.permutation(2 if is_main else len(scene.things))[:2].tolist()
    first, second = (scene.things[index] for index in order)
    rest = [thing for thing in scene.things if thing not in (first, second)]
    phrases = {"first": _phrase(first, generator), "second": _phrase(second, generator)}
    known = relations(first, second) if generator.random() < RELATION_MENTION else []
    if known:
        phrases["relation"] = _pick(RELATIONS[_pick(known, generator)], generator)
    sentence = _pick(RELATED if known else UNRELATED, generator).format(**phrases)
    place = _pick(BACKGROUNDS[scene.background], generator)
    if generator.random() < PLACE_MENTION:
        sentence = _pick((f"{sentence} {place}", f"{place}, {sentence}"), generator)
    if rest and generator.random() < THIRD_MENTION:
        sentence += _pick(THIRD, generator).format(third=_phrase(_pick(rest, generator), generator))
    return sentence


def _phrase(thing, generator):
    """Such as "a big red cube": the kind, and those attributes that chance would mention."""
    named = [name for name, chance in MENTION.items() if generator.random() < chance]
    words = [_pick(LOOKS[name][getattr(thing, name)], generator) for name in (*named, "kind")]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def appearance(seed: int = 0) -> dict[str, np.ndarray]:
    """The feature vectors (D,) of attribute values and backgrounds, and "box": a linear map (4,
    D)."""
    generator = _generator(seed, "appearance")
    vectors: dict[str, np.ndarray] = {}
    for name, values in {**LOOKS, "background": BACKGROUNDS}.items():
        vectors |= {value: STRENGTH[name] * generator.normal(size=FEATURES) for value in values}
    return {**vectors, "box": BOX_STRENGTH * generator.normal(size=(4, FEATURES))}


def regions(
    scene: Scene, vectors: Mapping[str, np.ndarray], generator: np.random.Generator
) -> Regions:
    """The output of a detector on a scene, most confident boxes first. vectors: of `appearance`."""
    things = scene.things
    halves = np.array([SIDES[thing.size] / 2 for thing in things])
    middles = np.array([(thing.x, thing.y) for thing in things])
    # (T, 4), as boxes are
    outlines = np.hstack([middles - halves[:, None], middles + halves[:, None]])
    is_seen = generator.random(len(things)) >= np.where(
        np.arange(len(things)) < 2, MAIN_MISS, OTHER_MISS
    )
    is_seen[0] |= not is_seen.any()  # something is always found
    boxes, owners = _draw_boxes(outlines, np.flatnonzero(is_seen), generator)

    common = np.minimum(boxes[:, None, 2:], outlines[:, 2:]) - np.maximum(
        boxes[:, None, :2], outlines[:, :2]
    )
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1, keepdims=True)
    # (R, T): of a box's area that a thing covers
    shares = is_seen * common.clip(min=0).prod(axis=2) / areas
    ground = 1 - shares.sum(axis=1, keepdims=True).clip(max=1)
    # the root: a thing in a box counts for more than its area
    weights = np.sqrt(np.hstack([shares, ground]))
    contents = [sum(vectors[getattr(thing, name)] for name in LOOKS) for thing in things]
    contents = np.array([*contents, vectors[scene.background]])  # (T + 1, D)
    contents += INSTANCE_NOISE * generator.normal(size=contents.shape)
    values = weights @ contents + (boxes - 0.5) @ vectors["box"]
    values += DETECTOR_NOISE * generator.normal(size=values.shape)

    confidence = shares.max(axis=1) + 0.2 * generator.normal(size=REGIONS)
    order = np.argsort(-confidence, kind="stable")
    # rounded: the last bits depend on the machine's BLAS
    features = np.maximum(values - SPARSITY, 0).round(3)
    return Regions(features[order].astype(np.float32), boxes[order], owners[order])


def _draw_boxes(outlines, seen, generator):
    """Boxes (R, 4) and owners (R,), given the outlines
    (T, 4) and the indices of those that are seen."""
    first = np.resize(generator.permutation(seen), REGIONS - GROUND_REGIONS)
    second = first.copy()  # a box on one thing is a box around it and itself
    second[:PAIR_REGIONS] = generator.choice(seen, size=PAIR_REGIONS)
    low = np.minimum(outlines[first, :2], outlines[second, :2])
    high = np.maximum(outlines[first, 2:], outlines[second, 2:])
    low = np.vstack([low, generator.uniform(0, 0.7, size=(GROUND_REGIONS, 2))])
    high = np.vstack(
        [high, low[-GROUND_REGIONS:] + generator.uniform(0.1, 0.4, size=(GROUND_REGIONS, 2))]
    )
    jitter = BOX_JITTER * generator.uniform(-1, 1, size=(2, REGIONS, 2)) * (high - low)
    owners = np.append(np.where(first == second, first, -1), np.full(GROUND_REGIONS, -1))
    return np.hstack([low + jitter[0], high + jitter[1]]), owners


def vocabulary() -> list[str]:
    """The pieces of the tokeniser, in the order of their ids."""
    texts = [*RELATED, *UNRELATED, *THIRD, "a an"]
    tables: list[dict] = [*LOOKS.values(), BACKGROUNDS, RELATIONS]
    for table in tables:
        texts += [words for row in table.values() for words in row]
    text = " ".join(texts).format(**dict.fromkeys(("first", "second", "third", "relation"), ""))
    words = (
        set("".join(letter if letter.isalpha() else " " for letter in text).split()) - PIECES.keys()
    )
    words |= set(" ".join(PIECES.values()).split())
    # so any ASCII text has its pieces
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    inner = [f"##{letter}" for letter in letters if letter.isalnum()]
    return list(
        dict.fromkeys(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words), *letters, *inner]
        )
    )


def _write_bert(folder, seed):
    pieces = vocabulary()
    _write_lines(folder / "vocab.txt", pieces)
    tokeniser = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    for name, content in (
        ("config", {**BERT, "vocab_size": len(pieces)}),
        ("tokenizer_config", tokeniser),
    ):
        _write_lines(folder / f"{name}.json", [json.dumps(content, indent=2)])
    (folder / "model.safetensors").write_bytes(
        save(_bert_weights(len(pieces), seed), metadata={"format": "pt"})
    )


def _bert_weights(rows, seed):
    """The initial weights of BERT by their names in transformers: normal(0, 0.02), biases 0,
    norms 1 and 0."""
    dim, inner, generator = BERT["hidden_size"], BERT["intermediate_size"], _generator(seed, "bert")
    tables = {
        "word": rows,
        "position": BERT["max_position_embeddings"],
        "token_type": BERT["type_vocab_size"],
    }
    shapes = {f"embeddings.{name}_embeddings": (length, dim) for name, length in tables.items()}
    norms = ["embeddings"]
    for layer in (f"encoder.layer.{index}" for index in range(BERT["num_hidden_layers"])):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}.attention.{part}"] = (dim, dim)
        shapes |= {
            f"{layer}.intermediate.dense": (inner, dim),
            f"{layer}.output.dense": (dim, inner),
        }
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    weights = {
        f"{name}.weight": generator.normal(0, BERT["initializer_range"], shapes[name])
        for name in shapes
    }
    weights["embeddings.word_embeddings.weight"][BERT["pad_token_id"]] = 0
    weights |= {
        f"{name}.bias": np.zeros(shapes[name][0]) for name in shapes if name.startswith("encoder")
    }
    weights |= {f"{norm}.LayerNorm.weight": np.ones(dim) for norm in norms}
    weights |= {f"{norm}.LayerNorm.bias": np.zeros(dim) for norm in norms}
    return {name: values.astype(np.float32) for name, values in weights.items()}
