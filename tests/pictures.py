"""Pictures, captions and tiny vision networks with random weights, for tests of `extract`."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from lib.data import __main__ as data_command
from lib.system.errors import command_line

SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
PATCHES = dict(image_size=32, patch_size=8)  # 4 x 4 of them
STAGES = dict(hidden_sizes=[4, 8, 8, 16], depths=[1, 1, 1, 1])  # 64 pixels become 2 x 2
SQUARE = dict(size=dict(height=32, width=32))
LARGE = dict(size=dict(height=64, width=64))
CROP = dict(size=dict(shortest_edge=36), crop_size=dict(height=32, width=32))
TEXT = dict(vocab_size=99, **SMALL)

# class, settings, image processor, number of special tokens, grid of the last hidden state
NETWORKS = {
    "vit": ("ViT", dict(**PATCHES, **SMALL), ("ViT", SQUARE), 1, 4),
    "dinov2": (
        "Dinov2",
        dict(**PATCHES, hidden_size=16, num_hidden_layers=2, num_attention_heads=2),
        ("Bit", CROP), 1, 4,
    ),
    "dinov2-registers": (
        "Dinov2WithRegisters",
        dict(**PATCHES, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
             num_register_tokens=3),
        ("Bit", CROP), 4, 4,
    ),
    "swin": (
        "Swin",
        dict(image_size=64, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2],
             window_size=4),
        ("ViT", LARGE), 0, 8,
    ),
    "convnext": ("ConvNext", STAGES, ("ViT", LARGE), 0, 2),
    "resnet": ("ResNet", dict(STAGES, embedding_size=4, layer_type="basic"), ("ViT", LARGE), 0, 2),
    "clip-vision": ("CLIPVision", dict(**PATCHES, **SMALL), ("CLIP", CROP), 1, 4),
    "siglip-vision": ("SiglipVision", dict(**PATCHES, **SMALL), ("Siglip", SQUARE), 0, 4),
    "clip": ("CLIP", dict(text_config=TEXT, vision_config=dict(**PATCHES, **SMALL)),
             ("CLIP", CROP), 1, 4),
    "siglip": ("Siglip", dict(text_config=TEXT, vision_config=dict(**PATCHES, **SMALL)),
               ("Siglip", SQUARE), 0, 4),
}  # fmt: skip


def make_network(folder, kind="vit", seed=0):
    """Write a tiny vision network with random weights, and its image processor, into a folder."""
    name, settings, (processor, sizes), *_ = NETWORKS[kind]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**settings)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    kind = f"{processor}ImageProcessor"
    content = dict(sizes, image_processor_type=kind, do_resize=True, do_normalize=True)
    if "crop_size" in sizes:
        content["do_center_crop"] = True
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


def picture(seed, width=48, height=40):
    """A picture of random colours, different for each seed."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height))


def write_pictures(folder, count=20):
    """Write 0.png, 1.png, ... Returns the folder."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        picture(number, 48 + number).save(folder / f"{number}.png")
    return folder


def write_captions(path, count=20, per_image=2, split=True):
    """A table of captions: 12 pictures for train, 4 for dev, the others for test."""
    names = ["train"] * 12 + ["dev"] * 4 + ["test"] * (count - 16)
    rows = [
        f"{number}.png,picture {number} with the words {number * 7 % 5} and {k}"
        + f",{names[number]}" * split
        for number in range(count)
        for k in range(per_image)
    ]
    head = "image,caption" + ",split" * split
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def extract(images, captions, out, model, *more):
    """Run `extract`. Returns its exit status."""
    named = ["--images", images, "--captions", captions, "--out", out, "--model", model]
    return run("extract", *named, "--device", "cpu", *more)


def run(*arguments):
    """Run a command for data folders. Returns its exit status."""
    try:
        command_line(lambda: data_command.main(list(map(str, arguments))))
    except SystemExit as ended:
        return ended.code
    return 0
