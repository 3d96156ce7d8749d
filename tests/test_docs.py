"""The documentation: links lead somewhere, options exist,
and the code that a page names is there."""

import ast
import re
from pathlib import Path

import pytest

import arguments
from benchmarks import ablation
from lib.data import check, convert, extract
from lib.system.options import Parser

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    *sorted((ROOT / "tests").rglob("*.md")),
    *(ROOT / name for name in ("data/README.md", "runs/README.md")),
]
OTHERS = {  # options of torchrun, pip, tensorboard and argparse
    "--nproc_per_node", "--nnodes", "--rdzv_endpoint", "--no-python", "--no-deps", "--max-restarts",
    "--index-url", "--logdir", "--help",
}  # fmt: skip


def options():
    training = arguments.training_parser()
    commands = Parser(prog="lib.data").add_subparsers()
    check.add_command(commands)
    convert.add_command(commands)
    extract.add_command(commands)
    parsers = training, arguments.evaluation_parser(), ablation.parser(), *commands.choices.values()
    named = {
        name for parser in parsers for action in parser._actions for name in action.option_strings
    }
    return named | benchmark_options() | OTHERS


def benchmark_options():
    """The keywords of every call of benchmarks.common.arguments, and what it adds itself."""
    calls = [
        node
        for file in (ROOT / "benchmarks").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "common.arguments"
    ]
    assert len(calls) > 5
    named = {keyword.arg for call in calls for keyword in call.keywords}
    return {f"--{name}" for name in named | {"device", "rounds"}}


def anchors(page):
    """What links to the headings of a page look like, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_links_lead_to_files_and_headings():
    links = [
        (page, *link)
        for page in PAGES
        for link in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text())
    ]
    links = [
        (page, page.parent / file if file else page, anchor)
        for page, file, anchor in links
        if "://" not in file
    ]
    assert len(links) > 100 and sum(bool(anchor) for _, _, anchor in links) > 5
    broken = [
        link
        for link in links
        if not link[1].exists() or (link[2] and link[2] not in anchors(link[1]))
    ]
    assert broken == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_exist(page):
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text()))
    # extending.md adds one, as an example
    example = {"--connect"} if page.name == "extending.md" else set()
    assert named - options() == example


def test_the_code_that_the_method_names_is_where_it_says():
    rows = re.findall(
        r"\[\S+\]\(\.\./(\S+\.py)\) \| (`.+`) \|$", (ROOT / "docs" / "method.md").read_text(), re.M
    )
    assert len(rows) > 20
    for file, names in rows:
        code = (ROOT / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"^\s*(?:def|class) {name.split('.')[-1]}\b", code, re.M), (
                file,
                name,
            )


def hunks(recipe):
    """(file, the lines that a hunk expects, the lines that it leaves) of a diff."""
    for part in re.split(r"^--- a/", recipe, flags=re.M)[1:]:
        file, *bodies = re.split(r"^@@.*\n", part, flags=re.M)
        for body in bodies:
            lines = body.splitlines()
            before = [line[1:] for line in lines if not line.startswith("+")]
            yield file.splitlines()[0], before, [x[1:] for x in lines if not x.startswith("-")]


def test_the_recipes_apply_to_the_code():
    """Every hunk of docs/extending.md finds its lines once; a recipe is of the present code."""
    recipes = re.findall(r"```diff\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.S)
    found = [hunk for recipe in recipes for hunk in hunks(recipe)]
    assert len(recipes) == 4 and len(found) > 15
    for file, before, after in found:
        text = (ROOT / file).read_text()
        found_once = [text.count("\n".join(lines)) == 1 for lines in (before, after)]
        assert any(found_once), f"{file}: expected once:\n" + "\n".join(before)
        assert before != after


def test_the_recipes_are_diffs_that_git_applies():
    """The counts in the head of each hunk are those of its lines."""
    recipes = re.findall(r"```diff\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.S)
    for head, body in re.findall(r"^@@ (.*?) @@.*\n((?:[ +-].*\n|\n)*)", "".join(recipes), re.M):
        lines = re.split(r"^--- a/", body, flags=re.M)[0].splitlines()
        counts = [sum(not line.startswith(sign) for line in lines) for sign in "+-"]
        told = re.fullmatch(r"-\d+,(\d+) \+\d+,(\d+)", head)
        assert told and [int(told[1]), int(told[2])] == counts, head


def test_the_reading_order_has_the_lengths_of_the_files():
    text = (ROOT / "docs/code.md").read_text()
    rows = re.findall(r"\| \[`([^`]+)`\]\([^)]*\) \| (\d+) \|", text)
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name, _ in rows}
    assert len(rows) > 5
    for name, told in rows:
        assert abs(int(told) - lengths[name]) <= 20, f"{name} has {lengths[name]} lines"
    whole = int(re.search(r"about ([\d,]+) lines", text)[1].replace(",", ""))
    assert abs(whole - sum(lengths.values())) <= 100


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_tables_have_heads_and_even_rows(page):
    """A blank line inside a table ends it: the rows below would be printed as text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        rows = [re.sub(r"`[^`]*`|\\\|", "", row) for row in table.splitlines()]
        assert len(rows) > 1 and re.fullmatch(r"(\|:?-+:?)+\|", rows[1]), table[:200]
        assert len({row.count("|") for row in rows}) == 1, table[:200]
