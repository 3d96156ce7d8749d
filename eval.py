"""Evaluate a trained model, or an ensemble, on a split:  python eval.py --data_path data/ --dataset f30k

Prints the retrieval table and writes it into the run folder, with metrics.json beside it (SPEC section 7).
"""

from pathlib import Path

import torch

import arguments
from lib import bert, checkpoint, demo, engine, metrics, report
from lib.dataset import RetrievalDataset, folder_of, test_split
from lib.errors import InputError, command_line, first_sentence
from lib.logs import say
from lib.model import HREM
from lib.vocabulary import word_embeddings

PUBLISHED_BERT = "bert-base-uncased"


def build_model(options, reader, region_dim):
    """The model that a dict of options describes, ours or the published ones; reader: see `HREM`."""
    return HREM(
        reader,
        region_dim=region_dim,
        embed_size=options["embed_size"],
        heads=options["nhead"],
        dropout=options["dropout"],
        residual_weight=options["residual_weight"],
        normalise_images=not options["no_imgnorm"],
        normalise_captions=not options["no_txtnorm"],
        pooling=options["pooling"],
        mask_padding=bool(options["mask_padding"]),
    )


def choose_device(name, gpu_id):
    """The torch device of --device and --gpu-id. Raises InputError where it is not there."""
    if name == "auto":
        name = f"cuda:{gpu_id}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("this program runs on CPUs and CUDA GPUs")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {name}: not usable here ({first_sentence(error)}); expected auto, cpu, cuda or "
            f"cuda:N; CUDA GPUs found: {torch.cuda.device_count()}"
        ) from error
    return device


def open_folder(data_path, dataset):
    """The folder of a data set; the demo data are built on their first use. Raises InputError."""
    demo_folder = Path(data_path) / "demo_precomp"
    if dataset == "demo" and not demo_folder.exists():
        say(f"building the demo data in {demo_folder}")
        demo_folder.parent.mkdir(parents=True, exist_ok=True)
        demo.build(demo_folder)
    return folder_of(data_path, dataset)


def load_split(data_path, dataset, split, bert_path, vocabulary=None):
    """A split, its captions cut for the BERT at `bert_path`, or into the words of a `Vocabulary`."""
    folder = open_folder(data_path, dataset)
    longest = None if vocabulary else bert.configuration(bert_path).max_position_embeddings
    found = RetrievalDataset(folder, split, vocabulary or bert.tokeniser(bert_path), longest)
    if found.blank_lines:
        numbers = ", ".join(map(str, found.blank_lines[:10]))
        more = len(found.blank_lines) - 10
        say(
            f"warning: {folder / split}_caps.txt: {len(found.blank_lines)} blank captions are kept, they hold their "
            f"place (lines {numbers}{f' and {more} more' if more > 0 else ''})"
        )
    if found.captions.num_shortened:
        say(f"warning: {split}: {found.captions.num_shortened} captions cut to the {longest} positions of BERT")
    return found


def load_model(path, trained, bert_path, region_dim, device):
    """The model of a `Checkpoint` read from `path`, in evaluation mode. Raises InputError where it does not fit."""
    if trained.options["text_encoder"] == "bert":
        reader = bert.model(bert_path, pretrained=False)
    else:
        reader = word_embeddings(trained.vocabulary, trained.options["word_dim"])
    model = build_model(trained.options, reader, region_dim)
    checkpoint.load_into(model, trained, path)
    return model.to(device).eval()


def summarise(similarities, dataset, split, found):
    """Table of a split, and the facts of how it was got. found: the `Checkpoint`s behind the similarities."""
    selected = sorted({"test" if one.is_published else one.options["val_split"] for one in found})
    epochs = ", ".join(str(one.epoch) for one in found)
    scores = report.tables(similarities, split)
    num_images, num_captions = similarities.shape
    models = "1 model" if len(found) == 1 else f"ensemble of {len(found)} models (mean of similarities)"
    title = (
        f"{dataset}, split {split}: {num_images} images, {num_captions} captions; {models}; "
        f"best epoch by rsum on {' and '.join(selected)} (after epoch {epochs})"
    )
    facts = dict(
        dataset=dataset, split=split, selected_on=selected, num_models=len(found), title=title,
        seeds=[one.options.get("seed") for one in found], options=[_plain(one.options) for one in found],
    )  # fmt: skip
    return f"{title}\n\n{report.markdown(scores)}", scores, facts


def _plain(options):
    """Options as JSON can hold them."""
    return {
        name: value if isinstance(value, (int, float, str, list)) else str(value) for name, value in options.items()
    }


def run_model(path, options, device):
    """Similarities of one checkpoint on the split asked for. Returns similarities, data set, split, `Checkpoint`."""
    trained = checkpoint.load(path)
    ours = {} if trained.is_published else trained.options
    dataset = options.dataset or trained.options.get("dataset", "f30k")
    split = options.split or test_split(dataset)
    bert_path = options.bert_path or ours.get("bert_path", PUBLISHED_BERT)
    data_path = options.data_path or ours.get("data_path", "data/")
    data = load_split(data_path, dataset, split, bert_path, trained.vocabulary)
    model = load_model(path, trained, bert_path, data.region_dim, device)
    return engine.similarities(model, data, device), dataset, split, trained


def run_models(paths, options, device):
    """`run_model` of each. Returns list of similarities, data set, split, list of `Checkpoint`s. Raises InputError."""
    all_similarities, datasets, splits, trained = zip(*(run_model(path, options, device) for path in paths))
    if len({similarities.shape for similarities in all_similarities}) > 1 or len(set(datasets)) > 1:
        raise InputError(f"--model_path: an ensemble of {', '.join(datasets)}; expected models of one data set")
    return all_similarities, datasets[0], splits[0], trained


def evaluate(options):
    """Run eval.py's options: print and save the table."""
    device = choose_device(options.device, options.gpu_id)
    named = options.run + (options.model_path or []) or [f"runs/{options.dataset or 'f30k'}_test"]
    seeds = checkpoint.find_seeds(named[0]) if len(named) == 1 else {}
    if seeds:
        return evaluate_seeds(Path(named[0]), seeds, options, device)
    paths = [checkpoint.find(path) for path in named]
    all_similarities, dataset, split, trained = run_models(paths, options, device)
    similarities = metrics.ensemble(all_similarities)
    text, scores, facts = summarise(similarities, dataset, split, trained)
    say(text)
    folder = paths[0].parent
    report.save(folder, split if len(paths) == 1 else f"ensemble_{split}", text, scores, facts)
    if options.save_results:
        report.save_similarities(folder / f"results_{dataset}.npy", similarities)


def evaluate_seeds(folder, seeds, options, device):
    """Print the table of a folder's runs {seed: checkpoint file}, and save it there."""
    all_similarities, dataset, split, trained = run_models(seeds.values(), options, device)
    similarities = metrics.ensemble(all_similarities)
    _, ensemble, facts = summarise(similarities, dataset, split, trained)
    by_seed = {seed: report.tables(found, split) for seed, found in zip(seeds, all_similarities)}
    text = f"{facts['title']}\n\n{report.markdown_of_seeds(by_seed, ensemble)}"
    say(text)
    name = "seeds" if split == test_split(dataset) else f"seeds_{split}"
    report.save(folder, name, text, report.label_seeds(by_seed, ensemble), facts)
    if options.save_results:
        report.save_similarities(folder / f"results_{dataset}.npy", similarities)


def main(argv=None):
    """The program; argv: its arguments, or those of the process."""
    evaluate(arguments.evaluation_parser().parse_intermixed_args(argv))


if __name__ == "__main__":
    command_line(main)
