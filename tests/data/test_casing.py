"""Capitals and accents in the tokeniser of a BERT: from its files or vocabulary."""

import json
import shutil

import pytest
from damage import OPTIONS
from published import GOLDEN

import eval as evaluation
import train
from lib.data.captions import split_words, tokenise
from lib.model import bert
from lib.results.trained import load
from lib.system.errors import InputError

SPECIAL = "[PAD] [UNK] [CLS] [SEP] [MASK]".split()
CASED = "A a Dog dog The the Paris ##s".split()
UNCASED = "a dog the paris ##s".split()
TEXT = "The Dögs in Paris"
KEPT, LOWER, PLAIN = (
    ["The", "Dögs", "in", "Paris"],
    ["the", "dögs", "in", "paris"],
    ["the", "dogs", "in", "paris"],
)
FIELDS = dict(
    vocab_size=100, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
    max_position_embeddings=20, type_vocab_size=2,
)  # fmt: skip


def folder_of(folder, words, settings=None, config=None):
    """A BERT folder without weights. Its vocabulary: the special tokens, then these words."""
    folder.mkdir()
    (folder / "vocab.txt").write_text(
        "".join(f"{word}\n" for word in [*SPECIAL, *words]), encoding="utf-8"
    )
    config = {"model_type": "bert", "vocab_size": 1000} if config is None else config
    (folder / "config.json").write_text(json.dumps(config))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def as_tokenizer_json(folder, change):
    """Replace the tokeniser files of a folder by a changed tokenizer.json."""
    content = json.loads(bert.tokeniser(folder).backend_tokenizer.to_str())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "vocab.txt").unlink()
    return folder


@pytest.mark.parametrize("words, expected, told", [
    (UNCASED, PLAIN, []),
    (
        CASED, KEPT,
        [
            "capitals are kept, accents kept", "no file says otherwise", "50.0% of the",
            "have capitals"
        ]
    ),
    (
        [*UNCASED, "schön"], LOWER,
        ["capitals are made lower case, accents kept", "16.7% have accents"]
    ),
    (["狗", "馬"], PLAIN, []),
    (
        [*UNCASED, *map(str, range(300)), "Paris"], PLAIN,
        ["warning: ", "it is not certain", '{"do_lower_case": false}']
    ),
    (
        [*UNCASED, *map(str, range(300)), "schön"], PLAIN,
        ["warning: ", "it is not certain", "accents removed"]
    ),
    ([*UNCASED, "[X1]", "[unused7]", "<S>"], PLAIN, []),
], ids=[
    "uncased", "cased", "accents", "no case", "few capitals", "few accents", "names in brackets"
])  # fmt: skip
def test_a_vocabulary_shows_what_no_file_says(tmp_path, words, expected, told):
    found = bert.tokeniser(folder_of(tmp_path / "bert", words))
    assert split_words(TEXT, found) == expected
    assert (
        all(text in found.note for text in [str(tmp_path / "bert"), *told])
        if told
        else found.note == ""
    )


@pytest.mark.parametrize("words, settings, expected, told", [
    (
        CASED, dict(do_lower_case=False), KEPT,
        ["capitals are kept, accents kept, as tokenizer_config.json says"]
    ),
    (
        CASED, dict(do_lower_case=False, strip_accents=True), ["The", "Dogs", "in", "Paris"],
        ["accents removed"]
    ),
    (UNCASED, dict(do_lower_case=True), PLAIN, []),
    (
        UNCASED, dict(do_lower_case=True, strip_accents=False), LOWER,
        ["made lower case, accents kept"]
    ),
    (UNCASED, dict(strip_accents=False), LOWER, ["accents kept"]),
    (
        CASED, dict(do_lower_case=True), PLAIN,
        ["warning: 50% of the vocabulary's words can then never occur"]
    ),
    (
        UNCASED, dict(do_lower_case=False), KEPT,
        ["warning: no word of the vocabulary has a capital"]
    ),
])  # fmt: skip
def test_tokenizer_config_json_decides(tmp_path, words, settings, expected, told):
    found = bert.tokeniser(folder_of(tmp_path / "bert", words, settings))
    assert split_words(TEXT, found) == expected
    assert all(text in found.note for text in told) if told else found.note == ""


@pytest.mark.parametrize("lowercase, expected", [(True, PLAIN), (False, KEPT)])
def test_tokenizer_json_decides_where_the_other_file_says_nothing(tmp_path, lowercase, expected):
    folder = as_tokenizer_json(
        folder_of(tmp_path / "bert", UNCASED + CASED[:1] * lowercase),
        lambda content: content["normalizer"].update(lowercase=lowercase),
    )
    found = bert.tokeniser(folder)
    assert split_words(TEXT, found) == expected and "as tokenizer.json says" in found.note
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(do_lower_case=not lowercase)))
    assert split_words(TEXT, bert.tokeniser(folder)) == (KEPT if lowercase else PLAIN)


def test_a_cased_bert_cuts_pieces_of_its_own_words(tmp_path):
    found = tokenise(["The Dogs in Paris"], bert.tokeniser(folder_of(tmp_path / "bert", CASED)))
    words = dict(enumerate([*SPECIAL, *CASED]))
    assert [words[piece] for piece in found.pieces] == ["The", "Dog", "##s", "[UNK]", "Paris"]


def test_the_published_vocabulary_is_uncased_without_a_word(tmp_path):
    folder = folder_of(tmp_path / "bert", [])
    shutil.copy(GOLDEN / "vocab_small.txt", folder / "vocab.txt")
    assert bert.tokeniser(folder).note == ""


def test_numbers_of_words_beyond_the_embeddings_are_refused(tmp_path):
    words = [*UNCASED, UNCASED[0], UNCASED[0]]  # a repeated word has the number of its last line
    sizes = {"model_type": "bert", "vocab_size": len(SPECIAL) + len(UNCASED)}
    with pytest.raises(
        InputError, match=f"has {sizes['vocab_size'] + 2} entries, expected at most"
    ):
        bert.tokeniser(folder_of(tmp_path / "bert", words, config=sizes))


@pytest.mark.parametrize("damage", [
    dict(
        tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="basic",
        subword_tokenizer_type="wordpiece"
    ),
    dict(normalizer=None), dict(pre_tokenizer=None),
], ids=["in Python", "no normaliser", "no pre-tokeniser"])  # fmt: skip
def test_a_tokeniser_without_a_fast_backend_is_refused(tmp_path, damage):
    folder = folder_of(tmp_path / "bert", UNCASED)
    settings = damage
    if "tokenizer_class" not in damage:
        as_tokenizer_json(folder, lambda content: content.update(damage))
        names = {
            f"{name.lower()}_token": f"[{name}]" for name in ("CLS", "SEP", "MASK", "PAD", "UNK")
        }
        settings = dict(tokenizer_class="PreTrainedTokenizerFast", **names)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        InputError, match="expected a fast BertTokenizer: give another --bert_path, or --text_enc"
    ):
        bert.tokeniser(folder)


@pytest.mark.parametrize("more", [{}, dict(architectures=["BertForMaskedLM"])])
def test_a_bert_is_known_by_its_fields(tmp_path, more):
    folder = folder_of(tmp_path / "bert", CASED, config=FIELDS | more)
    assert bert.configuration(folder).hidden_size == 24
    assert bert.model(folder, pretrained=False).config.intermediate_size == 8
    assert split_words(TEXT, bert.tokeniser(folder)) == KEPT


@pytest.mark.parametrize(
    "config",
    [
        FIELDS | dict(architectures=["RobertaModel"]),
        FIELDS | dict(embedding_size=8),
        FIELDS | dict(architectures=7),
        {name: value for name, value in FIELDS.items() if name != "type_vocab_size"},
        FIELDS | dict(model_type="roberta"),
    ],
)
def test_the_fields_of_another_model_are_refused(tmp_path, config):
    with pytest.raises(InputError, match="found a model of type .*expected 'bert'"):
        bert.configuration(folder_of(tmp_path / "bert", CASED, config=config))


def test_programs_say_once_that_a_bert_is_cased_and_read_a_config_without_model_type(
    data, tmp_path, capsys
):
    folder = data / "demo_precomp" / "bert"
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({name: config[name] for name in FIELDS} | dict(pad_token_id=0))
    )
    run, told = (
        tmp_path / "run",
        f"{folder}: capitals are kept, accents kept, as tokenizer_config.json says",
    )
    train.main([*OPTIONS, "--data_path", str(data), "--logger_name", str(run)])
    assert (run / "train.txt").read_text().count(told) == 1
    capsys.readouterr()
    evaluation.main([str(run), "--query", "A red ball"])
    assert capsys.readouterr().out.count(told) == 1
    model = load(run)
    assert capsys.readouterr().out.count(told) == 1
    upper, lower = model.encode_captions(["A DOG", "a dog"])
    assert not (upper == lower).all()
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert (
        load(run).encode_captions(["A DOG", "a dog"])[0] == upper
    ).all()  # by the tokeniser it keeps
    with pytest.raises(InputError, match="other tokeniser than the BERT that"):
        load(run, bert_path=folder)


def test_files_of_a_hub_name_decide_too(tmp_path, monkeypatch):
    cache = tmp_path / "models--some--bert"
    (cache / "snapshots").mkdir(parents=True)
    folder = folder_of(cache / "snapshots" / "abc", CASED, dict(do_lower_case=False))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = bert.tokeniser("some/bert")
    assert split_words(TEXT, found) == KEPT
    assert found.note == "some/bert: capitals are kept, accents kept, as tokenizer_config.json says"
    (folder / "tokenizer_config.json").unlink()
    assert "because no file says otherwise" in bert.tokeniser("some/bert").note
