"""Names of results say what they are of."""

import pytest

from lib.evaluation.result_names import SEEDS, ResultName, ensemble_id, escape
from lib.system import run_folder

USUAL = ResultName("f30k", "f30k", "test", "test")
OTHERS = {
    "another split": dict(split="dev"),
    "another data set": dict(dataset="mine"),
    "a data set whose name holds that of another and a split": dict(dataset="f30k_dev"),
    "another checkpoint": dict(checkpoint="last.pth"),
    "another checkpoint of another split": dict(checkpoint="last.pth", split="dev"),
    "an ensemble": dict(models="01234567"),
    "another ensemble": dict(models="89abcdef"),
    "all seeds": dict(models=SEEDS),
    "all seeds, of another split": dict(models=SEEDS, split="dev"),
    "other data": dict(data="01234567"),
    "with intervals": dict(extras="bootstrap"),
    "with intervals and more": dict(extras="bootstrap-extended"),
    "a split called as an ensemble": dict(split="ensemble_test"),
    "a split with a border": dict(split="test+dataset=mine"),
    "a split with a blank": dict(split="a b"),
    "a split with an escape": dict(split="a=20b"),
}


def test_the_usual_case_has_the_short_names():
    names = USUAL.table(), USUAL.results(), USUAL.report(), USUAL.embeddings()
    assert names == (
        "test",
        "results_f30k.npy",
        "report.html",
        "embeddings_model_best_f30k_test.npz",
    )
    coco = ResultName("coco", "coco", "testall", "testall")
    assert (coco.table(), coco.report()) == ("testall", "report.html")


@pytest.mark.parametrize("kind", ["table", "results", "report"])
def test_no_two_things_have_the_same_name(kind):
    others = [
        changes for changes in OTHERS.values() if kind != "results" or "extras" not in changes
    ]
    names = [getattr(USUAL._replace(**changes), kind)() for changes in ({}, *others)]
    assert len(set(names)) == len(names)
    for name in names:  # names that the manifest takes
        assert run_folder.OWN_NAMES.fullmatch(name if kind != "table" else f"{name}.md"), name


def test_names_say_what_is_different():
    other = USUAL._replace(split="dev", dataset="coco", checkpoint="last.pth")
    assert other.table() == "dev+dataset=coco+checkpoint=last.pth"
    assert other.results() == "results_coco+split=dev+checkpoint=last.pth.npy"
    assert other.report() == "report_dev+dataset=coco+checkpoint=last.pth.html"


def test_characters_that_files_may_not_have_are_escaped_each_differently():
    texts = ["a/b", "a b", "a=b", "a=20b", "a\nb", "../x", "é", "\udcff", "a+b", "a|b", ""]
    names = [escape(text) for text in texts]
    assert len(set(names)) == len(names) and not set("".join(names)) & set("/\n+|")
    assert escape("é_-. ") == "é_-. " and escape("a/b") == "a=2fb"


def test_an_ensemble_is_named_by_its_members_in_any_order():
    members = ["runs/a/model_best.pth", "runs/b/model_best.pth"]
    assert ensemble_id(members, "runs/a") == ensemble_id(members[::-1], "runs/a")
    assert ensemble_id(members, "runs/a") == ensemble_id(
        [f"/x/{name}" for name in members], "/x/runs/a"
    )
    assert ensemble_id(members, "runs/a") != ensemble_id(
        [*members, "runs/c/model_best.pth"], "runs/a"
    )
