"""The house: imports run downward, evaluation never meets the graph, no option is idle, docs/ names all."""

import ast
import re
from pathlib import Path

import pytest

import arguments
import graph_lib

ROOT = Path(__file__).parent.parent
ORDER = (
    "lib.start", "lib.console", "lib.errors",
    "lib.distributed", "lib.files", "lib.cache", "lib.run_folder", "lib.interrupt",
    "lib.options", "lib.pooling", "lib.packing", "lib.metrics", "lib.fingerprint", "lib.captions",
    "lib.vocabulary", "lib.bert", "lib.demo", "lib.optim", "lib.layout", "lib.pairing",
    "lib.caption_forms", "lib.check",
    "lib.element_type", "lib.tsv_columns", "lib.tsv", "lib.karpathy", "lib.conversion", "lib.convert",
    "lib.sampling", "lib.dataset", "lib.unpickle", "lib.fragment", "lib.state",
    "lib.checkpoint", "lib.result_names",
    "lib.charts", "lib.logs", "lib.report", "lib.pretrained",
    "lib.proof", "lib.run_start",
    "lib.bootstrap", "lib.losses", "lib.relation", "lib.encoders", "lib.engine", "lib.model",
    "lib.search", "lib.export", "lib.extended", "lib.pictures", "lib.html_report", "graph_lib", "arguments", "eval",
    "train",
)  # fmt: skip


def path_of(module):
    return ROOT / (module.replace(".", "/") + ".py")


def imports(module):
    """The modules of this project that a module imports, anywhere in its file."""
    found = set()
    for node in ast.walk(ast.parse(path_of(module).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(ORDER)


def test_every_module_has_its_place_in_the_order():
    files = [*ROOT.glob("*.py"), *ROOT.glob("lib/*.py")]
    modules = {str(file.relative_to(ROOT).with_suffix("")).replace("/", ".") for file in files}
    assert modules - {"lib.__init__"} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_downward(module):
    above = ORDER[: ORDER.index(module)]
    assert imports(module) <= set(above)


def test_evaluation_never_reaches_the_graph():
    reached, waiting = set(), ["eval"]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += imports(module) - reached
    assert "lib.model" in reached
    assert not reached & {"graph_lib", "lib.relation", "lib.losses", "lib.optim", "train"}


def test_one_file_knows_tensorboard_logger():
    assert [module for module in ORDER if "tensorboard_logger import" in path_of(module).read_text()] == ["lib.logs"]


def training_options():
    parser = arguments.training_parser()
    graph_lib.add_options(parser)
    return {action.dest for action in parser._actions} - {"help"}


def evaluation_options():
    return {action.dest for action in arguments.evaluation_parser()._actions} - {"help"}


@pytest.mark.parametrize("option", sorted(training_options() | evaluation_options()))
def test_every_option_is_read(option):
    source = "".join(path_of(module).read_text() for module in ("lib.model", "arguments", "train", "eval"))
    assert re.search(rf'options\.{option}\b(?! =)|options\["{option}"\]|\(options, "{option}"', source)


def test_the_published_options_keep_their_defaults():
    parser = arguments.training_parser()
    graph_lib.add_options(parser)
    options = vars(arguments.parse_training(parser, []))
    published = dict(
        data_path="data/", dataset="f30k", margin=0.2, num_epochs=30, batch_size=128, embed_size=1024, grad_clip=2.0,
        learning_rate=5e-4, workers=8, log_step=200, logger_name="runs/test", model_name="runs/test",
        max_violation=False, no_imgnorm=False, no_txtnorm=False, vse_mean_warmup_epochs=1, multi_gpu=0,
        size_augment=1, mask_repeat=1, save_results=1, gpu_id=0, bert_path="bert-base-uncased",
        lr_schedules=[15, 25], decay_rate=0.1, base_loss="trip", gnn_loss="trip", warmup=8000, residual_weight=0.8,
        num_layers_enc=1, nhead=16, dropout=0.1, graph_lr_factor=1.0, mask_weight=1.0, threshold=0.5, topk=10,
        reg_loss_weight=10, norm_input=1, cross_loss=1,
    )  # fmt: skip
    assert {name: options[name] for name in published} == published
    assert options["val_split"] == "dev" and options["val_step"] == 0 and "img_dim" not in options


@pytest.mark.parametrize("command", [
    "--batch_size 128 --data_path data/ --dataset f30k --logger_name runs/f30k_test --mask_weight 1.0",
    "--batch_size 256 --data_path data/ --dataset coco --logger_name runs/coco_test --mask_weight 1.5",
])  # fmt: skip
def test_published_training_commands_parse(command):
    parser = arguments.training_parser()
    graph_lib.add_options(parser)
    options = arguments.parse_training(parser, command.split())
    assert options.model_name == options.logger_name and options.mask_weight in (1.0, 1.5)


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
def test_published_evaluation_commands_parse(dataset):
    options = arguments.evaluation_parser().parse_args(f"--data_path data/ --dataset {dataset} --gpu-id 0".split())
    assert options.dataset == dataset and options.save_results == 0


def test_the_documentation_lists_every_module():
    page = (ROOT / "docs" / "code.md").read_text()
    assert [module for module in ORDER if f"[`{path_of(module).relative_to(ROOT)}`]" not in page] == []


@pytest.mark.parametrize("pages", [["training"], ["training", "evaluation"]], ids=["train.py", "eval.py"])
def test_the_documentation_names_every_option(pages):
    parser = arguments.evaluation_parser() if "evaluation" in pages else arguments.training_parser()
    if "evaluation" not in pages:
        graph_lib.add_options(parser)
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in pages)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    options = [action.option_strings for action in parser._actions if action.option_strings]
    assert len(options) > 10 and [names for names in options if not named & set(names)] == []


def test_no_line_is_longer_than_120():
    for file in [*ROOT.glob("*.py"), *ROOT.glob("lib/*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")]:
        assert max(map(len, file.read_text().splitlines()), default=0) <= 120, file
