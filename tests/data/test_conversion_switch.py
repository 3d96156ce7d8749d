"""Conversions that are stopped while their files are moved, and damaged lists of these files."""

import json
import os
import shutil
import signal

import pytest
from kills import Programs
from test_check import run
from test_conversion import SETUP, arguments, content, converted, is_refused, new_inputs, statement

from lib.data import conversion_record, layout


@pytest.fixture(scope="module")
def programs():
    with Programs(SETUP) as programs:
        yield programs


@pytest.fixture
def inputs(tmp_path):
    return new_inputs(tmp_path / "inputs")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "mine_precomp"


@pytest.fixture
def kill_in_the_switch(programs, inputs, out, tmp_path):
    """A function that converts and is killed `number` operations after the first file begins to
    move."""

    def kill(number):
        trial = tmp_path / "trial_precomp"
        operations = programs.run(statement(inputs, trial), trial).operations
        first = operations.index("os.rename .conversion/test_caps.txt test_caps.txt")
        ended = programs.run(statement(inputs, out), out, first + number)
        assert (
            ended.status == -signal.SIGKILL
            and (out / layout.SWITCH).exists()
            and 0 < len(content(out)) < 8
        )

    return kill


def test_another_conversion_ends_the_switch_before_it_begins(
    inputs, out, tmp_path, kill_in_the_switch, capsys
):
    expected = converted(inputs, tmp_path / "whole_precomp")
    kill_in_the_switch(3)
    other = new_inputs(tmp_path / "other", 3000)
    capsys.readouterr()
    assert run(*arguments(other, out)) == 2
    assert (
        "mine_precomp: found test_boxes.npy, test_caps.txt, " in capsys.readouterr().err
        and content(out) == expected
    )
    assert run(*arguments(other, out, "--overwrite")) == 0
    assert (out / "test_ids.txt").read_text() == "3001\n3004\n"


def test_the_switch_ends_without_the_inputs(inputs, out, tmp_path, kill_in_the_switch, capsys):
    expected = converted(inputs, tmp_path / "whole_precomp")
    kill_in_the_switch(2)
    (inputs / "a.tsv").unlink()
    assert run(*arguments(inputs, out)) == 2
    assert "a.tsv: no such file" in capsys.readouterr().err and content(out) == expected


def switch_to(change):
    def damage(out):
        content = json.loads((out / layout.SWITCH).read_text())["content"]
        change(content)
        conversion_record.write_record(out / layout.SWITCH, **content)

    return damage


def switch_with(left, right):
    def damage(out):
        text = (out / layout.SWITCH).read_text()
        assert left in text
        (out / layout.SWITCH).write_text(text.replace(left, right, 1))

    return damage


DAMAGED_SWITCHES = {
    "not JSON": (
        lambda out: (out / layout.SWITCH).write_text("{"),
        "damaged (found Expecting",
    ),
    "a list": (
        lambda out: (out / layout.SWITCH).write_text("[]"),
        "found contents that convert did not write",
    ),
    "a name that is lost": (
        switch_with('"train_caps_images.txt": null', '"x": null'),
        "found contents that convert",
    ),
    "another format": (
        switch_to(lambda content: content.update(format="x")),
        "found a record of another version",
    ),
    "a number for files": (
        switch_to(lambda content: content.update(files=7)),
        "found names of files that convert does not",
    ),
    "a strange name": (
        switch_to(lambda content: content["files"].update({"../precious": None})),
        "found names of files that convert does not",
    ),
    "a link": (
        lambda out: [
            (out / layout.SWITCH).rename(out / "away"),
            (out / layout.SWITCH).symlink_to("away"),
        ],
        "found a link",
    ),
    "a folder": (
        lambda out: [(out / layout.SWITCH).unlink(), (out / layout.SWITCH).mkdir()],
        "a folder, not a file",
    ),
    "a pipe": (
        lambda out: [(out / layout.SWITCH).unlink(), os.mkfifo(out / layout.SWITCH)],
        "found a pipe",
    ),
    "a lost file": (
        lambda out: (out / layout.WORK / "train_num_regions.npy").unlink(),
        "train_num_regions.npy: the file that convert was moving is missing or was changed",
    ),
}


@pytest.mark.parametrize("damage, expected", DAMAGED_SWITCHES.values(), ids=DAMAGED_SWITCHES)
def test_a_damaged_switch_is_refused_and_nothing_is_removed(
    inputs, out, tmp_path, kill_in_the_switch, damage, expected, capsys
):
    (tmp_path / "precious").write_text("mine")
    kill_in_the_switch(2)
    damage(out)
    before = {path for path in tmp_path.rglob("*")}
    for more in ([], ["--overwrite"]):
        assert run(*arguments(inputs, out, *more)) == 2
        error = capsys.readouterr().err
        assert (
            expected in error
            and f"remove {out} and convert again" in error
            and error.count("\n") == 1
        )
        assert is_refused(out)
    assert {path.name for path in before} - {path.name for path in tmp_path.rglob("*")} == set()
    shutil.rmtree(out)
    assert run(*arguments(inputs, out)) == 0
