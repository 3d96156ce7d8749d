"""From files of own features to tables: an image has its true regions, without padding."""

import numpy as np
import pytest
import torch
from own_features import arguments, entry, tsv_line, write_json
from test_check import run

import eval as evaluation
import train
from lib.data import demo
from lib.data.batches import TrainingPairs, batches, training_loader
from lib.data.dataset import RetrievalDataset
from lib.evaluation import encoding
from lib.model import bert
from lib.model.network import build_model
from lib.system.errors import InputError

OPTIONS = (
    "--num_epochs 1 --batch_size 15 --embed_size 16 --nhead 2 --workers 0 --warmup 2 --topk 6"
).split()


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Raw files of the demo's images, 3 to 12 boxes each, converted to 8 regions;
    and the demo's BERT."""
    folder = tmp_path_factory.mktemp("raw")
    sizes = {"train": 12, "dev": 4, "test": 5}
    demo.build(folder / "demo_precomp", sizes=sizes)
    images, lines = [], []
    for split, name in (("train", "train"), ("dev", "val"), ("test", "test")):
        captions = (folder / "demo_precomp" / f"{split}_caps.txt").read_text().splitlines()
        for index, regions in enumerate(np.load(folder / "demo_precomp" / f"{split}_ims.npy")):
            number, texts = len(images), captions[5 * index : 5 * index + 5]
            lines.append(tsv_line(number, 3 + number % 10, regions[: 3 + number % 10]))
            images.append(entry(number, name) | {"sentences": [{"raw": text} for text in texts]})
    (folder / "a.tsv").write_bytes(b"".join(reversed(lines)))
    write_json(folder, images)
    assert run(*arguments(folder, "--regions", 8, "--match", "imgid", tsv=["a.tsv"])) == 0
    return folder


def test_from_raw_files_to_a_table(raw, tmp_path, capsys):
    bert_path = str(raw / "demo_precomp" / "bert")
    more = ["--dataset", "mine", "--data_path", str(raw), "--bert_path", bert_path]
    for augment in ("1", "0"):
        folder = str(tmp_path / augment)
        train.main([*OPTIONS, *more, "--logger_name", folder, "--size_augment", augment])
        assert "skipped" not in (tmp_path / augment / "train.txt").read_text()
        table = (tmp_path / augment / "test.md").read_text()
        evaluation.main(["--model_path", folder])
        assert (
            tmp_path / augment / "test.md"
        ).read_text() == table and "split test: 5 images" in table


@pytest.fixture(scope="module")
def split(raw):
    return RetrievalDataset(
        raw / "mine_precomp", "train", bert.tokeniser(raw / "demo_precomp" / "bert")
    )


def true_regions(raw, image):
    return np.load(raw / "demo_precomp" / "train_ims.npy")[image][: min(3 + image, 8)]


def test_an_image_has_its_true_regions(raw, split):
    assert split.num_regions.tolist() == [3, 4, 5, 6, 7, 8, 8, 8, 8, 8, 3, 4]
    for image in range(10):
        np.testing.assert_array_equal(split.image_regions(image), true_regions(raw, image))
    regions, lengths = split.image_block(1, 4)
    assert (
        lengths.tolist() == [4, 5, 6]
        and lengths.dtype == torch.int64
        and regions.shape == (3, 6, demo.FEATURES)
    )
    for row, length, image in zip(regions, lengths, (1, 2, 3)):
        np.testing.assert_array_equal(row[:length], true_regions(raw, image))
        assert not row[length:].any()


@pytest.mark.parametrize("drop_regions", [False, True])
def test_training_takes_true_regions_only(raw, split, drop_regions):
    seen = set()
    loader = training_loader(TrainingPairs(split, seed=0, drop_regions=drop_regions), 60, workers=0)
    for epoch in range(3):
        loader.sampler.epoch = epoch
        for batch in batches(loader):
            for regions, length, image in zip(
                batch.regions.numpy(), batch.region_lengths, batch.image_ids.tolist()
            ):
                assert not regions[length:].any() and 1 <= length <= split.num_regions[image]
                if image < 10:
                    is_same = (regions[:length, None] == true_regions(raw, image)[None]).all(axis=2)
                    assert (is_same.sum(axis=1) == 1).all()
                    seen |= {(image, int(place)) for place in is_same.argmax(axis=1)}
                assert drop_regions or length == split.num_regions[image]
    assert seen == {(image, place) for image in range(10) for place in range(min(3 + image, 8))}


def written(raw, folder, regions, captions):
    """A train split of an array and lines, without counts."""
    folder.mkdir()
    np.save(folder / "train_ims.npy", regions)
    (folder / "train_caps.txt").write_text("".join(f"{line}\n" for line in captions))
    return RetrievalDataset(folder, "train", bert.tokeniser(raw / "demo_precomp" / "bert"))


def test_a_padded_image_is_evaluated_as_if_it_were_alone(raw, split, tmp_path):
    torch.manual_seed(0)
    options = dict(
        embed_size=16, nhead=2, dropout=0.1, residual_weight=0.5, no_imgnorm=False, no_txtnorm=False
    )
    model = build_model(options, bert.model(raw / "demo_precomp" / "bert"), demo.FEATURES)
    embeddings = encoding.encode_images(model, split, torch.device("cpu"))
    for image in (0, 2, 5):
        alone = written(
            raw, tmp_path / str(image), true_regions(raw, image)[None], ["a red ball"] * 5
        )
        expected = encoding.encode_images(model, alone, torch.device("cpu"))
        torch.testing.assert_close(embeddings[image : image + 1], expected, rtol=1e-5, atol=1e-6)
    uncounted = written(
        raw, tmp_path / "uncounted", np.load(split.regions_path), ["a red ball"] * 60
    )
    differs = (
        encoding.encode_images(model, uncounted, torch.device("cpu")) - embeddings
    ).abs().amax(1) > 1e-3
    assert differs.tolist() == (split.num_regions < 8).tolist()


def test_counts_belong_to_rows_where_rows_repeat(raw, split, tmp_path):
    source = raw / "mine_precomp"
    for name in ("train_ims.npy", "train_num_regions.npy"):
        np.save(tmp_path / name, np.load(source / name).repeat(5, axis=0))
    (tmp_path / "train_caps.txt").write_bytes((source / "train_caps.txt").read_bytes())
    repeated = RetrievalDataset(tmp_path, "train", bert.tokeniser(raw / "demo_precomp" / "bert"))
    for left, right in zip(repeated.image_block(0, 12), split.image_block(0, 12)):
        assert torch.equal(left, right)
    which = np.arange(60)
    for left, right in zip(
        TrainingPairs(repeated, seed=2)[1, which], TrainingPairs(split, seed=2)[1, which]
    ):
        assert torch.equal(left, right)


def test_counts_that_do_not_fit_end_training(raw, tmp_path):
    for name in ("train_ims.npy", "train_caps.txt"):
        (tmp_path / name).write_bytes((raw / "mine_precomp" / name).read_bytes())
    np.save(tmp_path / "train_num_regions.npy", np.full(12, 9))
    with pytest.raises(
        InputError,
        match="train_num_regions.npy: found 9 regions for row 0 .* 1 to 8 for each of the 12",
    ):
        RetrievalDataset(tmp_path, "train", bert.tokeniser(raw / "demo_precomp" / "bert"))
