"""The documentation: links lead somewhere, options exist, and the code that a page names is there."""

import re
from pathlib import Path

import pytest

import arguments
import graph_lib
from benchmarks import ablation
from lib import check, convert
from lib.options import Parser

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHERS = {  # options of torchrun, pip, tensorboard and argparse
    "--nproc_per_node", "--nnodes", "--rdzv_endpoint", "--max-restarts", "--index-url", "--logdir", "--help",
}  # fmt: skip


def folder_of(page):
    """Where the links of a page start; the draft will stand at the top."""
    return ROOT if page.name == "README-draft.md" else page.parent


def options():
    training = arguments.training_parser()
    graph_lib.add_options(training)
    commands = Parser(prog="lib.dataset").add_subparsers()
    check.add_command(commands)
    convert.add_command(commands)
    parsers = training, arguments.evaluation_parser(), ablation.parser(), *commands.choices.values()
    return {name for parser in parsers for action in parser._actions for name in action.option_strings} | OTHERS


def test_links_lead_to_files():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    assert len(links) > 100
    assert [link for page, link in links if "://" not in link and not (folder_of(page) / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page):
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text()))
    assert sorted(named - options()) == []


def test_the_code_that_the_method_names_is_where_it_says():
    rows = re.findall(r"\[\S+\]\(\.\./(\S+\.py)\) \| (`.+`) \|$", (ROOT / "docs" / "method.md").read_text(), re.M)
    assert len(rows) > 20
    for file, names in rows:
        code = (ROOT / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"^\s*(?:def|class) {name.split('.')[-1]}\b", code, re.M), (file, name)


def test_the_code_page_lists_every_module():
    text = (ROOT / "docs" / "code.md").read_text()
    modules = [path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.py"), *ROOT.glob("lib/**/*.py")]]
    assert [name for name in modules if not name.endswith("__init__.py") and f"[`{name}`]" not in text] == []
