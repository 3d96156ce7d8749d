"""benchmarks.gpu: every section's command is one that its script accepts, and all of them run, with
small sizes, on a CPU."""

import importlib
import io
import sys
import time
from contextlib import redirect_stdout

import pytest
from published import make_model, make_objective, small_bert

from benchmarks import common, gpu, profile_step

SCRIPTS = {
    title: commands for title, commands in gpu.SECTIONS.items() if "pytest" not in commands[0]
}


class Parsed(Exception):
    """Raised in place of a measurement."""


@pytest.mark.parametrize("title", SCRIPTS)
def test_a_section_has_a_command_that_its_script_accepts(title, monkeypatch):
    def parse(*arguments, **options):
        parsed(*arguments, **options)
        raise Parsed

    parsed = common.arguments
    monkeypatch.setattr(common, "arguments", parse)
    for command in filter(None, SCRIPTS[title]):
        name, *options = command.split()
        monkeypatch.setattr(sys, "argv", [name, *options])
        with pytest.raises(Parsed):
            importlib.import_module(name).main()


def in_this_process(command, deadline):
    """What `gpu.run` returns, without the seconds that another process needs to begin."""
    name, *options = command
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [name, *options, "--device", "cpu", "--rounds", "1"])
        importlib.import_module(name).main()
    return printed.getvalue()


def tiny_bert():
    return small_bert(hidden_size=48, intermediate_size=32)


def tiny_model(device):
    sizes = dict(embed_size=64, nhead=4)
    model = make_model(tiny_bert(), common.REGION_DIM, **sizes)
    return model.train(), make_objective(**sizes).train()


def test_small_sizes_run_on_a_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "bert_base", tiny_bert)
    monkeypatch.setattr(common, "published_model", tiny_model)
    monkeypatch.setattr(profile_step, "STEPS", 1)
    monkeypatch.setattr(gpu, "run", in_this_process)
    file = tmp_path / "found.md"
    command = ["gpu", "--small", "--out", str(file), "--commit", "abc", "--sections", *SCRIPTS]
    monkeypatch.setattr(sys, "argv", command)
    gpu.main()
    written = file.read_text()
    expected = [title for title, (_, small) in SCRIPTS.items() if small]
    assert [line[3:] for line in written.splitlines() if line.startswith("## ")] == expected
    assert "commit abc" in written and "**" not in written
    for section in written.split("\n## ")[1:]:
        assert "\n|---" in section, section  # a table


def test_a_section_that_fails_or_has_no_time_left_says_so():
    now = time.monotonic()
    assert "**Failed with exit status 1.**" in gpu.run(["benchmarks.missing"], now + 300)
    assert "**Stopped after" in gpu.run(["benchmarks.step"], now - 1)
