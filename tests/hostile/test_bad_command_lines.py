"""Command lines that cannot be used are refused in one line."""

from pathlib import Path

import pytest
from damage import OPTIONS, contents

import arguments
import eval as evaluation
import train

LINES = {
    "missing data folder": (
        ["--dataset", "f30k", "--data_path", "nowhere"],
        ["nowhere/f30k_precomp", "data sets in nowhere: none"],
    ),
    "unknown data set": (
        ["--dataset", "f31k"],
        ["f31k_precomp", "data sets in", ": demo;", "--dataset"],
    ),
    "missing split": (
        ["--val_split", "nothere"],
        ["nothere_ims.npy", "dev, test, train", "in training --val_split"],
    ),
    "BERT that is nowhere": (
        ["--bert_path", "no-such/bert"],
        ["no-such/bert", "neither a folder nor", "--bert_path"],
    ),
    "BERT that is no name": (
        ["--bert_path", "/no/such/folder"],
        ["/no/such/folder", "neither a folder nor"],
    ),
    "heads that do not divide": (
        ["--nhead", "3"],
        ["--nhead 3", "--embed_size 16", "expected a divisor"],
    ),
    "odd embedding": (["--embed_size", "7", "--nhead", "1"], ["--embed_size 7", "even"]),
    "several GPUs": (
        ["--multi_gpu", "1"],
        ["--multi_gpu 1", "torchrun --nproc_per_node 1 train.py "],
    ),
    "other features": (
        ["--img_dim", "2048"],
        ["train_ims.npy", "found 128", "expected 2048", "--img_dim"],
    ),
    "more pairs than there are": (
        ["--batch_size", "201"],
        ["train split has 200 pairs", "smaller --batch_size"],
    ),
    "a batch of one": (["--batch_size", "1"], ["--batch_size", "found '1'", "at least 2"]),
    "an unknown device": (
        ["--device", "nonsense"],
        ["--device nonsense", "auto, cpu, cuda or cuda:N"],
    ),
    "a GPU that is not there": (["--device", "cuda:99"], ["--device cuda:99", "CUDA GPUs found"]),
    "a device without values": (
        ["--device", "meta"],
        ["--device meta", "auto, cpu, cuda or cuda:N"],
    ),
    "an unknown option": (
        ["--mask_wieght", "1"],
        ["train.py: --mask_wieght: unknown option. Did you mean --mask_weight?", "--help"],
    ),
    "an abbreviated option": (
        ["--mask_w=1"],
        ["train.py: --mask_w: unknown option. Did you mean --mask_weight?"],
    ),
    "an option like no other": (
        ["--zzz", "1"],
        ["train.py: --zzz: unknown option. train.py --help lists"],
    ),
    "a word too many": (["f30k"], ["unrecognized arguments: f30k"]),
    "an unknown loss": (["--gnn_loss", "triplet"], ["--gnn_loss", "'triplet'", "'trip'", "'vse'"]),
    "an unknown pooling": (
        ["--pooling", "relation"],
        ["--pooling", "'relation'", "'maxk+relation'", "'gpo'"],
    ),
    "an unknown text encoder": (["--text_encoder", "gru"], ["--text_encoder", "'gru'", "'bigru'"]),
    "GloVe for BERT": (
        ["--glove", "glove.txt"],
        ["--glove glove.txt", "BERT", "--text_encoder bigru"],
    ),
    "words that are too rare": (
        ["--text_encoder", "bigru", "--min_word_count", "9999"],
        ["train_caps.txt", "no word that occurs 9999 times", "smaller --min_word_count"],
    ),
    "an unknown precision": (["--precision", "fp8"], ["--precision", "'fp8'", "'bf16'"]),
    "an option without its value": (
        ["--dataset"],
        ["train.py", "--dataset", "expected one argument"],
    ),
    "a path without its value": (
        ["--data_path"],
        ["train.py", "--data_path", "expected one argument"],
    ),
    "a seed too large for torch": (["--seed", str(2**64)], ["--seed", str(2**64), "at most"]),
    "a seed twice": (["--seeds", "1", "2", "1"], ["--seeds 1 2 1", "expected each once"]),
    "a seed beside seeds": (
        ["--seeds", "1", "2", "--seed", "0"],
        ["--seeds 1 2: cannot be combined with --seed", "one of the two"],
    ),
    "no seeds": (["--seeds"], ["--seeds", "expected at least one argument"]),
    "an unknown method": (["--method", "vse++"], ["--method", "'vse++'", "'vsepp'", "'gpo'"]),
    "an unknown sampling": (
        ["--batch_sampling", "near"],
        ["--batch_sampling", "'near'", "'neighbour'"],
    ),
    "clusters that do not divide a batch": (
        ["--batch_sampling", "neighbour", "--batch_clusters", "3"],
        ["--batch_clusters 3", "--batch_size 20", "Try --batch_clusters 2"],
    ),
    "more clusters than a batch": (
        ["--batch_sampling", "neighbour", "--batch_clusters", "40"],
        ["--batch_clusters 40", "--batch_clusters 20"],
    ),
    "more clusters than images": (
        ["--batch_sampling", "neighbour", "--batch_size", "50", "--batch_clusters", "50"],
        ["--batch_clusters 50", "40 images", "fewer clusters"],
    ),
    "a negative decay epoch": (
        ["--lr_schedules", "15", "-3"],
        ["--lr_schedules", "'-3'", "at least 0"],
    ),
    "epochs of decay beside a cosine": (
        ["--schedule", "cosine", "--lr_schedules"],
        ["--lr_schedules: has no effect with --schedule cosine", "give --schedule step"],
    ),
    "a rate of decay beside a cosine": (
        ["--schedule=cosine", "--decay_rate=0.1"],
        ["--decay_rate: has no effect with --schedule cosine", "Leave out --decay_rate"],
    ),
}


@pytest.mark.parametrize("more, expected", LINES.values(), ids=LINES)
def test_a_wrong_command_line_is_refused_before_a_run_folder_is_made(
    whole, tmp_path, refusal, more, expected
):
    refusal(
        train.main,
        *OPTIONS,
        "--data_path",
        whole,
        "--logger_name",
        tmp_path / "run",
        *more,
        expected=expected,
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--logger_name", "--model_name"])
@pytest.mark.parametrize("below", ["", "run"], ids=["the file", "below the file"])
def test_a_run_folder_that_is_a_file_is_refused(whole, tmp_path, refusal, option, below):
    (tmp_path / "file").write_text("kept")
    argv = [
        *OPTIONS,
        "--data_path",
        whole,
        "--logger_name",
        tmp_path / "run",
        option,
        tmp_path / "file" / below,
    ]
    refusal(
        train.main,
        *argv,
        expected=[option, tmp_path / "file", "a file, expected a folder", "Name another"],
    )
    assert contents(tmp_path) == {Path("file"): b"kept"}


def test_a_finished_run_is_left_as_it_is(whole, finished, refusal):
    before = contents(finished)
    expected = [
        finished / "last.pth",
        "the folder already contains a run",
        "--resume auto",
        "--overwrite 1",
    ]
    refusal(
        train.main, *OPTIONS, "--data_path", whole, "--logger_name", finished, expected=expected
    )
    assert contents(finished) == before and Path("model_best.pth") in before


def numeric_actions():
    training = arguments.training_parser()
    parsers = [(train.main, training), (evaluation.main, arguments.evaluation_parser())]
    return [
        (main, parser.prog, action)
        for main, parser in parsers
        for action in parser._actions
        if action.type
    ]


NOT_NUMBERS = ["abc", "", "nan", "inf", "1e999", "1,5"]
BELOW_ZERO, ZERO, ABOVE_ONE, BROKEN = (
    ["-1", "-0.001", "-inf"],
    ["0"],
    ["1.001", "2"],
    ["1.5", "1e3"],
)
REFUSED = {
    dest: values  # out of range, or of another kind
    for dests, values in {
        "num_epochs batch_size embed_size img_dim log_step nhead num_layers_enc": BELOW_ZERO
        + ZERO
        + BROKEN,
        "topk serve batch_clusters word_dim min_word_count": BELOW_ZERO + ZERO + BROKEN,
        "views": [*BELOW_ZERO, *ZERO, *BROKEN, "3"],
        "query_image bootstrap gallery": BELOW_ZERO + BROKEN,
        (
            "workers seed seeds val_step save_step gpu_id "
            "vse_mean_warmup_epochs lr_schedules warmup lr_warmup average_from"
        ): BELOW_ZERO + BROKEN,
        "size_augment overwrite deterministic compile word_augment region_mlp": BELOW_ZERO
        + ABOVE_ONE,
        "save_results multi_gpu mask_repeat": BELOW_ZERO + ABOVE_ONE,
        "norm_input cross_loss connection relevance mask_padding strip_accents": BELOW_ZERO
        + ABOVE_ONE,
        "allow_changed_data": BELOW_ZERO + ABOVE_ONE,
        (
            "learning_rate grad_clip longest_distance temperature attention_temperature "
            "lse_temperature"
        ): BELOW_ZERO + ZERO,
        (
            "margin graph_lr_factor bert_lr_factor mask_weight reg_loss_weight weight_decay "
            "vse_weight decorrelation soft_labels"
        ): BELOW_ZERO,
        "decay_rate residual_weight threshold": BELOW_ZERO + ABOVE_ONE,
        "dropout average_decay": BELOW_ZERO + ABOVE_ONE + ["1"],
    }.items()
    for dest in dests.split()
}


@pytest.mark.parametrize(
    "main, option, dest",
    [
        pytest.param(
            main, action.option_strings[0], action.dest, id=f"{prog} {action.option_strings[0]}"
        )
        for main, prog, action in numeric_actions()
    ],
)
def test_every_number_out_of_range_is_refused(refusal, main, option, dest):
    for value in NOT_NUMBERS + REFUSED[dest]:
        refusal(
            main, f"{option}={value}", expected=[option, f"found {value!r}, expected", "number"]
        )


def test_every_option_that_takes_a_number_knows_its_range():
    training = arguments.training_parser()
    for parser in (training, arguments.evaluation_parser()):
        for action in parser._actions:
            assert (
                action.type or not isinstance(action.default, (int, float)) or action.nargs == 0
            ), action.dest
    assert set(REFUSED) == {action.dest for _, _, action in numeric_actions()}
