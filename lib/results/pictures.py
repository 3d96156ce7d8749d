"""Pictures of the images of a split for the report page and the search page: photographs from a
folder, or drawings of the demo's scenes. The template picture.html turns them into HTML.

The report page embeds the bytes of photographs unchanged.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.dataset import RetrievalDataset
from ..data.demo_scenes import Scene
from ..data.demo_scenes import scenes as draw_scenes
from ..data.demo_settings import BACKGROUNDS, KINDS, SIDES
from ..system.images import data_uri
from .search import SplitIndex

MOST_PHOTOGRAPHS, MOST_BYTES = 200, 2_000_000  # photographs per page, bytes per photograph
ENDINGS = ".jpg", ".jpeg", ".png", ".webp", ".gif"
FILES = tuple("{id}" + ending for ending in ENDINGS)
# if the id is a number
COCO_FILES = "{:012d}.jpg", "COCO_train2014_{:012d}.jpg", "COCO_val2014_{:012d}.jpg"
BEGINNINGS = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"RIFF": "image/webp",
    b"GIF8": "image/gif",
}

COLOURS = {
    "red": "#d33f3f", "green": "#3c9a4e", "blue": "#3b6fd4", "yellow": "#f2c230",
    "purple": "#8a4fc0", "orange": "#f08a2c", "black": "#2b2b2f", "white": "#fbfbf8",
}  # fmt: skip
GROUNDS = {
    "kitchen": "#e9dcc6", "garden": "#c6e3b4", "beach": "#f0deae", "street": "#bfc4cb",
    "meadow": "#add888", "snow": "#e6eef6", "forest": "#8fb58a", "carpet": "#ddb8bd",
}  # fmt: skip
# glass is also drawn transparent
EDGES = {"wood": "#7a4a21", "metal": "#5f6872", "plastic": "#0006", "glass": "#4f8fc0"}
SHAPES = {  # outlines in a square of side 1 around 0; the path after | has no fill
    "ball": "M-.5 0A.5 .5 0 1 1 .5 0A.5 .5 0 1 1-.5 0Z|M-.25-.2Q-.15-.35 .02-.36",
    "cube": "M-.5-.25L-.25-.5H.5V.25L.25 .5H-.5Z|M-.5-.25H.25V.5M.25-.25L.5-.5",
    "cup": "M-.4-.4H.2V.25Q.2 .45 0 .45H-.2Q-.4 .45-.4 .25Z|M.2-.2Q.5-.25 .48 .02T.18 .25",
    "chair": "M-.35-.5H-.2V0H.35V.5H.22V.15H-.2V.5H-.35Z|",
    "dog": (
        "M-.5-.15L-.35-.35-.3-.48-.18-.35-.08-.15H.32L.48-.4V.5H.34V.22H-.05V.5H-.2V.05L-.45 "
        "0Z|M-.3-.22H-.29"
    ),
    "cat": (
        "M-.42-.5L-.18-.3H.18L.42-.5V.08A.42 .4 0 0 1-.42 "
        ".08Z|M-.18-.05H-.16M.16-.05H.18M-.1 .18Q0 .28 .1 .18"
    ),
    "car": (
        "M-.5 .15V0L-.3-.07-.14-.3H.2L.34-.07 .5 0V.15H.38A.13 .13 0 "
        "1 1 .12 .15H-.12A.13 .13 0 1 1-.38 .15Z|"
    ),
    "tree": "M0-.5L.42 .2H.08V.5H-.08V.2H-.42Z|",
    "lamp": "M-.2-.5H.2L.4 0H.05V.4H.25V.5H-.25V.4H-.05V0H-.4Z|",
    "book": "M-.5-.35Q-.2-.45 0-.3Q.2-.45 .5-.35V.38Q.2 .28 0 .42Q-.2 .28-.5 .38Z|M0-.3V.42",
    "bottle": "M-.1-.5H.1V-.25Q.25-.15 .25 0V.5H-.25V0Q-.25-.15-.1-.25Z|M-.25 .08H.25",
    "house": "M0-.5L.5-.05H.38V.5H-.38V-.05H-.5Z|M-.1 .5V.18H.1V.5",
    "boat": "M-.5 .15H-.03V-.5L.42 .08H.03V.15H.5L.3 .48H-.3Z|",
    "bird": (
        "M-.5-.08L-.33-.18Q-.22-.4 0-.25Q.2-.1 .5-.3Q.45 .3 .05 "
        ".32Q-.32 .28-.34-.02Z|M0 0Q.15 .15 .3 0"
    ),
    "teapot": (
        "M-.28-.2Q0-.42 .28-.2L.5-.25 .34 .12Q.3 .42 0 .42T-.34 .12Q-.56 "
        ".1-.5-.1T-.28-.2Z|M-.05-.3V-.45H.05V-.3"
    ),
    "clock": "M-.5 0A.5 .5 0 1 1 .5 0A.5 .5 0 1 1-.5 0Z|M0-.34V0L.22 .12",
}


class DrawnThing(NamedTuple):
    """A thing of a demo scene: attributes of two SVG paths, the second without a fill."""

    transform: str
    stroke_width: str
    filled_path: str
    fill: str
    opacity: float
    stroke: str
    open_path: str
    open_stroke: str


class Drawing(NamedTuple):
    """A demo scene in a square of side 100."""

    ground: str
    things: list[DrawnThing]


class Picture(NamedTuple):
    """What a page shows for an image: a photograph (a data URI or an address), a drawing, or
    otherwise its first caption."""

    alt_text: str
    caption: str = ""
    photograph: str = ""
    drawing: Drawing | None = None


class Photograph(NamedTuple):
    """A file with a photograph, and its MIME type."""

    path: Path
    mime_type: str


class Pictures:
    """The pictures of a split.

    folder: contains photographs named by id; scenes: of the demo data. `num_missing` counts the
    photographs that were not found, are too large, or exceed the limit of the page; `found` maps
    each id that was looked up to whether there is a photograph.
    """

    def __init__(
        self,
        index: SplitIndex,
        folder: Path | str | None = None,
        scenes: Sequence[Scene] | None = None,
    ) -> None:
        self.index, self.scenes = index, scenes
        self.folder = Path(folder) if folder else None
        self.num_photographs = self.num_missing = 0
        self.found: dict[str, bool] = {}

    def __bool__(self):
        return bool(self.folder or self.scenes)

    def of(self, image: int) -> Picture:
        """The picture of an image."""
        caption = self.index.first_caption(image)
        alt_text = f"{self.index.label(image)}: {caption}"
        if self.folder:
            content = self._photograph(image)
            if mime_type := find_type(content):
                self.num_photographs += 1
                return Picture(alt_text, photograph=data_uri(mime_type, content))
            self.num_missing += 1
        elif self.scenes:
            return draw(self.scenes[image], self.index.label(image))
        return Picture(alt_text, caption)

    def linked(self, image: int, address: str) -> Picture:
        """The picture of an image, with its photograph at an address instead of embedded."""
        if not self.folder:
            return self.of(image)
        caption = self.index.first_caption(image)
        alt_text = f"{self.index.label(image)}: {caption}"
        if self.find(image):
            return Picture(alt_text, photograph=address)
        return Picture(alt_text, caption)

    def find(self, image: int) -> Photograph | None:
        """The file of the photograph of an image, or None if there is none."""
        for path in self._files(image):
            with path.open("rb") as file:
                if mime_type := find_type(file.read(16)):
                    return Photograph(path, mime_type)
        return None

    def _files(self, image):
        """The files in the folder that have the name of an image. An id with a path names none."""
        identity = self.index.ids[image]
        names = file_names(identity) if self.folder and Path(identity).name == identity else []
        paths = [self.folder / name for name in names if (self.folder / name).is_file()]
        self.found[identity] = bool(paths)
        return paths

    def _photograph(self, image):
        """The bytes of a photograph, or no bytes if none can be embedded."""
        paths = self._files(image)
        path = next((path for path in paths if path.stat().st_size <= MOST_BYTES), None)
        return path.read_bytes() if path and self.num_photographs < MOST_PHOTOGRAPHS else b""

    def missing_as_text(self) -> str:
        """How many of the requested photographs were found, and which files were looked for; "" if
        none is missing."""
        missing = [identity for identity, is_found in self.found.items() if not is_found]
        if not missing:
            return ""
        names = file_names(missing[0])
        return (
            f"pictures: found {len(self.found) - len(missing)} of {len(self.found)} in "
            f"{self.folder}; looked for file names such as {names[0]}, {names[-1]}"
        )


def find_type(content: bytes) -> str | None:
    """The MIME type of a picture from its first bytes, or None if it is not of a known type."""
    return next((kind for start, kind in BEGINNINGS.items() if content.startswith(start)), None)


def file_names(identity: str) -> list[str]:
    """Possible file names of the photograph of the image with this id. An id may be a file name
    with its ending."""
    stem, ending = os.path.splitext(identity)
    if ending.lower() in ENDINGS:
        return list(dict.fromkeys([identity, *(name.format(id=stem) for name in FILES)]))
    is_number = identity.isascii() and identity.isdigit()
    return [name.format(id=identity) for name in FILES] + [
        name.format(int(identity)) for name in COCO_FILES * is_number
    ]


def open_pictures(
    index: SplitIndex, data: RetrievalDataset, dataset: str, folder: Path | str | None
) -> Pictures:
    """The pictures of a split: photographs in a folder or, without a folder, drawings of the demo's
    scenes."""
    is_demo = dataset == "demo" and not folder
    return Pictures(index, folder, demo_scenes(data, index.captions) if is_demo else None)


def demo_scenes(data: RetrievalDataset, captions: Sequence[str]) -> list[Scene] | None:
    """The scenes of a split of the demo data, or None if the captions are not of these scenes."""
    scenes = draw_scenes(data.split, size=data.num_images)
    kinds = {word: kind for kind, words in KINDS.items() for word in words}
    for number, caption in enumerate(captions):
        words = "".join(letter if letter.isalpha() else " " for letter in caption.lower()).split()
        shown = {thing.kind for thing in scenes[data.caption_images[number]].things}
        if not {kinds[word] for word in words if word in kinds} <= shown:
            return None
    return scenes


def draw(scene: Scene, name: str) -> Picture:
    """Draw a scene of the demo data."""
    looks = [f"{thing.size} {thing.colour} {thing.material} {thing.kind}" for thing in scene.things]
    alt_text = f"{name}: {', '.join(looks)}, {BACKGROUNDS[scene.background][0]}"
    things = sorted(scene.things, key=lambda thing: -SIDES[thing.size])  # small ones in front
    drawing = Drawing(GROUNDS[scene.background], [_draw_thing(thing) for thing in things])
    return Picture(alt_text, drawing=drawing)


def _draw_thing(thing):
    filled, open_ = SHAPES[thing.kind].split("|")
    x, y, side = 100 * thing.x, 100 * thing.y, 100 * SIDES[thing.size]
    return DrawnThing(
        transform=f"translate({x:.1f} {y:.1f}) scale({side:.1f})",
        stroke_width=f"{1.2 / side:.3f}",
        filled_path=filled,
        fill=COLOURS[thing.colour],
        opacity=0.55 if thing.material == "glass" else 1,
        stroke=EDGES[thing.material],
        open_path=open_,
        open_stroke=EDGES[thing.material] if thing.colour != "black" else "#aaa",
    )
