"""The captions of the demo data: plain English sentences about a scene."""

from collections.abc import Callable

import numpy as np

from .demo_scenes import Scene, Thing, pick, relations
from .demo_settings import (
    BACKGROUNDS,
    CAPTIONS_PER_IMAGE,
    ENDINGS,
    LOOKS,
    MAIN_PAIR_SHARE,
    MENTION,
    PLACE_MENTION,
    RELATED,
    RELATION_MENTION,
    RELATIONS,
    THIRD,
    THIRD_MENTION,
    UNRELATED,
)


def captions(scene: Scene, generator: np.random.Generator) -> list[str]:
    """Five different true captions of a scene, with 5 to 25 words each."""
    sentences: list[str] = []
    while len(sentences) < CAPTIONS_PER_IMAGE:
        sentence = _sentence(scene, generator)
        if sentence not in sentences and 5 <= len(sentence.split()) <= 25:
            sentences.append(sentence)
    # capitalised, in lower case, and rarely in upper case, like captions that people write
    typings: list[Callable[[str], str]] = [
        *[lambda text: text[0].upper() + text[1:]] * 20,
        *[str.lower] * 12,
        str.upper,
    ]
    return [pick(typings, generator)(sentence) + pick(ENDINGS, generator) for sentence in sentences]


def _sentence(scene: Scene, generator: np.random.Generator) -> str:
    """A sentence about two things of a scene, and perhaps its background and a third thing."""
    is_main = generator.random() < MAIN_PAIR_SHARE
    order = generator.permutation(2 if is_main else len(scene.things))[:2].tolist()
    first, second = (scene.things[index] for index in order)
    rest = [thing for thing in scene.things if thing not in (first, second)]
    phrases = {"first": _phrase(first, generator), "second": _phrase(second, generator)}
    known = relations(first, second) if generator.random() < RELATION_MENTION else []
    if known:
        phrases["relation"] = pick(RELATIONS[pick(known, generator)], generator)
    sentence = pick(RELATED if known else UNRELATED, generator).format(**phrases)
    place = pick(BACKGROUNDS[scene.background], generator)
    if generator.random() < PLACE_MENTION:
        sentence = pick((f"{sentence} {place}", f"{place}, {sentence}"), generator)
    if rest and generator.random() < THIRD_MENTION:
        sentence += pick(THIRD, generator).format(third=_phrase(pick(rest, generator), generator))
    return sentence


def _phrase(thing: Thing, generator: np.random.Generator) -> str:
    """Such as "a big red cube": the kind of a thing, and randomly chosen attributes."""
    named = [name for name, chance in MENTION.items() if generator.random() < chance]
    words = [pick(LOOKS[name][getattr(thing, name)], generator) for name in (*named, "kind")]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
