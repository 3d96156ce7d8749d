"""The list of planted mistakes fits the code: each is found where it says,
and the tests it names are there."""

import ast

import mutants
import pytest
from mutants import MUTANTS, ROOT


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_to_be_planted_once(name):
    mutant = MUTANTS[name]
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    ast.parse(text.replace(mutant.old, mutant.new))
    assert mutant.tests
    for test in mutant.tests.split():
        file, _, function = test.partition("::")
        assert not function or f"def {function}(" in (ROOT / "tests" / file).read_text()


def test_a_mistake_that_no_test_sees_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "tests").mkdir()
    (tmp_path / "made.py").write_text("ONE, TWO = 1, 2\n")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (tmp_path / "tests" / "test_one.py").write_text(
        "from made import ONE\n\n\ndef test():\n    assert ONE == 1\n"
    )
    mutants.PROCESSES.set_forkserver_preload(["pytest"])  # nothing here needs torch
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(
        mutants,
        "MUTANTS",
        {
            "one": mutants.Mutant("made.py", "1,", "3,", "test_one.py"),
            "two": mutants.Mutant("made.py", ", 2", ", 3", "test_one.py"),
            "gone": mutants.Mutant("made.py", "THREE", "FOUR", "test_one.py"),
        },
    )
    assert mutants.main([]) == 1
    printed = capsys.readouterr().out
    assert "seen: one" in printed and "SURVIVED: two" in printed and "NOT PLANTED: gone" in printed
    assert printed.endswith("1 of 3 seen\n  two\n  gone\n")
    assert mutants.main(["--only", "one"]) == 0
    assert (tmp_path / "made.py").read_text() == "ONE, TWO = 1, 2\n"
