"""Runs and evaluations that are killed before each of their file operations: nothing is lost,
all of them can go on."""

import json
import re
import shutil
import signal
from typing import NamedTuple

import pytest
import torch
from damage import contents
from kills import Programs
from test_programs import same, scalars

from lib.data import demo
from lib.model import checkpoint
from lib.system import files
from lib.system.run_folder import RunFolder

# what the first step would import
SETUP = "import torch._dynamo\nimport train\nimport eval as evaluation"
OPTIONS = (
    "--dataset demo --num_epochs 1 --batch_size 20 --embed_size 16 --nhead 2 --workers 0 --warmup "
    "1 --log_step 2 --text_encoder bigru --word_dim 8 --min_word_count 1 --val_step 2 --save_step "
    "2 --learning_rate 0.01"
).split()
PARTS = ("model", "objective", "optimizer", "epoch", "step", "best_rsum")  # of a checkpoint
FEW = [*range(3, 36, 8), *range(40, 400, 23)]  # of the operations; the first ones decide


@pytest.fixture(scope="module")
def programs():
    with Programs(SETUP) as found:
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    demo.build(folder / "demo_precomp", sizes={"train": 12, "dev": 4, "test": 4})
    return folder


class Place(NamedTuple):
    """Where a scenario happens, and what trains there."""

    programs: Programs
    data: object
    root: object

    def train(self, *more, seed=0, kill_at=None):
        argv = [
            *OPTIONS,
            "--data_path",
            self.data,
            "--logger_name",
            self.root / "run",
            "--seed",
            seed,
            *more,
        ]
        return self.run(f"train.main({list(map(str, argv))!r})", kill_at)

    def evaluate(self, *more, kill_at=None):
        argv = [self.root / "run", "--data_path", self.data, "--save_results", 1, *more]
        return self.run(f"evaluation.main({list(map(str, argv))!r})", kill_at)

    def run(self, statement, kill_at=None):
        return self.programs.run(statement, self.root, kill_at)


@pytest.fixture
def place(programs, data, tmp_path):
    return Place(programs, data, tmp_path / "place")


def succeed(ended):
    assert ended.status == 0, ended.output
    return ended


def killed_trials(place, template, program, numbers):
    """Run `program(kill_at=...)` on a copy of what `template` holds, once for each number;
    yields what was killed."""
    for number in numbers:
        shutil.rmtree(place.root, ignore_errors=True)
        shutil.copytree(template, place.root)
        ended = program(kill_at=number)
        if ended.status != -signal.SIGKILL:
            return
        yield ended.operation


def outcome(root):
    """What a finished run is, without times and random names: by file,
    for every folder in `root`."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name[0] != "."):
        name = str(path.relative_to(root))
        if path.suffix == ".pth":
            content = torch.load(path, weights_only=True)
            found[name] = {key: content[key] for key in PARTS}
        elif "tfevents" in name:
            found[str(path.parent.relative_to(root)) + "/curves"] = curves(path.parent)
        elif path.name == "run_manifest.json":
            content = RunFolder(path.parent).read()
            own = {re.sub(r"tfevents\..*", "tfevents", name) for name in content["files"]}
            found[name] = own, content["discarded"], content["run"] and content["run"]["saved"]
        elif path.name == "metrics.json":
            found[name] = {
                key: entry["scores"] for key, entry in json.loads(path.read_text()).items()
            }
        elif path.name != "Parameters.txt":  # --resume and --overwrite stand there
            found[name] = path.read_bytes()
    assert not [left for folder in root.rglob("") for left in files.find_temporaries(folder)]
    return found


def curves(folder):
    found = scalars(folder)
    return {
        name: found[name] if "time" not in name else [step for step, _ in found[name]]
        for name in found
    }


def check_same(place, expected):
    found = outcome(place.root)
    assert found.keys() == expected.keys()
    for name in expected:
        assert same(found[name], expected[name]), name


def own_files(folder):
    """Contents of a run folder but for locks and what is half written."""
    return {name: content for name, content in contents(folder).items() if name.name[0] != "."}


@pytest.fixture(scope="module")
def templates(programs, data, tmp_path_factory):
    """Folders that scenarios begin with: nothing, a finished run of another seed, a stopped one."""
    root = tmp_path_factory.mktemp("templates")
    (root / "empty").mkdir()
    succeed(Place(programs, data, root / "old").train(seed=1))
    two = Place(programs, data, root / "two")
    succeed(two.train("--model_name", two.root / "models", seed=1))
    stopped = Place(programs, data, root / "stopped")
    operations = succeed(stopped.train()).operations
    shutil.rmtree(stopped.root)
    last = [number for number, name in enumerate(operations) if name.endswith(" run/last.pth")][-1]
    assert stopped.train(kill_at=last).status == -signal.SIGKILL
    assert torch.load(stopped.root / "run" / "last.pth", weights_only=True)["step"] == 2
    assert files.find_temporaries(stopped.root / "run")
    shutil.copytree(
        root / "stopped" / "run", root / "elsewhere" / "first", ignore=shutil.ignore_patterns(".*")
    )
    return root


ALL = pytest.mark.parametrize(
    "numbers",
    [pytest.param(FEW, id="some"), pytest.param(range(10**6), id="all", marks=pytest.mark.long)],
)


def undisturbed(place, template, program):
    """The outcome of a program on a copy of what `template` holds."""
    shutil.copytree(template, place.root)
    succeed(program())
    return outcome(place.root)


@ALL
def test_a_new_run_killed_anywhere_goes_on(place, templates, numbers):
    expected = undisturbed(place, templates / "empty", place.train)
    for operation in killed_trials(place, templates / "empty", place.train, numbers):
        has_saved = (place.root / "run" / "last.pth").exists()
        again = place.train(kill_at=0) if has_saved else None
        assert (
            not again or again.status == 2 and "the folder already contains a run" in again.output
        ), operation
        succeed(place.train("--resume", "auto"))
        check_same(place, expected)


def test_a_new_run_killed_before_it_saved_can_be_repeated(place, templates):
    expected = undisturbed(place, templates / "empty", place.train)
    for _ in killed_trials(place, templates / "empty", place.train, [2, 8, 13, 20, 30, 44]):
        assert not (place.root / "run" / "last.pth").exists()
        succeed(place.train())
        check_same(place, expected)


@ALL
@pytest.mark.parametrize("kind", ["old", "two"])
def test_replacing_a_run_is_one_decision(place, templates, numbers, kind):
    """Killed anywhere, there is the old run whole, or the new one's beginning,
    from which --resume auto resumes."""
    more = ["--model_name", place.root / "models"] if kind == "two" else []

    def replace(kill_at=None):
        return place.train(*more, "--overwrite", "1", kill_at=kill_at)

    template, models = templates / kind, "models" if kind == "two" else "run"
    expected = undisturbed(place, template, replace)
    before, old_id = own_files(template), RunFolder(template / models).read()["run"]["id"]
    decisions = set()
    for operation in killed_trials(place, template, replace, numbers):
        manifest = RunFolder(place.root / models).read()
        is_old = manifest["run"]["id"] == old_id
        decisions.add(is_old)
        if is_old:
            assert own_files(place.root) == before, operation
            succeed(replace())
        else:
            last = place.root / models / "last.pth"
            if last.exists() and "last.pth" not in manifest["discarded"]:
                assert torch.load(last, weights_only=True)["options"]["seed"] == 0
            succeed(place.train(*more, "--resume", "auto"))
        check_same(place, expected)
    assert decisions == {True, False}


@pytest.mark.parametrize("kind", ["old", "two"])
def test_a_replaced_run_is_read_no_more(place, templates, kind):
    """Killed right after the decision, while its files are still there."""
    more = ["--model_name", place.root / "models"] if kind == "two" else []
    models = place.root / ("models" if kind == "two" else "run")
    replace = [*more, "--overwrite", "1"]
    shutil.copytree(templates / kind, place.root)
    operations = succeed(place.train(*replace)).operations
    decision = next(
        number for number, name in enumerate(operations) if name.startswith("os.remove")
    )
    for _ in killed_trials(
        place, templates / kind, lambda kill_at: place.train(*replace, kill_at=kill_at), [decision]
    ):
        assert (models / "last.pth").exists() and (models / "model_best.pth").exists()
        with pytest.raises(ValueError, match="model_best.pth: no such checkpoint"):
            checkpoint.find(models)
        succeed(place.train(*more))  # without --overwrite: it was decided
        assert torch.load(models / "last.pth", weights_only=True)["options"]["seed"] == 0


@ALL
def test_a_resumed_run_killed_anywhere_goes_on(place, templates, numbers):
    def resume(kill_at=None):
        return place.train("--resume", "auto", kill_at=kill_at)

    expected = undisturbed(place, templates / "stopped", resume)
    shutil.rmtree(place.root)
    whole = undisturbed(place, templates / "empty", place.train)
    here, there = (str(folder / "run").encode() for folder in (place.root, templates / "stopped"))
    # where the best epoch is kept
    whole["run/train.txt"] = whole["run/train.txt"].replace(here, there)
    assert [name for name in whole if not same(whole[name], expected[name])] == []
    for _ in killed_trials(place, templates / "stopped", resume, numbers):
        succeed(resume())
        check_same(place, expected)


@ALL
def test_a_run_that_goes_on_elsewhere_killed_anywhere_goes_on_there(place, templates, numbers):
    """Before it has saved, the same command does so too."""
    command = ["--resume", place.root / "first"]

    def resume(kill_at=None):
        return place.train(*command, kill_at=kill_at)

    expected = undisturbed(place, templates / "elsewhere", resume)
    before = own_files(templates / "elsewhere" / "first")
    repeated = set()
    for number, _ in enumerate(killed_trials(place, templates / "elsewhere", resume, numbers)):
        has_saved = (place.root / "run" / "last.pth").exists()
        has_begun = (place.root / "run" / "run_manifest.json").exists()
        repeats = not has_saved and (number % 2 == 0 or not has_begun)
        repeated.add(repeats)
        succeed(resume() if repeats else place.train("--resume", "auto"))
        assert own_files(place.root / "first") == before
        check_same(place, expected)
    assert repeated == {True, False}


@ALL
def test_an_evaluation_killed_anywhere_is_repeated(place, templates, numbers):
    def evaluate(kill_at=None):
        return place.evaluate("--split", "dev", kill_at=kill_at)

    expected = undisturbed(place, templates / "old", evaluate)
    run = {
        name: content
        for name, content in contents(templates / "old").items()
        if name.suffix in (".pth", ".txt")
    }
    for _ in killed_trials(
        place, templates / "old", evaluate, range(0, 40, 3) if numbers is FEW else numbers
    ):
        assert run.items() <= contents(place.root).items()
        assert (place.root / "run" / "test.md").read_bytes() == (
            templates / "old" / "run" / "test.md"
        ).read_bytes()
        succeed(evaluate())
        check_same(place, expected)
