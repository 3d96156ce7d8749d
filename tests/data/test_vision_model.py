"""Region features of the vision networks of transformers, compared with a naive average of their
last hidden states."""

import json
import os

import numpy as np
import pytest
import torch
from pictures import NETWORKS, make_network, picture
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from lib.data.extractor import build_extractor, load_extractor
from lib.system.errors import InputError

PICTURES = [picture(seed, 40 + 9 * seed, 44) for seed in range(3)]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Call it with a kind: the folder of this network."""
    made = {}

    def find(kind):
        if kind not in made:
            made[kind] = make_network(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return find


def naive_features(folder, pictures, num_special, size, side):
    """Special tokens dropped, the rest averaged over a grid of side x side, with loops."""
    config = AutoConfig.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, config=getattr(config, "vision_config", config))
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    with torch.no_grad():
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        states = model.eval()(pixel_values=pixels).last_hidden_state
    if states.dim() == 4:
        states = states.permute(0, 2, 3, 1)
    else:
        states = states[:, num_special:].reshape(len(pictures), size, size, -1)
    assert states.shape[1:3] == (size, size)
    cells = [
        states[:, row * size // side : -(-(row + 1) * size // side)]
        [:, :, column * size // side : -(-(column + 1) * size // side)].mean((1, 2))
        for row in range(side)
        for column in range(side)
    ]  # fmt: skip
    return torch.stack(cells, 1).numpy()


@pytest.mark.parametrize("regions", [36, 9, 5, 1])
@pytest.mark.parametrize("kind", NETWORKS)
def test_features_are_means_over_a_grid_without_special_tokens(networks, kind, regions):
    *_, num_special, size = NETWORKS[kind]
    side = min(int(regions**0.5), size)
    extractor = build_extractor(str(networks(kind)), regions)
    found = extractor.features(PICTURES)
    assert found.dtype == np.float32 and found.shape[:2] == (3, side * side)
    expected = naive_features(networks(kind), PICTURES, num_special, size, side)
    assert np.abs(found - expected).max() < 1e-5
    assert extractor.record["grid"] == [side, side]
    assert extractor.record["region_dim"] == found.shape[2]
    assert not np.allclose(found[0], found[1], atol=1e-3)  # they depend on the picture


def test_features_do_not_depend_on_the_batch(networks):
    extractor = build_extractor(str(networks("vit")))
    whole = extractor.features(PICTURES)
    extractor.batch_size = 1
    assert np.abs(whole - extractor.features(PICTURES)).max() < 1e-6


def test_a_record_gives_the_same_extractor(networks):
    first = build_extractor(str(networks("clip")), 9)
    record = json.loads(json.dumps(first.record))
    second = load_extractor(record)
    assert second.record == record
    assert np.array_equal(first.features(PICTURES), second.features(PICTURES))


def change_weights(folder):
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_settings(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))


@pytest.mark.parametrize(
    "change, what", [(change_weights, "weights"), (change_settings, "preprocessing")]
)
def test_a_network_that_has_changed_is_refused(tmp_path, change, what):
    record = build_extractor(str(make_network(tmp_path / "vit"))).record
    change(tmp_path / "vit")
    with pytest.raises(InputError, match=f"another value of {what}"):
        load_extractor(record)


def test_weights_without_a_pooler_are_enough_and_keep_their_hash(tmp_path):
    """Classification checkpoints have no pooler: its random weights must not matter."""
    folder = make_network(tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    first = build_extractor(str(folder))
    torch.manual_seed(123)
    assert load_extractor(first.record).record == first.record


def test_missing_weights_are_refused(tmp_path):
    folder = make_network(tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "patch_embeddings" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the weights lack .*patch_embeddings"):
        build_extractor(str(folder))


def test_nan_is_refused(tmp_path):
    folder = make_network(tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    weights = {name: torch.full_like(value, torch.nan) for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="NaN or Inf"):
        build_extractor(str(folder))


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"config.json": "{"},
        {"config.json": '{"model_type": "bert"}', "preprocessor_config.json": "{}"},
    ],
)
def test_a_folder_that_is_no_vision_network_is_refused_in_one_line(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="--model .*a folder that does not load.*hub name"):
        build_extractor(str(tmp_path))


def test_a_name_that_cannot_be_fetched_is_refused():
    with pytest.raises(InputError, match="--model nobody/nothing: found neither a folder nor"):
        build_extractor("nobody/nothing")


def test_a_pipe_in_the_folder_is_refused_and_not_opened(tmp_path):
    folder = make_network(tmp_path / "vit")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(InputError, match="config.json: a pipe"):
        build_extractor(str(folder))


@pytest.mark.parametrize(
    "change",
    [{"format": "other"}, {"regions": 0}, {"model": None}, {"grid": {}}, {"weights": {}}],
)
def test_a_damaged_record_is_refused(networks, change):
    record = build_extractor(str(networks("vit"))).record
    with pytest.raises(InputError, match="not the record of an extraction"):
        load_extractor(record | change)


def test_features_whose_tokens_are_no_grid_are_refused(networks, monkeypatch):
    from lib.data.vision_model import VisionModel

    monkeypatch.setattr(VisionModel, "_grid", lambda self, pixels: (3, 3))
    with pytest.raises(InputError, match="its output is not a grid .found .1, 17, 16."):
        build_extractor(str(networks("vit")))
