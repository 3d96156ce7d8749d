"""The house: imports run downward, evaluation never meets the graph, no option is idle,
docs/ names all."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest

import arguments

ROOT = Path(__file__).parent.parent
ORDER = (
    "lib.system.start", "lib.system.console", "lib.system.errors", "lib.system.devices",
    "lib.system.distributed", "lib.system.files", "lib.system.cache", "lib.system.run_folder",
    "lib.system.interrupt", "lib.system.options", "lib.system.unpickle", "lib.system.images",
    "lib.evaluation.caption_order", "lib.evaluation.similarity", "lib.evaluation.tiles",
    "lib.evaluation.metrics", "lib.evaluation.encoding",
    "lib.evaluation.result_names",
    "lib.evaluation.table", "lib.evaluation.facts", "lib.evaluation.result_folder",
    "lib.evaluation.similarity_file", "lib.evaluation.report", "lib.evaluation.bootstrap",
    "lib.evaluation.extended",
    "lib.data.fingerprint", "lib.data.captions", "lib.data.vocabulary", "lib.data.options",
    "lib.data.layout", "lib.data.demo_settings", "lib.data.demo_scenes", "lib.data.demo_captions",
    "lib.data.demo_regions", "lib.data.demo_bert", "lib.data.demo", "lib.data.region_file",
    "lib.data.repeats", "lib.data.pairing", "lib.data.caption_forms", "lib.data.check_report",
    "lib.data.feature_checks", "lib.data.check", "lib.data.element_type",
    "lib.data.tsv_columns", "lib.data.tsv_cells",
    "lib.data.tsv", "lib.data.tsv_image",
    "lib.data.karpathy", "lib.data.matching", "lib.data.conversion_record",
    "lib.data.work_folder", "lib.data.conversion", "lib.data.conversion_summary",
    "lib.data.convert", "lib.data.extraction_record", "lib.data.picture_files",
    "lib.data.picture_captions", "lib.data.picture_splits", "lib.data.efficientnet",
    "lib.data.vision_model", "lib.data.extractor", "lib.data.extraction_summary",
    "lib.data.extract", "lib.data.__main__", "lib.data.sampling", "lib.data.conventions",
    "lib.data.dataset", "lib.data.batches",
    "lib.model.options", "lib.model.pooling", "lib.model.packing", "lib.model.matches",
    "lib.model.pair_scores", "lib.model.cross_attention", "lib.model.naaf", "lib.model.casting",
    "lib.model.saved_bert", "lib.model.casing", "lib.model.packaged_bert", "lib.model.bert",
    "lib.model.splits",
    "lib.model.fragment", "lib.model.state", "lib.model.state_dicts", "lib.model.sizes",
    "lib.model.published", "lib.model.checkpoint", "lib.model.pretrained",
    "lib.model.encoders", "lib.model.similarity", "lib.model.network", "lib.objective.options",
    "lib.objective.losses", "lib.objective.auxiliary", "lib.objective.relation",
    "graph_lib",
    "lib.training.presets", "lib.training.schedule", "lib.training.options",
    "lib.training.option_checks", "lib.training.run_parts", "lib.training.optim",
    "lib.training.averaging", "lib.training.logs", "lib.training.validations",
    "lib.training.reporting", "lib.training.legacy_files", "lib.training.run_start",
    "lib.training.run_state", "lib.training.engine", "lib.training.loop", "lib.results.trained",
    "lib.results.search", "lib.results.export", "lib.results.options", "lib.results.pictures",
    "lib.results.matches", "lib.results.charts", "lib.results.gallery",
    "lib.results.html_report", "lib.results.runs", "lib.results.searcher",
    "lib.results.search_page", "lib.results.search_server", "lib.results.evaluate",
    "lib.dataset", "arguments", "eval", "train", "lib.programs",
)  # fmt: skip


IMPORTS = ast.Import, ast.ImportFrom


def path_of(module):
    return ROOT / (module.replace(".", "/") + ".py")


@functools.cache
def text_of(module):
    return path_of(module).read_text()


@functools.cache
def tree_of(module):
    return ast.parse(text_of(module))


@functools.cache
def statements(module):
    return [node for node in ast.walk(tree_of(module)) if isinstance(node, IMPORTS)]


def named(node, module):
    """What a statement of a module imports, by absolute names: modules, and whatever they hold."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    package, name = module.rpartition(".")[0], "." * node.level + (node.module or "")
    source = importlib.util.resolve_name(name, package)
    return {source} | {f"{source}.{alias.name}" for alias in node.names}


def imports(module):
    """The modules of this project that a module imports, anywhere in its file."""
    return {name for node in statements(module) for name in named(node, module)} & set(ORDER)


def test_every_module_has_its_place_in_the_order():
    files = [*ROOT.glob("*.py"), *ROOT.glob("lib/**/*.py")]
    names = [
        file.relative_to(ROOT).with_suffix("").as_posix()
        for file in files
        if file.name != "__init__.py"
    ]
    modules = {name.replace("/", ".") for name in names}
    assert modules == set(ORDER) and len(ORDER) == len(modules)


def test_packages_follow_one_another():
    """With the order of modules: a package imports from those before it alone,
    and graph_lib.py stands among them."""
    packages = [module.rpartition(".")[0] if module.count(".") == 2 else module for module in ORDER]
    changes = [name for before, name in zip(["", *packages], packages) if name != before]
    assert changes == [
        "lib.system", "lib.evaluation", "lib.data", "lib.model", "lib.objective", "graph_lib",
        "lib.training", "lib.results", "lib.dataset", "arguments", "eval", "train", "lib.programs",
    ]  # fmt: skip


def test_packages_themselves_import_nothing_but_load():
    packages = [path.parent.name for path in ROOT.glob("lib/*/__init__.py")]
    found = {name: imports(f"lib.{name}.__init__") for name in packages}
    assert {name: names for name, names in found.items() if names} == {
        "model": {"lib.results.trained"}
    }


def test_the_model_package_gives_load_and_nothing_else_from_above():
    model = importlib.import_module("lib.model")
    assert model.load is importlib.import_module("lib.results.trained").load
    with pytest.raises(ImportError, match="Trained"):
        from lib.model import Trained  # noqa: F401


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_downward(module):
    above = ORDER[: ORDER.index(module)]
    assert imports(module) <= set(above)


FILES_IN_LIB = [file.relative_to(ROOT).with_suffix("") for file in sorted(ROOT.glob("lib/**/*.py"))]


@pytest.mark.parametrize("module", [".".join(file.parts) for file in FILES_IN_LIB])
def test_lib_does_not_know_its_name(module):
    """An installation calls it hrem, so imports inside are relative; training alone has others."""
    absolute = [node for node in statements(module) if not getattr(node, "level", 0)]
    outside = {name.split(".")[0] for node in absolute for name in named(node, module)}
    assert "hrem" not in outside and "lib" not in outside
    at_the_top = outside & {file.stem for file in ROOT.glob("*.py")}
    assert at_the_top <= ({"graph_lib"} if module.startswith("lib.training.") else set())


def test_evaluation_never_reaches_the_graph():
    reached, waiting = set(), ["eval"]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += imports(module) - reached
    assert "lib.model.network" in reached
    assert not reached & {
        "graph_lib",
        "lib.objective.relation",
        "lib.objective.losses",
        "lib.training.optim",
        "train",
    }


def test_one_file_knows_tensorboard_logger():
    found = [module for module in ORDER if "tensorboard_logger import" in text_of(module)]
    assert found == ["lib.training.logs"]


def training_options():
    parser = arguments.training_parser()
    return {action.dest for action in parser._actions} - {"help"}


def evaluation_options():
    return {action.dest for action in arguments.evaluation_parser()._actions} - {"help"}


@pytest.mark.parametrize("option", sorted(training_options() | evaluation_options()))
def test_every_option_is_read(option):
    readers = (
        "graph_lib",
        "lib.model.network",
        "lib.model.similarity",
        *(module for module in ORDER if module.startswith("lib.training.run_")),
    )
    readers += ("lib.training.loop", "lib.training.reporting", "arguments", "train")
    readers += ("lib.training.option_checks", "lib.results.options")
    readers += ("lib.results.runs", "lib.results.evaluate")
    source = "".join(map(text_of, readers))
    assert re.search(
        rf'options\.{option}\b(?! =)|options\["{option}"\]|\(options, "{option}"', source
    )


def test_the_published_options_keep_their_defaults():
    parser = arguments.training_parser()
    options = vars(arguments.parse_training(parser, []))
    published = dict(
        data_path="data/", dataset="f30k", margin=0.2, num_epochs=30, batch_size=128,
        embed_size=1024, grad_clip=2.0, learning_rate=5e-4, workers=8, log_step=200,
        logger_name="runs/test", model_name="runs/test", max_violation=False, no_imgnorm=False,
        no_txtnorm=False, vse_mean_warmup_epochs=1, multi_gpu=0, size_augment=1, mask_repeat=1,
        save_results=1, gpu_id=0, bert_path="bert-base-uncased", lr_schedules=[15, 25],
        decay_rate=0.1, base_loss="trip", gnn_loss="trip", warmup=8000, residual_weight=0.8,
        num_layers_enc=1, nhead=16, dropout=0.1, graph_lr_factor=1.0, mask_weight=1.0,
        threshold=0.5, topk=10, reg_loss_weight=10, norm_input=1, cross_loss=1,
    )  # fmt: skip
    assert {name: options[name] for name in published} == published
    assert options["val_split"] == "dev" and options["val_step"] == 0 and "img_dim" not in options


@pytest.mark.parametrize(
    "command",
    [
        (
            "--batch_size 128 --data_path data/ --dataset f30k "
            "--logger_name runs/f30k_test --mask_weight 1.0"
        ),
        (
            "--batch_size 256 --data_path data/ --dataset coco "
            "--logger_name runs/coco_test --mask_weight 1.5"
        ),
    ],
)
def test_published_training_commands_parse(command):
    parser = arguments.training_parser()
    options = arguments.parse_training(parser, command.split())
    assert options.model_name == options.logger_name and options.mask_weight in (1.0, 1.5)


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
def test_published_evaluation_commands_parse(dataset):
    options = arguments.evaluation_parser().parse_args(
        f"--data_path data/ --dataset {dataset} --gpu-id 0".split()
    )
    assert options.dataset == dataset and options.save_results == 0


def test_the_documentation_lists_every_module():
    page = (ROOT / "docs" / "code.md").read_text()
    assert [
        module for module in ORDER if f"[`{path_of(module).relative_to(ROOT)}`]" not in page
    ] == []


@pytest.mark.parametrize(
    "pages", [["training"], ["training", "evaluation"]], ids=["train.py", "eval.py"]
)
def test_the_documentation_names_every_option(pages):
    is_evaluation = "evaluation" in pages
    parser = arguments.evaluation_parser() if is_evaluation else arguments.training_parser()
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in pages)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    options = [action.option_strings for action in parser._actions if action.option_strings]
    assert len(options) > 10 and [names for names in options if not named & set(names)] == []


def test_no_line_is_longer_than_100():
    folders = [ROOT / folder for folder in ("lib", "tests", "benchmarks")]
    for file in [
        *ROOT.glob("*.py"),
        *(file for folder in folders for file in folder.rglob("*.py")),
    ]:
        assert max(map(len, file.read_text().splitlines()), default=0) <= 100, file


LONG_FILES = {  # still to be split, or with no clear seam
    "lib/objective/relation.py",
    "lib/system/distributed.py",
    "lib/training/logs.py",
    "lib/training/run_start.py",
    "tests/mutants.py",
    "tests/test_golden.py",
}


def test_no_file_is_too_long():
    """At most 300 lines in lib/, 400 in tests/; an exception is one only while it is longer."""
    long = {
        file.relative_to(ROOT).as_posix()
        for folder, limit in (("lib", 300), ("tests", 400))
        for file in (ROOT / folder).rglob("*.py")
        if len(file.read_text().splitlines()) > limit
    }
    assert long == LONG_FILES


def public_functions(module):
    """The functions and methods of a module whose names do not begin with an underscore, and
    __init__."""
    tree = tree_of(module)
    classes = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    found = [*tree.body, *(node for each in classes for node in each.body)]
    for node in found:
        is_public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        if is_public or isinstance(node, ast.FunctionDef) and node.name == "__init__":
            yield node


@pytest.mark.parametrize("module", ORDER)
def test_public_functions_are_typed(module):
    for node in public_functions(module):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments += [each for each in (node.args.vararg, node.args.kwarg) if each]
        untyped = [a.arg for a in arguments if not a.annotation and a.arg not in ("self", "cls")]
        assert node.returns and not untyped, f"{module}:{node.lineno} {node.name} {untyped}"
