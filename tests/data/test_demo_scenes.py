"""The scenes of the demo data, and their captions."""

import re
from collections import Counter

import numpy as np
import pytest

from lib.data import demo, demo_captions, demo_scenes, demo_settings

SIZES = {"train": 60, "dev": 20, "test": 30}


WORDS = {
    word: (name, key)
    for name, table in demo_settings.LOOKS.items()
    for key, row in table.items()
    for word in row
}


PLACE_KEYS = {words: key for key, row in demo_settings.BACKGROUNDS.items() for words in row}


RELATION_KEYS = {  # defined independently of the module, like the sentences below
    "left of": "left", "on the left side of": "left", "right of": "right",
    "on the right side of": "right", "above": "above", "over": "above", "higher than": "above",
    "below": "below", "under": "below", "underneath": "below", "next to": "near",
    "close to": "near", "beside": "near", "far from": "far", "far away from": "far",
    "a long way from": "far",
}  # fmt: skip


def one_of(words):
    return rf"\b(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})\b"


KIND_WORDS = {word for row in demo_settings.KINDS.values() for word in row}


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
    return {split: demo_scenes.scenes(split) for split in demo_settings.SIZES_OF_SPLITS}


def captions_of(folder, split):
    lines = (folder / f"{split}_caps.txt").read_text(encoding="utf-8").splitlines()
    return [lines[start : start + 5] for start in range(0, len(lines), 5)]


def looks(thing):
    return thing.colour, thing.kind


def fits(thing, phrase):
    return all(getattr(thing, WORDS[word][0]) == WORDS[word][1] for word in phrase.split()[1:])


def holds(relation, first, second):
    """The relations, defined independently of the module."""
    distance = ((first.x - second.x) ** 2 + (first.y - second.y) ** 2) ** 0.5
    return {
        "left": first.x < second.x,
        "right": first.x > second.x,
        "above": first.y < second.y,
        "below": first.y > second.y,
        "near": distance < 0.35,
        "far": distance > 0.45,
    }[relation]


def test_fewer_scenes_are_the_first_of_all(all_scenes):
    for split, found in all_scenes.items():
        assert len(found) == demo_settings.SIZES_OF_SPLITS[split]
        assert demo_scenes.scenes(split, size=40) == found[:40]


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
    assert seen == {
        (colour, kind) for colour in demo_settings.COLOURS for kind in demo_settings.KINDS
    }
    words = {
        split: {
            word
            for scene in all_scenes[split]
            for caption in demo_captions.captions(scene, np.random.default_rng(len(scene.things)))
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
                assert (
                    np.hypot(thing.x - other.x, thing.y - other.y)
                    >= demo_settings.SHORTEST_DISTANCE
                )


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
                for name in demo_scenes.Thing._fields
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
    monkeypatch.setattr(demo_captions, "MENTION", dict.fromkeys(demo_captions.MENTION, 0.0))
    generator = np.random.default_rng(0)
    for scene in all_scenes["dev"]:
        captions = demo_captions.captions(scene, generator)
        assert len({" ".join(re.findall("[a-z]+", caption.lower())) for caption in captions}) == 5


def test_captions_name_only_things_and_places_of_their_scene(folder):
    for split, size in SIZES.items():
        for scene, captions in zip(
            demo_scenes.scenes(split, size=size), captions_of(folder, split), strict=True
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
            demo_scenes.scenes(split, size=size), captions_of(folder, split), strict=True
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
    assert set(stated) == set(demo_settings.RELATIONS)
    assert stated.total() > 0.6 * total
