"""The demo data: reproducible files, region features, and a BERT that transformers loads."""

import hashlib
import json
import os
import shutil
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from damage import contents
from kills import Programs
from safetensors import safe_open
from test_demo_scenes import WORDS, captions_of
from transformers import AutoTokenizer, BertModel

from lib.data import demo, demo_bert, demo_regions, demo_scenes, demo_settings

SIZES = {"train": 60, "dev": 20, "test": 30}
LOCK = ".demo_precomp.lock"  # remains next to the data set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo_precomp"
    demo.build(folder, sizes=SIZES)
    return folder


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    code = f"from lib.data import demo; demo.build({str(tmp_path / 'again')!r}, sizes={SIZES})"
    # another order of sets
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
        f"{split}_{kind}"
        for split in SIZES
        for kind in ("ims.npy", "boxes.npy", "caps.txt", "ids.txt")
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
        boxes = np.load(folder / f"{split}_boxes.npy")
        assert boxes.shape == (size, 36, 4) and boxes.dtype == np.float32
        assert (0 <= boxes).all() and (boxes <= 1).all() and (boxes[..., :2] < boxes[..., 2:]).all()
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

    monkeypatch.setattr(demo, "write_bert", interrupt)
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


def test_features_are_finite_sparse_and_never_negative(folder):
    for split in SIZES:
        features = np.load(folder / f"{split}_ims.npy")
        assert np.isfinite(features).all() and (features >= 0).all()
        assert 0.4 < (features == 0).mean() < 0.85
        assert (features.max(axis=2) > 0).all()


def test_regions_on_one_thing_are_more_alike_than_regions_on_two():
    generator, vectors = np.random.default_rng(0), demo_regions.appearance()
    same, different = [], []
    for scene in demo_scenes.scenes("dev", size=40):
        found = demo_regions.regions(scene, vectors, generator)
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
    vectors, found = demo_regions.appearance(), demo_scenes.scenes("train", size=SIZES["train"])
    expected = np.array(
        [
            np.mean(
                [
                    vectors[getattr(thing, name)]
                    for thing in scene.things
                    for name in demo_settings.LOOKS
                ],
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
    for word, pieces in demo_bert.PIECES.items():
        assert tokeniser.tokenize(word.upper()) == pieces.split()
    for word in WORDS.keys() - demo_bert.PIECES.keys():
        assert tokeniser.tokenize(word) == [word]
