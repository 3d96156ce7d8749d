"""Settings of the demo data: sizes, difficulty of the task, positions of things, and words."""

# R regions, D region feature size

SIZES_OF_SPLITS = {"train": 2000, "dev": 200, "test": 500}  # images
REGIONS, FEATURES, CAPTIONS_PER_IMAGE = 36, 128, 5  # R, D

# Difficulty of the task.
# more things: it is harder to find the two that a caption mentions
FEWEST_THINGS, MOST_THINGS = 2, 5
# fraction of scenes that differ from the previous one in one respect; more: more hard negatives
VARIANT_SHARE = 1 / 3
# fraction of pairs of (colour, kind) that are reserved for dev and test; more: fewer in training
HELD_OUT_SHARE = 0.2
# probability that a phrase mentions the attribute; less: vaguer captions
MENTION = {"size": 0.3, "colour": 0.8, "material": 0.3}
# fraction of captions about the two main things; less: captions mention more different things
MAIN_PAIR_SHARE = 0.85
# probability that a caption states a spatial relation; less: mirrored scenes have equal captions
RELATION_MENTION = 0.85
PLACE_MENTION = 0.25  # probability that a caption mentions the background; less: vaguer captions
THIRD_MENTION = 0.2  # probability that a caption mentions a third thing; less: vaguer captions
# magnitude of each attribute in a feature; less: harder
STRENGTH = {"kind": 1.0, "colour": 0.8, "size": 0.5, "material": 0.6, "background": 0.8}
BOX_STRENGTH = 1.5  # magnitude of the position and size of the box; less: relations are less clear
# noise that all boxes of a thing share, so that averaging does not remove it; more: harder
INSTANCE_NOISE = 0.7
DETECTOR_NOISE = 1.0  # independent noise of each box; more: harder, if a thing has few boxes
# probability that the detector misses a thing; more: captions mention more undetected things
MAIN_MISS, OTHER_MISS = 0.01, 0.1
SPARSITY = 0.8  # subtracted before the ReLU; more: more zeros, and weak evidence is lost

# Positions. Things and boxes are in the unit square; y points down.
SIDES = {"small": 0.1, "medium": 0.16, "large": 0.24}  # side of the outline of a thing
SHORTEST_DISTANCE = 0.18  # minimum distance of two things
NEAR, FAR = 0.3, 0.5  # maximum distance of "near", minimum distance of "far"
# "left of" requires a horizontal distance of at least this many times the vertical distance
CLEARNESS = 2
# number of boxes around two things, and of boxes at random; the other boxes contain one thing
PAIR_REGIONS, GROUND_REGIONS = 6, 8
BOX_JITTER = 0.25  # maximum displacement of an edge, in sides of the box

# Words. A caption uses any of the words in place of the key.
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
RELATIONS: dict[str, tuple[str, ...]] = {
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

LOOKS: dict[str, dict[str, tuple[str, ...]]] = {
    "kind": KINDS,
    "colour": COLOURS,
    "size": SIZES,
    "material": MATERIALS,
}
