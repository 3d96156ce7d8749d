"""Files from strangers: nothing in a checkpoint, a BERT folder or an array of results runs when it
is read."""

import ast
import builtins
import json
import os
import pickle
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from bombs import BOMBS, FORMS, PLACES, Call, objects, os_system, plant
from damage import OPTIONS, configure, contents, edit

import eval as evaluation
import train
from lib.evaluation.similarity_file import load_similarities, save_similarities
from lib.model import bert
from lib.system.errors import InputError

ROOT = Path(__file__).parents[2]
REFUSED = [
    "refused",
    "would run code when read",
    "expected tensors and plain values",
    "source that you trust",
]


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_no_bomb_goes_off_in_a_checkpoint(tmp_path, marker, refusal, bomb, form):
    path = tmp_path / "model_best.pth"
    plant(path, bomb, marker, form)
    before = contents(tmp_path)
    refusal(evaluation.main, "--model_path", path, expected=[path, *REFUSED])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_lies_a_bomb_does_not_go_off(tmp_path, marker, refusal, form, place):
    plant(tmp_path / "model_best.pth", "os.system", marker, form, place)
    refusal(
        evaluation.main, "--model_path", tmp_path, expected=[tmp_path / "model_best.pth", *REFUSED]
    )
    assert not marker.exists()


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_careless_reader_sets_every_bomb_off(tmp_path, marker, bomb):
    plant(tmp_path / "file", bomb, marker, "bare pickle")
    with open(tmp_path / "file", "rb") as file:
        pickle.load(file)
    assert marker.exists() or marker.with_name("marker.npy").exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_careless_torch_load_does_so_too(tmp_path, marker, form):
    plant(tmp_path / "file", "os.system", marker, form, "published options")
    torch.load(tmp_path / "file", weights_only=False)
    assert marker.exists()


def test_a_checkpoint_opens_no_connection(tmp_path, refusal):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        content = Call(socket.create_connection, server.getsockname())
        for form in ("zip", "legacy", "bare pickle"):
            FORMS[form](content, tmp_path / "model_best.pth")
            refusal(evaluation.main, "--model_path", tmp_path, expected=REFUSED)
        with pytest.raises(BlockingIOError):
            server.accept()
        pickle.loads(pickle.dumps(content)).close()
        server.accept()[0].close()


def test_a_program_of_torchscript_is_no_checkpoint(tmp_path, refusal):
    class Program(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    torch.jit.script(Program()).save(tmp_path / "model_best.pth")
    refusal(
        evaluation.main,
        "--model_path",
        tmp_path,
        expected=[tmp_path / "model_best.pth", "expected"],
    )


def bomb_as_weights(folder, marker):
    plant(folder / "pytorch_model.bin", "os.system", marker, "zip", "all of it")


def test_weights_of_bert_run_no_code(data, tmp_path, marker, refusal):
    folder = data / "demo_precomp" / "bert"
    bomb_as_weights(folder, marker)
    (folder / "model.safetensors").unlink()
    argv = [*OPTIONS, "--data_path", data, "--logger_name", tmp_path / "run"]
    refusal(train.main, *argv, expected=[folder, "does not load"])
    assert not marker.exists() and not (tmp_path / "run").exists()


def test_safetensors_are_read_before_a_pickle_beside_them(whole, data, marker):
    folder = data / "demo_precomp" / "bert"
    bomb_as_weights(folder, marker)
    ours, expected = (
        bert.model(place).state_dict() for place in (folder, whole / "demo_precomp" / "bert")
    )
    assert all(torch.equal(ours[name], expected[name]) for name in expected) and not marker.exists()


def test_damaged_safetensors_do_not_send_the_reader_to_the_pickle(data, marker):
    folder = data / "demo_precomp" / "bert"
    bomb_as_weights(folder, marker)
    edit("model.safetensors", lambda content: content[:5000])(folder)
    with pytest.raises(InputError, match="does not load"):
        bert.model(folder)
    assert not marker.exists()


REMOTE = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoModelForMaskedLM": "evil.Model",
    "AutoTokenizer": ["evil.Tokeniser", "evil.Tokeniser"],
}


@pytest.mark.parametrize("settings", [
    {"auto_map": REMOTE}, {"auto_map": REMOTE, "trust_remote_code": True},
    {"auto_map": REMOTE, "architectures": ["Model"], "tokenizer_class": "Tokeniser"},
    {"custom_pipelines": {"x": {"impl": "evil.Model"}}}, {"_attn_implementation": "./evil"},
], ids=["auto_map", "trust_remote_code", "other classes", "pipeline", "kernel"])  # fmt: skip
def test_a_bert_folder_runs_no_code_of_its_own(whole, data, marker, monkeypatch, settings):
    folder = data / "demo_precomp" / "bert"
    for name in (
        "evil",
        "configuration_evil",
        "modeling_evil",
        "modeling",
        "tokenization",
        "__init__",
    ):
        (folder / f"{name}.py").write_text(
            f"open({str(marker)!r}, 'w').close()\nclass Config: pass\nModel = Config\n"
        )
    configure(**settings)(folder.parent)
    tokeniser_settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokeniser_settings | settings))
    monkeypatch.chdir(folder)
    asked = []
    # whoever asks may run it
    monkeypatch.setattr(builtins, "input", lambda *prompt: asked.append(prompt) or "y")
    for read in (bert.configuration, bert.tokeniser, bert.model):
        try:
            found = read(folder)
        except InputError:
            continue
        assert type(found).__module__.startswith("transformers.")
    assert not marker.exists() and not asked


def published_results(path, npts, sims):
    content = np.empty((), dtype=object)
    content[()] = {"npts": npts, "sims": sims}
    np.save(path, content, allow_pickle=True)


SIMS = np.random.default_rng(0).standard_normal((4, 20)).astype(np.float32)


def test_results_are_written_and_read_without_pickle(tmp_path, monkeypatch):
    save_similarities(tmp_path / "results_x.npy", SIMS)
    assert b"pickle" not in (tmp_path / "results_x.npy").read_bytes()
    monkeypatch.setattr(pickle, "load", None)
    npts, sims = load_similarities(tmp_path / "results_x.npy")
    assert npts == 4 and type(npts) is int and sims.dtype == np.float32
    np.testing.assert_array_equal(sims, SIMS)


def test_published_results_are_read_only_where_pickle_is_allowed(tmp_path):
    path = tmp_path / "results_f30k.npy"
    published_results(path, 4, SIMS.astype(np.float64))
    with pytest.raises(
        InputError, match=r"results_f30k.npy: not a results file .* trust.*allow_pickle=True"
    ):
        load_similarities(path)
    npts, sims = load_similarities(path, allow_pickle=True)
    assert npts == 4 and sims.dtype == np.float32
    np.testing.assert_array_equal(sims, SIMS)


def test_results_of_strangers_run_nothing_unless_pickle_is_allowed(tmp_path, marker):
    np.save(tmp_path / "array.npy", objects(os_system(marker)), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(os_system(marker)))
    np.savez(tmp_path / "zip.npz", npts=objects(os_system(marker)), sims=SIMS)
    shutil.move(tmp_path / "zip.npz", tmp_path / "zip.npy")
    for name in ("array", "bare", "zip"):
        with pytest.raises(InputError, match=f"{name}.npy: not a results file.*allow_pickle=True"):
            load_similarities(tmp_path / f"{name}.npy")
    assert not marker.exists()
    with pytest.raises(InputError, match="array.npy: not a results file"):
        load_similarities(tmp_path / "array.npy", allow_pickle=True)
    assert marker.exists()


def plain_results(path, **entries):
    record = np.zeros(
        (),
        dtype=[(name, np.asarray(value).dtype, np.shape(value)) for name, value in entries.items()],
    )
    for name, value in entries.items():
        record[name] = value
    np.save(path, record)


NO_RESULTS = {
    "nothing": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "a folder, not a file"),
    "a pipe": (lambda path: os.mkfifo(path), "a pipe"),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
    "an empty file": (lambda path: path.write_bytes(b""), "not a results file"),
    "junk": (lambda path: path.write_bytes(b"junk" * 50), "not a results file"),
    "an array": (lambda path: np.save(path, SIMS), "not a results file"),
    "no sims": (lambda path: plain_results(path, npts=4), "not a results file"),
    "sims of one image": (
        lambda path: plain_results(path, npts=4, sims=SIMS[0]),
        r"\(20,\), expected images x captions",
    ),
    "npts in words": (lambda path: published_results(path, "many", SIMS), "not a results file"),
    "sims that are a dict": (lambda path: published_results(path, 4, {}), "not a results file"),
    "a pickled list": (lambda path: path.write_bytes(pickle.dumps([1])), "not a results file"),
}


@pytest.mark.parametrize("write, expected", NO_RESULTS.values(), ids=NO_RESULTS)
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_results_that_cannot_be_read_are_refused(tmp_path, allow_pickle, write, expected):
    write(tmp_path / "results.npy")
    with pytest.raises(InputError, match=rf"results.npy: .*{expected}"):
        load_similarities(tmp_path / "results.npy", allow_pickle)


def calls():
    """(file, name of the function, its keywords as source text) of every call in the project but in
    its tests."""
    for file in [*ROOT.glob("*.py"), *ROOT.glob("lib/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                yield str(file.relative_to(ROOT)), ast.unparse(node.func), keywords


def test_every_array_is_read_without_pickle_and_every_checkpoint_with_weights_only():
    arrays = [
        (file, keywords.get("allow_pickle"))
        for file, name, keywords in calls()
        if name == "np.load"
    ]
    reader = "lib/evaluation/similarity_file.py"  # its `load_similarities`
    assert [file for file, allowed in arrays if allowed != "False"] == [reader]
    assert {"lib/data/layout.py", "lib/system/cache.py", "lib/data/work_folder.py"} <= {
        file for file, _ in arrays
    }
    # what its caller says, and it is False unless it is said
    assert (reader, "allow_pickle") in arrays
    found = [
        (file, keywords.get("weights_only"))
        for file, name, keywords in calls()
        if name == "torch.load"
    ]
    assert found and {allowed for _, allowed in found} == {"True"}
    assert {
        keywords["trust_remote_code"]
        for _, _, keywords in calls()
        if "trust_remote_code" in keywords
    } == {"False"}


def test_nothing_else_that_runs_what_it_reads_is_called():
    running = {
        "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler",
        "os.system", "torch.jit.load", "torch.hub.load", "np.fromfile", "np.memmap",
    }  # fmt: skip
    assert not [
        (file, name)
        for file, name, _ in calls()
        if name in running
        # which starts the other benchmarks
        or name.startswith("subprocess.")
        and file != "benchmarks/gpu.py"
    ]


HUB_CODE = {
    "attention of a hub": dict(attn_implementation="kernels-community/flash-attn"),
    "attention of a hub, by its inner name": dict(_attn_implementation="someone/kernel@main"),
    "attention of a hub, deeper": dict(_attn_implementation_internal="someone/kernel"),
    "attention for every part": dict(attn_implementation={"": "someone/kernel"}),
    "attention that is not installed": dict(attn_implementation="flash_attention_2"),
    "experts of a hub": dict(
        experts_implementation="someone/kernel", _experts_implementation="someone/kernel"
    ),
    "kernels": dict(use_kernels=True, kernel_config={"RMSNorm": "someone/kernel:RMSNorm"}),
}


@pytest.mark.parametrize("settings", HUB_CODE.values(), ids=HUB_CODE)
def test_a_configuration_does_not_choose_what_computes(whole, data, monkeypatch, settings):
    folder = data / "demo_precomp"
    configure(**settings)(folder)
    monkeypatch.setattr(
        socket, "socket", lambda *arguments, **more: pytest.fail("opened a connection")
    )
    for found in (bert.model(folder / "bert"), bert.model(folder / "bert", pretrained=False)):
        assert found.config._attn_implementation in ("eager", "sdpa")
        assert not any(
            "/" in str(value)
            for name, value in vars(found.config).items()
            if "implementation" in name
        )
        assert not hasattr(found.config, "kernel_config") and not hasattr(
            found.config, "use_kernels"
        )
    ours, expected = (
        bert.model(place / "demo_precomp" / "bert").state_dict() for place in (data, whole)
    )
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
