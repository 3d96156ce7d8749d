"""--init_from: a run starts from the weights of a trained model of any data set."""

import shutil

import numpy as np
import pytest
import torch
from damage import contents, saved_with
from helpers import read
from test_programs import as_published, same

import train
from lib.data import demo
from lib.data.dataset import RetrievalDataset
from lib.evaluation import encoding, metrics
from lib.model import checkpoint
from lib.model.network import find_bert, load_model, load_tokeniser
from lib.system import run_folder
from lib.system.errors import InputError
from lib.training import engine, loop, reporting, run_start

SIZES = (
    "--num_epochs 1 --batch_size 20 --embed_size 32 --nhead 2 --workers 0 --warmup 1 "
    "--learning_rate 0.001"
).split()
BIGRU = "--text_encoder bigru --word_dim 12 --pooling max --min_word_count 3".split()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The demo data, and other data with captions of other words, of one BERT."""
    folder = tmp_path_factory.mktemp("data")
    demo.build(folder / "demo_precomp", sizes={"train": 40, "dev": 20, "test": 20})
    other = shutil.copytree(folder / "demo_precomp", folder / "other_precomp")
    for ours, theirs in (("dev", "test"), ("test", "dev")):
        for ending in ("ims.npy", "caps.txt"):
            shutil.copy(folder / "demo_precomp" / f"{theirs}_{ending}", other / f"{ours}_{ending}")
    captions = other / "train_caps.txt"
    captions.write_text(captions.read_text().replace("a ", "every ").replace("dog", "poodle"))
    return folder


def command(data, folder, *more):
    given = [
        "--data_path",
        data,
        "--logger_name",
        folder,
        "--bert_path",
        data / "demo_precomp" / "bert",
        *more,
    ]
    return [*SIZES, *map(str, given if "--dataset" in more else ["--dataset", "demo", *given])]


def fit(data, folder, *more):
    train.main(command(data, folder, *more))
    return folder


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    """A finished run; tests leave it as it is."""
    return fit(data, tmp_path_factory.mktemp("source") / "run")


@pytest.fixture(scope="module")
def words(data, tmp_path_factory):
    """A finished run of a BiGRU; tests leave it as it is."""
    return fit(data, tmp_path_factory.mktemp("words") / "run", *BIGRU)


def table(file, data, dataset="demo"):
    """How a checkpoint does on the dev split of a data set, as a validation logs it."""
    trained = checkpoint.load(file)
    bert_path = find_bert(trained, data / "demo_precomp" / "bert")
    longest = None if trained.vocabulary else 64
    split = RetrievalDataset(
        data / f"{dataset}_precomp", "dev", load_tokeniser(trained, bert_path), longest
    )
    model = load_model(file, trained, bert_path, split.region_dim, CPU)
    scores = metrics.scores(metrics.ranks(encoding.similarities(model, split, CPU)))
    sides = (
        f"image to text {reporting.row(scores.image_to_text)}; text to image "
        f"{reporting.row(scores.text_to_image)}"
    )
    return f"{sides}; rsum {scores.rsum:.1f} (best so far)"


def first_validation(folder):
    line = (folder / "eval.txt").read_text().splitlines()[0]
    assert line.startswith("epoch 0 step 0 dev: ")
    return line.removeprefix("epoch 0 step 0 dev: ")


def first_log_line(folder):
    lines = [
        line
        for line in (folder / "train.txt").read_text().splitlines()
        if line.startswith("starting from ")
    ]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("dataset", ["demo", "other"])
def test_a_run_starts_where_another_one_ended(data, source, tmp_path, dataset):
    run = fit(data, tmp_path / "run", "--init_from", source, "--dataset", dataset)
    assert first_validation(run) == table(source / run_folder.BEST, data, dataset)
    line = first_log_line(run)
    assert line.startswith(
        f"starting from {source} (trained on demo, 1 epochs): the weights of both encoders "
    )
    assert (
        "the instance graph and the optimiser start from scratch" in line and "warning" not in line
    )
    started, ended = read(source), read(run, run_folder.LAST)
    assert not same(started["model"], ended["model"]) and ended["step"] == 10
    assert ended["options"]["init_from"] == str(source)


def test_the_weights_are_those_of_the_file_and_the_graph_is_new(
    data, source, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop.Training, "run", lambda training: training.state)
    new, fresh = (
        train.main(command(data, tmp_path / name, *more))[0]
        for name, more in (("new", ["--init_from", str(source / run_folder.LAST)]), ("fresh", []))
    )
    assert same(dict(new.model.state_dict()), read(source, run_folder.LAST)["model"])
    assert not same(dict(new.model.state_dict()), dict(fresh.model.state_dict()))
    assert not same(dict(new.objective.state_dict()), read(source, run_folder.LAST)["objective"])
    assert not new.optimizer.state and (new.epoch, new.step, new.best_rsum) == (0, 0, -1)


def test_a_published_checkpoint_is_a_start_too(data, source, tmp_path):
    published = tmp_path / "theirs.pth"
    as_published(source, published)
    run = fit(data, tmp_path / "run", "--init_from", published, "--dataset", "other")
    assert first_validation(run) == table(source / run_folder.BEST, data, "other")
    assert f"starting from {published} (published format, 7 epochs)" in first_log_line(run)


def test_the_start_stays_the_best_where_training_makes_it_worse(
    data, source, tmp_path, monkeypatch
):
    compute = engine.train_epoch

    def spoilt(model, *parts, **settings):
        step = compute(model, *parts, **settings)
        for parameter in model.text_encoder.parameters():
            parameter.data.zero_()
        return step

    monkeypatch.setattr(engine, "train_epoch", spoilt)
    run = fit(data, tmp_path / "run", "--init_from", source)
    lines = (run / "eval.txt").read_text().splitlines()
    assert "(best so far)" not in lines[1] and lines[1].startswith("epoch 0 step 10 dev: ")
    best = read(run)
    assert same(best["model"], read(source)["model"]) and (best["epoch"], best["step"]) == (0, 0)
    assert "(after 0 epochs)" in (run / "test.md").read_text()


def test_words_of_the_checkpoint_keep_their_embedding(data, words, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Training, "run", lambda training: training.state)
    run = tmp_path / "run"
    training = train.main(command(data, run, *BIGRU, "--init_from", words, "--dataset", "other"))[0]
    old, new = read(words)["vocabulary"], training.vocabulary.words
    assert new[: len(old)] == old and {"every", "poodle"} <= set(new[len(old) :]) and "dog" in old
    weight = training.model.text_encoder.words.weight.detach()
    assert torch.equal(weight[: 5 + len(old)], read(words)["model"]["text_encoder.words.weight"])
    added = weight[5 + len(old) :]
    assert len(added) == len(new) - len(old) and added.any(1).all() and added.abs().max() <= 0.1
    assert (
        f"; {len(old)} words keep their embedding, {len(added)} new words start at random"
        in first_log_line(run)
    )


def test_new_words_start_from_glove(data, words, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Training, "run", lambda training: training.state)
    glove = tmp_path / "glove.txt"
    glove.write_text(
        "".join(f"{word} " + " ".join(["0.5"] * 12) + "\n" for word in ("every", "ball"))
    )
    more = [*BIGRU, "--init_from", words, "--dataset", "other", "--glove", glove]
    training = train.main(command(data, tmp_path / "run", *more))[0]
    weight, ids = training.model.text_encoder.words.weight, training.vocabulary.ids
    assert (weight[ids["every"]] == 0.5).all()
    assert torch.equal(
        weight[ids["ball"]], read(words)["model"]["text_encoder.words.weight"][ids["ball"]]
    )
    assert "new words start from --glove or at random" in first_log_line(tmp_path / "run")


@pytest.mark.parametrize("dataset", ["demo", "other"])
def test_a_bigru_starts_where_another_one_ended(data, words, tmp_path, dataset):
    run = fit(data, tmp_path / "run", *BIGRU, "--init_from", words, "--dataset", dataset)
    assert first_validation(run) == table(words / run_folder.BEST, data, dataset)
    assert (len(read(run)["vocabulary"]) == len(read(words)["vocabulary"])) is (dataset == "demo")


@pytest.mark.parametrize("encoder", ["bert", "bigru"])
def test_a_run_that_started_so_goes_on_without_the_file(
    data, source, words, tmp_path, encoder, capsys
):
    start = shutil.copytree(source if encoder == "bert" else words, tmp_path / "start")
    more = ["--init_from", start, "--dataset", "other", *(BIGRU if encoder == "bigru" else [])]
    straight = fit(data, tmp_path / "straight", *more, "--num_epochs", 2)
    run = fit(data, tmp_path / "run", *more, "--resume", "auto")  # nothing to go on from: it starts
    shutil.rmtree(start)
    fit(data, run, *more, "--resume", "auto", "--num_epochs", 2)
    for name in (run_folder.LAST, run_folder.BEST):
        ours, theirs = read(run, name), read(straight, name)
        assert all(
            same(ours[part], theirs[part])
            for part in ("model", "objective", "optimizer", "step", "vocabulary")
        )
    text = (straight / "train.txt").read_text().replace(str(straight), str(run))
    assert [line for line in text.splitlines() if "epochs, graph" not in line] == [
        line for line in (run / "train.txt").read_text().splitlines() if "epochs, graph" not in line
    ]


def test_a_run_killed_before_its_first_validation_starts_it_again(
    data, source, tmp_path, monkeypatch
):
    def killed(training):
        raise KeyboardInterrupt

    more = ["--init_from", source, "--resume", "auto"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "_validate", killed)
        fit(data, tmp_path / "run", *more)
    assert read(tmp_path / "run", run_folder.LAST)["step"] == 0
    run = fit(data, tmp_path / "run", *more)
    assert first_validation(run) == table(source / run_folder.BEST, data)
    assert (run / "eval.txt").read_text().count("step 0 dev") == 1


@pytest.mark.parametrize("option", ["--residual_weight", "--mask_padding", "--no_imgnorm"])
def test_what_else_differs_is_told(data, source, tmp_path, monkeypatch, option):
    monkeypatch.setattr(loop.Training, "run", lambda training: training.state)
    value = {"--residual_weight": ["0.5"], "--mask_padding": ["1"]}.get(option, [])
    train.main(command(data, tmp_path / "run", "--init_from", source, option, *value))
    expected = {"--residual_weight": "0.5 (it had 0.8)", "--mask_padding": "1 (it had 0)"}
    found = f"that training: {option} {expected.get(option, 'True (it had False)')}"
    assert found in first_log_line(tmp_path / "run")


def narrow(folder):
    for name in ("train", "dev", "test"):
        path = folder / "demo_precomp" / f"{name}_ims.npy"
        np.save(path, np.load(path)[:, :, :64])


def broken(folder, **values):
    state = read(folder)["model"]
    saved_with(
        folder / run_folder.BEST,
        model=state | {name.replace("__", "."): new for name, new in values.items()},
    )


REFUSED = {
    "no such file": (
        lambda run: run.rename(run.with_name("gone")),
        [],
        ["no such checkpoint", "with --init_from"],
    ),
    "another size": (
        None,
        ["--embed_size", 16],
        ["found --embed_size 32", "Give --embed_size 32"],
    ),
    "other heads": (None, ["--nhead", 4], ["--nhead 2", "as in this run). Give --nhead 2"]),
    "another pooling": (None, ["--pooling", "mean"], ["Give --pooling maxk+relation"]),
    "another encoder": (
        None,
        BIGRU,
        ["found --text_encoder bert", "Give --text_encoder bert"],
    ),
    "no checkpoint": (
        lambda run: (run / "model_best.pth").write_bytes(b"junk"),
        [],
        ["cannot be read as a checkpo"],
    ),
    "weights of NaN": (
        lambda run: broken(run, image_encoder__projection__bias=torch.full((32,), torch.nan)),
        [],
        ["NaN or Inf"],
    ),
    "an entry too few": (
        lambda run: broken(run, image_encoder__projection__bias=None),
        [],
        ["projection.bias is missing"],
    ),
    "another BERT": (
        lambda run: broken(
            run, text_encoder__bert__embeddings__word_embeddings__weight=torch.ones(9, 128)
        ),
        [],
        ["word_embeddings.weight with 9 rows", "vocab_size"],
    ),
}


@pytest.mark.parametrize("damage, more, expected", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_in_a_line(
    data, source, tmp_path, refusal, damage, more, expected
):
    start = shutil.copytree(source, tmp_path / "start")
    if damage:
        damage(start)
    refusal(
        train.main,
        *command(data, tmp_path / "run", "--init_from", start, *more),
        expected=[start, *expected],
    )
    assert not (tmp_path / "run").exists()


def test_other_features_or_word_sizes_are_refused(data, source, words, tmp_path, refusal):
    narrowed = shutil.copytree(data, tmp_path / "data")
    narrow(narrowed)
    expected = ["a feature size of 128, expected 64 as in the data"]
    refusal(
        train.main, *command(narrowed, tmp_path / "run", "--init_from", source), expected=expected
    )
    more = [*BIGRU, "--word_dim", 20, "--init_from", words]
    refusal(train.main, *command(data, tmp_path / "run", *more), expected=["Give --word_dim 12"])
    damaged = shutil.copytree(words, tmp_path / "words")
    broken(damaged, text_encoder__words__weight=torch.ones(3, 12))
    more = [*BIGRU, "--init_from", damaged]
    refusal(
        train.main, *command(data, tmp_path / "run", *more), expected=["words.weight is (3, 12)"]
    )
    assert not (tmp_path / "run").exists()


def test_a_bert_of_another_tokeniser_is_refused(data, source, tmp_path, refusal):
    """Its sizes fit, and every word would get another's embedding."""
    other = shutil.copytree(data / "demo_precomp" / "bert", tmp_path / "bert")
    *words, last, before = (other / "vocab.txt").read_text().split()
    (other / "vocab.txt").write_text("\n".join([*words, before, last]) + "\n")
    more = ["--init_from", source, "--bert_path", other]
    expected = [
        f"--bert_path {other}: other tokeniser than the BERT that {source}",
        "give that BERT",
    ]
    refusal(train.main, *command(data, tmp_path / "run", *more), expected=expected)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_replace_what_it_starts_from(data, source, tmp_path, refusal):
    start = shutil.copytree(source, tmp_path / "start")
    before = contents(start)
    for path in (start, start / run_folder.LAST):
        more = ["--init_from", path, "--overwrite", 1]
        refusal(
            train.main,
            *command(data, start, *more),
            expected=["in the folder of this run", "another --logger_"],
        )
    assert contents(start) == before


@pytest.mark.parametrize(
    "name, before, other", [("init_from", None, "runs/x"), ("strip_accents", 1, 0)]
)
def test_a_run_from_before_these_options_goes_on_with_their_defaults(name, before, other):
    run_start.check_resumed("last.pth", {name: before}, {})
    with pytest.raises(InputError, match=f"found --{name} {other}, expected --{name} {before}"):
        run_start.check_resumed("last.pth", {name: other}, {})


@pytest.mark.parametrize("resume", ["auto", "PATH"])
@pytest.mark.parametrize("is_old", [False, True])
def test_a_run_that_did_not_start_so_does_not_go_on_so(data, source, tmp_path, resume, is_old):
    begun = shutil.copytree(source, tmp_path / "begun")
    if is_old:  # from before the option
        options = read(begun, run_folder.LAST)["options"]
        saved_with(
            begun / run_folder.LAST,
            options={name: options[name] for name in options if name != "init_from"},
        )
    run = begun if resume == "auto" else tmp_path / "run"
    more = [
        "--init_from",
        source,
        "--resume",
        "auto" if resume == "auto" else begun / run_folder.LAST,
    ]
    with pytest.raises(InputError, match=f"found --init_from {source}, expected --init_from None"):
        fit(data, run, *more)
