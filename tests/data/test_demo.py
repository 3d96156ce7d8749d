"""The demo data set: repeatable bytes, true captions, held-out pairs,
and a BERT that transformers loads."""

import hashlib
import json
import os
import re
import shutil
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from damage import contents
from kills import Programs
from safetensors import safe_open
from transformers import AutoTokenizer, BertModel

from lib.data import demo

SIZES = {"train": 60, "dev": 20, "test": 30}
LOCK = ".demo_precomp.lock"  # stays beside what was built
WORDS = {
    word: (name, key)
    for name, table in demo.LOOKS.items()
    for key, row in table.items()
    for word in row
}
PLACE_KEYS = {words: key for key, row in demo.BACKGROUNDS.items() for words in row}
RELATION_KEYS = {  # our own reading of the words, as of the sentences below
    "left of": "left", "on the left side of": "left", "right of": "right",
    "on the right side of": "right", "above": "above", "over": "above", "higher than": "above",
    "below": "below", "under": "below", "underneath": "below", "next to": "near",
    "close to": "near", "beside": "near", "far from": "far", "far away from": "far",
    "a long way from": "far",
}  # fmt: skip


def one_of(words):
    return rf"\b(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})\b"


KIND_WORDS = {word for row in demo.KINDS.values() for word in row}
PHRASE = rf"\ban? (?:{one_of(WORDS.keys() - KIND_WORDS)} )*{one_of(KIND_WORDS)}"
FIRST, SECOND = rf"(?P<first>{PHRASE})", rf"(?P<second>{PHRASE})"
RELATION = rf"(?:to the )?(?P<relation>{one_of(RELATION_KEYS)})"
STATEMENTS = [
    re.compile(statement)
    for statement in (
        rf"{FIRST} (?:is )?{RELATION} {SECOND}",
        rf"there is {SECOND}, and {FIRST} {RELATION} it",
        rf"{SECOND} with {FIRST} {RELATION} it",
        rf"{RELATION} {SECOND} is {FIRST}",
        rf"{SECOND} and, {RELATION} it, {FIRST}",
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo_precomp"
    demo.build(folder, sizes=SIZES)
    return folder


@pytest.fixture(scope="module")
def all_scenes():
    return {split: demo.scenes(split) for split in demo.SIZES_OF_SPLITS}


def captions_of(folder, split):
    lines = (folder / f"{split}_caps.txt").read_text(encoding="utf-8").splitlines()
    return [lines[start : start + 5] for start in range(0, len(lines), 5)]


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def looks(thing):
    return thing.colour, thing.kind


def fits(thing, phrase):
    return all(getattr(thing, WORDS[word][0]) == WORDS[word][1] for word in phrase.split()[1:])


def holds(relation, first, second):
    """Our own reading of the relations, not that of the module."""
    distance = ((first.x - second.x) ** 2 + (first.y - second.y) ** 2) ** 0.5
    return {
        "left": first.x < second.x,
        "right": first.x > second.x,
        "above": first.y < second.y,
        "below": first.y > second.y,
        "near": distance < 0.35,
        "far": distance > 0.45,
    }[relation]


# Files


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    code = f"from lib.data import demo; demo.build({str(tmp_path / 'again')!r}, sizes={SIZES})"
    # another set order
    repository, environment = Path(__file__).parents[2], {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, check=True)
    demo.build(tmp_path / "other", seed=1, sizes=SIZES)
    first, again, other = hashes(folder), hashes(tmp_path / "again"), hashes(tmp_path / "other")
    bert = {
        "bert/config.json",
        "bert/model.safetensors",
        "bert/tokenizer_config.json",
        "bert/vocab.txt",
    }
    assert set(first) == bert | {
        f"{split}_{kind}" for split in SIZES for kind in ("ims.npy", "caps.txt", "ids.txt")
    }
    assert again == first
    drawn = [f"{split}_{kind}" for split in SIZES for kind in ("ims.npy", "caps.txt")] + [
        "bert/model.safetensors"
    ]
    assert not any(first[name] == other[name] for name in drawn)


def test_files_have_their_shapes_and_ids_are_unique(folder):
    ids = []
    for split, size in SIZES.items():
        features = np.load(folder / f"{split}_ims.npy")
        assert features.shape == (size, 36, 128) and features.dtype == np.float32
        assert len(captions_of(folder, split)) == size
        own = (folder / f"{split}_ids.txt").read_text(encoding="utf-8").splitlines()
        assert len(own) == size
        ids += own
    assert len(set(ids)) == sum(SIZES.values()) and "" not in ids


def test_no_library_version_stands_in_the_configuration(folder):
    for name in ("config", "tokenizer_config"):
        assert not [
            key
            for key in json.loads((folder / "bert" / f"{name}.json").read_text())
            if "version" in key
        ]


def test_an_existing_folder_is_not_overwritten(tmp_path):
    existing = tmp_path / "demo_precomp"
    existing.mkdir()
    (existing / "train_ids.txt").write_text("mine\n")
    with pytest.raises(FileExistsError, match="demo_precomp"):
        demo.build(existing, sizes=SIZES)
    assert [path.name for path in tmp_path.rglob("*")] == ["demo_precomp", "train_ids.txt"]
    assert (existing / "train_ids.txt").read_text() == "mine\n"


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        assert list(tmp_path.rglob("train_ims.npy")), (
            "the interruption should come after a part was written"
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write_bert", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.build(tmp_path / "demo_precomp", sizes=SIZES)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_build_killed_anywhere_is_not_in_the_way_of_the_next(tmp_path):
    folder = tmp_path / "new"
    build = (
        f"demo.build({str(folder / 'demo_precomp')!r}, sizes={{'train': 2, 'dev': 1, 'test': 1}})"
    )
    with Programs("from lib.data import demo") as programs:
        assert programs.run(build).status == 0
        expected = contents(folder)
        for killed in programs.killed_at_each(
            build, folder, lambda: shutil.rmtree(folder, ignore_errors=True)
        ):
            assert not (folder / "demo_precomp").exists(), killed.operation
            assert programs.run(build).status == 0
            found = contents(folder)
            assert {name: found[name] for name in found if name.name != LOCK} == {
                name: expected[name] for name in expected if name.name != LOCK
            }


# Scenes


def test_fewer_scenes_are_the_first_of_all(all_scenes):
    for split, found in all_scenes.items():
        assert len(found) == demo.SIZES_OF_SPLITS[split]
        assert demo.scenes(split, size=40) == found[:40]


def test_pairs_of_main_things_in_dev_and_test_are_held_out(all_scenes):
    pairs_in_training = {
        frozenset((looks(thing), looks(other)))
        for scene in all_scenes["train"]
        for index, thing in enumerate(scene.things)
        for other in scene.things[:index]
    }
    for split in ("dev", "test"):
        main = {frozenset(map(looks, scene.things[:2])) for scene in all_scenes[split]}
        assert len(main) > len(all_scenes[split]) / 3
        assert not main & pairs_in_training


def test_every_look_and_word_is_seen_in_training(all_scenes):
    seen = {looks(thing) for scene in all_scenes["train"] for thing in scene.things}
    assert seen == {(colour, kind) for colour in demo.COLOURS for kind in demo.KINDS}
    words = {
        split: {
            word
            for scene in all_scenes[split]
            for caption in demo.captions(scene, np.random.default_rng(len(scene.things)))
            for word in re.findall("[a-z]+", caption.lower())
        }
        for split in all_scenes
    }
    assert len(words["test"]) > 80
    assert words["dev"] | words["test"] <= words["train"]


def test_things_are_apart_and_unlike(all_scenes):
    for scene in all_scenes["train"] + all_scenes["test"]:
        assert 2 <= len(scene.things) <= 5
        assert len(set(map(looks, scene.things))) == len(scene.things)
        for index, thing in enumerate(scene.things):
            for other in scene.things[:index]:
                assert np.hypot(thing.x - other.x, thing.y - other.y) >= demo.SHORTEST_DISTANCE


def test_variants_differ_from_the_scene_before_in_exactly_one_respect(all_scenes):
    for found in all_scenes.values():
        changes = Counter(scene.change for scene in found)
        assert set(changes) == {"", "kind", "colour", "size", "material", "position"}
        assert 0.25 < 1 - changes[""] / len(found) < 0.42
        for before, scene in zip(found, found[1:], strict=False):
            pairs = zip(before.things, scene.things, strict=False)
            differing = [
                (index, name)
                for index, (old, new) in enumerate(pairs)
                for name in demo.Thing._fields
                if getattr(old, name) != getattr(new, name)
            ]
            if not scene.change:
                assert len(differing) > 1
                continue
            assert scene.background == before.background and len(scene.things) == len(before.things)
            if scene.change == "position":
                assert [(thing.x, thing.y) for thing in scene.things[:2]] == [
                    (thing.x, thing.y) for thing in before.things[1::-1]
                ]
                assert {index for index, _ in differing} == {0, 1} and {
                    name for _, name in differing
                } <= {"x", "y"}
            else:
                assert len(differing) == 1 and differing[0] in [
                    (0, scene.change),
                    (1, scene.change),
                ]


# Captions


def test_captions_are_five_different_sentences(folder):
    for split in SIZES:
        for captions in captions_of(folder, split):
            assert (
                len({" ".join(re.findall("[a-z]+", caption.lower())) for caption in captions}) == 5
            )
            assert all(5 <= len(caption.split()) <= 25 for caption in captions)
    everything = [caption for captions in captions_of(folder, "train") for caption in captions]
    assert any(caption[0].isupper() for caption in everything) and any(
        caption[0].islower() for caption in everything
    )


def test_captions_differ_even_where_little_is_mentioned(all_scenes, monkeypatch):
    monkeypatch.setattr(demo, "MENTION", dict.fromkeys(demo.MENTION, 0.0))
    generator = np.random.default_rng(0)
    for scene in all_scenes["dev"]:
        captions = demo.captions(scene, generator)
        assert len({" ".join(re.findall("[a-z]+", caption.lower())) for caption in captions}) == 5


def test_captions_name_only_things_and_places_of_their_scene(folder):
    for split, size in SIZES.items():
        for scene, captions in zip(
            demo.scenes(split, size=size), captions_of(folder, split), strict=True
        ):
            for caption in map(str.lower, captions):
                phrases = re.findall(PHRASE, caption)
                assert len(phrases) >= 2, caption
                for phrase in phrases:
                    assert any(fits(thing, phrase) for thing in scene.things), (caption, scene)
                for place in re.findall(one_of(PLACE_KEYS), caption):
                    assert PLACE_KEYS[place] == scene.background, (caption, scene)


def test_captions_state_only_relations_that_hold(folder):
    stated, total = Counter(), 0
    for split, size in SIZES.items():
        for scene, captions in zip(
            demo.scenes(split, size=size), captions_of(folder, split), strict=True
        ):
            for caption in map(str.lower, captions):
                total += 1
                for found in filter(None, (statement.search(caption) for statement in STATEMENTS)):
                    relation = RELATION_KEYS[found["relation"]]
                    stated[relation] += 1
                    assert any(
                        fits(first, found["first"])
                        and fits(second, found["second"])
                        and holds(relation, first, second)
                        for first in scene.things
                        for second in scene.things
                        if first != second
                    ), (caption, scene)
    assert set(stated) == set(demo.RELATIONS)
    assert stated.total() > 0.6 * total


# Regions


def test_features_are_finite_sparse_and_never_negative(folder):
    for split in SIZES:
        features = np.load(folder / f"{split}_ims.npy")
        assert np.isfinite(features).all() and (features >= 0).all()
        assert 0.4 < (features == 0).mean() < 0.85
        assert (features.max(axis=2) > 0).all()


def test_regions_on_one_thing_are_more_alike_than_regions_on_two():
    generator, vectors = np.random.default_rng(0), demo.appearance()
    same, different = [], []
    for scene in demo.scenes("dev", size=40):
        found = demo.regions(scene, vectors, generator)
        assert found.boxes.shape == (36, 4) and (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        is_on_one = found.owners >= 0
        for box, owner in zip(found.boxes[is_on_one], found.owners[is_on_one], strict=True):
            thing = scene.things[owner]
            assert box[0] < thing.x < box[2] and box[1] < thing.y < box[3]
        assert 0 < is_on_one.sum() < 36 and found.owners.max() < len(scene.things)
        unit = found.features[is_on_one] / np.linalg.norm(
            found.features[is_on_one], axis=1, keepdims=True
        )
        cosine, owners = unit @ unit.T, found.owners[is_on_one]
        is_same = owners[:, None] == owners
        same.append(cosine[is_same & ~np.eye(len(owners), dtype=bool)].mean())
        if not is_same.all():
            different.append(cosine[~is_same].mean())
    assert len(different) > 30
    assert np.mean(same) > np.mean(different) + 0.1


def test_features_show_the_scene_of_their_image(folder):
    """The pooled features of an image look most like the sum of its own scene's looks,
    far above chance."""
    vectors, found = demo.appearance(), demo.scenes("train", size=SIZES["train"])
    expected = np.array(
        [
            np.mean(
                [vectors[getattr(thing, name)] for thing in scene.things for name in demo.LOOKS],
                axis=0,
            )
            for scene in found
        ]
    )
    pooled = np.load(folder / "train_ims.npy").mean(axis=1)
    expected, pooled = expected - expected.mean(axis=0), pooled - pooled.mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    ranks = (-(pooled @ expected.T)).argsort(axis=1).argsort(axis=1).diagonal()
    assert (ranks < 3).mean() > 0.5


# BERT


def test_bert_loads_as_bert_is_initialised(folder):
    bert, report = BertModel.from_pretrained(
        folder / "bert", add_pooling_layer=False, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with safe_open(folder / "bert" / "model.safetensors", "np") as file:
        # older versions of transformers refuse a file without it
        assert file.metadata() == {"format": "pt"}
    assert bert.config.hidden_size == 128 and bert.config.num_hidden_layers == 2
    for name, weight in bert.named_parameters():
        if "LayerNorm.weight" in name:
            assert (weight == 1).all()
        elif "bias" in name:
            assert (weight == 0).all()
        else:
            assert abs(weight.std().item() - 0.02) < 0.003 and abs(weight.mean().item()) < 0.005, (
                name
            )


def test_the_tokeniser_knows_every_caption_and_any_ascii_text(folder):
    tokeniser = AutoTokenizer.from_pretrained(folder / "bert")
    bert = BertModel.from_pretrained(folder / "bert", add_pooling_layer=False).eval()
    captions = [caption for split in SIZES for own in captions_of(folder, split) for caption in own]
    pieces = tokeniser(captions, padding=True, return_tensors="pt")
    assert not (pieces["input_ids"] == tokeniser.unk_token_id).any()
    assert pieces["input_ids"].shape[1] <= bert.config.max_position_embeddings
    assert len(tokeniser) == bert.config.vocab_size
    assert bert(**pieces).last_hidden_state.shape == (*pieces["input_ids"].shape, 128)
    odd = string.printable + " Quixotic zebras42 can't"
    assert tokeniser.unk_token not in tokeniser.tokenize(odd)


def test_words_are_one_piece_save_those_meant_to_split(folder):
    tokeniser = AutoTokenizer.from_pretrained(folder / "bert")
    for word, pieces in demo.PIECES.items():
        assert tokeniser.tokenize(word.upper()) == pieces.split()
    for word in WORDS.keys() - demo.PIECES.keys():
        assert tokeniser.tokenize(word) == [word]
