"""Every formula against the numbers measured from the published model."""

import json

import numpy as np
import published
import pytest
import torch
from helpers import close
from published import GOLDEN, golden, published_name, small_model, small_objective, small_tokeniser

from graph_lib import longest_distance
from lib.data.batches import Batch
from lib.data.captions import split_words, tokenise
from lib.evaluation import metrics
from lib.model.encoders import Encoded
from lib.model.published import OBJECTIVE_NAMES, rename
from lib.objective import losses
from lib.objective.relation import InstanceRelations, regulariser
from lib.training import engine, optim


def close_gradient(found, expected):
    close(found, expected, absolute=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "file, fragments", [("encoders.npz", "fragments"), ("more/encoders.npz", "emb_pre_pool")]
)
def test_encoders_in_evaluation(file, fragments):
    data = golden(file)
    model = small_model()
    prefix = "" if "img_emb" in data else "eval_"
    for no_grad in (True, False):  # without gradient the transformer layer takes a fused path
        with torch.set_grad_enabled(not no_grad):
            images = model.image_encoder(data["images"], data["image_lengths"])
            captions = model.text_encoder(data["captions"], data["caption_lengths"])
        close(images.embedding, data[prefix + "img_emb"])
        close(images.unnormalised, data[prefix + "img_emb_notnorm"])
        close(images.fragments, data[f"{prefix}img_{fragments}"])
        close(captions.embedding, data[prefix + "cap_emb"])
        close(captions.unnormalised, data[prefix + "cap_emb_notnorm"], absolute=2e-5)
        close(captions.fragments, data[f"{prefix}cap_{fragments}"], absolute=3e-5)


@pytest.mark.parametrize(
    "file, fragments", [("encoders.npz", "fragments"), ("more/encoders.npz", "emb_pre_pool")]
)
def test_image_encoder_in_training(file, fragments):
    data = golden(file)
    encoder = small_model().image_encoder.train()
    images = encoder(data["images"], data["image_lengths"])
    close(images.embedding, data["train_img_emb"])
    close(images.unnormalised, data["train_img_emb_notnorm"])
    close(images.fragments, data[f"train_img_{fragments}"])
    close(encoder.mlp[1].running_mean, data["train_bn_running_mean"])
    close(encoder.mlp[1].running_var, data["train_bn_running_var"])


def relation_case(data, prefix, topk, threshold, names):
    """Run our relations on golden inputs; check blocks, regulariser, objective and gradients."""
    u = data[names["img_emb"]].clone().requires_grad_()
    w = data[names["cap_emb"]].clone().requires_grad_()
    images = Encoded(u, u, data[names["img_fragments"]], data[names["image_lengths"]])
    captions = Encoded(w, w, data[names["cap_fragments"]], data[names["caption_lengths"]])
    module = InstanceRelations(topk, threshold).to(published.DEVICE)
    return module, images, captions


def load_relation_mlps(module, named):
    state = rename(named, OBJECTIVE_NAMES)
    module.load_state_dict(
        {name.removeprefix("relations."): value for name, value in state.items()}
    )


def check_relations(data, prefix, module, images, captions, coefficients):
    relations = module(images, captions)
    reg = regulariser(relations, images.embedding, captions.embedding)
    objective = reg
    for block, relation in relations._asdict().items():
        assert torch.equal(relation.connection, data[f"{prefix}connect_{block}"]), block
        close(relation.relevance, data[f"{prefix}relevance_{block}"])
        objective = objective + (relation.relevance * data[coefficients + block]).sum()
    close(reg, data[prefix + "reg_loss"], absolute=0, relative=1e-4)
    close(objective, data[prefix + "objective"], absolute=0, relative=1e-4)
    objective.backward()
    close_gradient(images.embedding.grad, data[prefix + "grad_img_emb"])
    close_gradient(captions.embedding.grad, data[prefix + "grad_cap_emb"])
    gradients = {name: value.grad for name, value in module.named_parameters()}
    named = {
        key.split("grad_")[1]: value
        for key, value in data.items()
        if key.startswith(prefix + "grad_adj")
    }
    assert len(named) == 8
    for name, expected in rename(named, OBJECTIVE_NAMES).items():
        close_gradient(gradients[name.removeprefix("relations.")], expected)


@pytest.mark.parametrize("case", [0, 1])
def test_relations(case):
    data = golden("relations.npz")
    prefix = f"case{case}_"
    names = {
        name: prefix + name
        for name in (
            "img_emb",
            "cap_emb",
            "img_fragments",
            "cap_fragments",
            "image_lengths",
            "caption_lengths",
        )
    }
    module, images, captions = relation_case(
        data, prefix, int(data[prefix + "topk"]), float(data[prefix + "threshold"]), names
    )
    load_relation_mlps(
        module,
        {
            key.split("param_")[1]: value
            for key, value in data.items()
            if key.startswith(prefix + "param_")
        },
    )
    check_relations(data, prefix, module, images, captions, prefix + "coef_")


@pytest.mark.parametrize("topk", [9, 5])
@pytest.mark.parametrize("threshold", [50, 30])
def test_relations_second_set(topk, threshold):
    data = golden("more/relations.npz")
    prefix = f"topk{topk}_thr{threshold}_"
    names = dict(
        img_emb="img_emb",
        cap_emb="cap_emb",
        img_fragments="img_regions",
        cap_fragments="cap_words",
        image_lengths="image_lengths",
        caption_lengths="caption_lengths",
    )
    module, images, captions = relation_case(data, prefix, topk, threshold / 100, names)
    module.load_state_dict(
        {
            name.removeprefix("relations."): value
            for name, value in small_objective(topk).state_dict().items()
            if name.startswith("relations.")
        }
    )
    check_relations(data, prefix, module, images, captions, "weight_")


@pytest.mark.parametrize("mask_repeat", [0, 1])
@pytest.mark.parametrize("hardest", [False, True])
@pytest.mark.parametrize("second_set", [False, True])
def test_hinge_loss(mask_repeat, hardest, second_set):
    data = golden("more/losses.npz" if second_set else "losses.npz")
    inputs = ("img_emb", "cap_emb") if second_set else ("vse_img_emb", "vse_cap_emb")
    prefix = (
        f"vse_{'max' if hardest else 'sum'}_mask_repeat{mask_repeat}_"
        if second_set
        else f"vse_{'hardest' if hardest else 'sum'}_maskrepeat{mask_repeat}_"
    )
    u, w = (data[name].clone().requires_grad_() for name in inputs)
    loss = losses.hinge_loss(
        u @ w.T,
        losses.find_positives(data["img_ids"], bool(mask_repeat), u.device),
        0.2,
        "hardest" if hardest else "all",
    )
    close(loss, data[prefix + ("loss" if second_set else "value")], absolute=0, relative=1e-4)
    loss.backward()
    close_gradient(u.grad, data[prefix + "grad_img_emb"])
    close_gradient(w.grad, data[prefix + "grad_cap_emb"])


def normalised_rows(weights):
    """Published rows that underflowed sum to less than one: scaled back, as their README says."""
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
def test_triplet_loss(dataset):
    data = golden("losses.npz")
    prefix = f"trip_{dataset}_"
    u, w = (
        data["trip_img_emb"].clone().requires_grad_(),
        data["trip_cap_emb"].clone().requires_grad_(),
    )
    positives = losses.find_positives(data["img_ids"], device=u.device)
    assert torch.equal(positives.anchor, data["trip_anchor"]) and torch.equal(
        positives.positive, data["trip_positive"]
    )
    similarities = (u @ w.T).detach()
    torch.manual_seed(0)
    for rows, direction in ((similarities, "img2cap"), (similarities.T, "cap2img")):
        found = losses.negative_distribution(
            rows, positives.is_positive, longest_distance(dataset)
        )[positives.anchor]
        close(found, normalised_rows(data[f"{prefix}{direction}_probability"]), absolute=1e-3)
        assert torch.equal(losses.draw_negatives(found), data[f"{prefix}{direction}_negative"])
    torch.manual_seed(0)
    loss = losses.triplet_loss(u @ w.T, positives, 0.2, longest_distance(dataset))
    close(loss, data[prefix + "value"], absolute=0, relative=1e-4)
    loss.backward()
    close_gradient(u.grad, data[prefix + "grad_img_emb"])
    close_gradient(w.grad, data[prefix + "grad_cap_emb"])


@pytest.mark.parametrize("inputs", ["", "wide_"])
@pytest.mark.parametrize("dataset", ["f30k", "coco"])
def test_triplet_loss_second_set(dataset, inputs):
    data = golden("more/losses.npz")
    prefix = f"{inputs}trip_{dataset}_"
    u, w = (data[inputs + name].clone().requires_grad_() for name in ("img_emb", "cap_emb"))
    positives = losses.find_positives(data["img_ids"], device=u.device)
    similarities = (u @ w.T).detach()
    torch.manual_seed(0)
    for rows, direction in ((similarities, "img"), (similarities.T, "cap")):
        found = losses.negative_distribution(
            rows, positives.is_positive, longest_distance(dataset)
        )[positives.anchor]
        close(found, normalised_rows(data[f"{prefix}{direction}_anchor_weight"]), absolute=1e-3)
        assert torch.equal(
            losses.draw_negatives(found), data[f"{prefix}{direction}_anchor_negative"]
        )
    torch.manual_seed(0)
    loss = losses.triplet_loss(u @ w.T, positives, 0.2, longest_distance(dataset))
    close(loss, data[prefix + "loss"], absolute=0, relative=1e-4)
    loss.backward()
    close_gradient(u.grad, data[prefix + "grad_img_emb"])
    close_gradient(w.grad, data[prefix + "grad_cap_emb"])


def check_fusion(objective, images, captions, image_ids, hardest, expected):
    """expected(kind) gives the golden array of that kind;
    kinds are those of the two README files."""
    relations = objective.relations(images, captions)
    enhanced_u, enhanced_w = objective.enhance(images, captions, relations)
    close(enhanced_u, expected("enhanced_img_emb"))
    close(enhanced_w, expected("enhanced_cap_emb"))
    loss = objective(images, captions, image_ids, use_graph=True, hardest=hardest).total
    close(loss, expected("loss"), absolute=0, relative=1e-4)
    loss.backward()
    close_gradient(images.embedding.grad, expected("grad_img_emb"))
    close_gradient(captions.embedding.grad, expected("grad_cap_emb"))
    for name, parameter in objective.named_parameters():
        name = published_name(name)
        norm = expected("gradnorm_" + name)
        if norm is None:
            continue
        relative = 1e-3 if "adj_model" in name else 1e-4
        close(parameter.grad.norm(), norm, absolute=1e-5, relative=relative)
        whole = expected("grad_" + name)
        if whole is not None and "adj_model" not in name:
            close(parameter.grad, whole, absolute=1e-5 + 1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("case", range(4))
def test_fusion(case):
    data = golden("fusion.npz")
    options = json.loads(str(data["cases"]))[case]
    u, w = (data[f"case{case}_{name}"].clone().requires_grad_() for name in ("img_emb", "cap_emb"))
    images = Encoded(u, data["img_emb_notnorm"], data["img_fragments"], data["image_lengths"])
    captions = Encoded(w, data["cap_emb_notnorm"], data["cap_fragments"], data["caption_lengths"])
    objective = small_objective(
        options["topk"],
        layers=options.get("num_layers_enc", 1),
        base_loss=options["base_loss"],
        gnn_loss=options["gnn_loss"],
        mask_weight=options["mask_weight"],
        norm_input=bool(options["norm_input"]),
        cross_loss=bool(options["cross_loss"]),
        threshold=options["threshold"],
    )
    torch.manual_seed(0)
    check_fusion(
        objective,
        images,
        captions,
        data["img_ids"],
        options["max_violation"],
        lambda kind: data.get(f"case{case}_{kind}"),
    )
    assert sum(key.startswith(f"case{case}_gradnorm_") for key in data) == len(
        list(objective.parameters())
    )


@pytest.mark.parametrize("base", ["vsesum", "vsemax", "trip"])
@pytest.mark.parametrize("mask_weight", [100, 150])
@pytest.mark.parametrize("norm_input", [0, 1])
@pytest.mark.parametrize("cross_loss", [0, 1])
def test_fusion_second_set(base, mask_weight, norm_input, cross_loss):
    data = golden("more/fusion.npz")
    prefix = f"{base}_mw{mask_weight}_norm{norm_input}_cross{cross_loss}_"
    u, w = (data[name].clone().requires_grad_() for name in ("img_emb", "cap_emb"))
    images = Encoded(u, data["img_emb_notnorm"], data["img_regions"], data["image_lengths"])
    captions = Encoded(w, data["cap_emb_notnorm"], data["cap_words"], data["caption_lengths"])
    loss = "trip" if base == "trip" else "vse"
    objective = small_objective(
        8,
        base_loss=loss,
        gnn_loss=loss,
        mask_weight=mask_weight / 100,
        norm_input=bool(norm_input),
        cross_loss=bool(cross_loss),
    )
    norms = dict(zip(data["param_names"].tolist(), data[prefix + "grad_norms"]))

    def expected(kind):
        if kind.startswith("gradnorm_"):
            return norms[kind.removeprefix("gradnorm_")]
        second_name = dict(
            enhanced_img_emb="img_emb_enhanced", enhanced_cap_emb="cap_emb_enhanced"
        ).get(kind, kind)
        return data.get(prefix + second_name)

    if norm_input and cross_loss:
        bias = objective.fusion.attention_bias(objective.relations(images, captions))
        close(bias.clamp(min=-1e9), data[prefix + "attn_mask"])
    torch.manual_seed(123)
    check_fusion(objective, images, captions, data["img_ids"], base == "vsemax", expected)


@pytest.mark.parametrize("num_images", [40, 100])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("second_set", [False, True])
def test_metrics(num_images, seed, second_set):
    data = golden("more/metrics.npz" if second_set else "metrics.npz")
    prefix = f"n{num_images}_seed{seed}_"
    found = metrics.ranks(golden_similarities(num_images, seed, second_set))
    table = metrics.scores(found)
    close(torch.tensor(table.image_to_text), data[prefix + "i2t"])
    close(torch.tensor(table.text_to_image), data[prefix + "t2i"])
    if second_set:
        assert np.array_equal(found.image_to_text, data[prefix + "i2t_ranks"])
        assert np.array_equal(found.text_to_image, data[prefix + "t2i_ranks"])


def golden_similarities(num_images, seed, second_set):
    similarities = np.random.default_rng(seed).standard_normal((num_images, 5 * num_images))
    for image in range(num_images):
        similarities[image, 5 * image : 5 * image + 5] += 1.5
    if second_set:
        order = similarities.ravel().argsort().argsort()
        similarities = (order / 2**20).astype(np.float32).reshape(similarities.shape)
    return similarities


@pytest.mark.parametrize("second_set", [False, True])
def test_metrics_over_folds(second_set):
    data = golden("more/metrics.npz" if second_set else "metrics.npz")
    table = metrics.fold_scores(golden_similarities(250, 9, second_set), folds=5)
    mean = data["folds_mean" if second_set else "fold_mean"]
    found = torch.tensor([*table.image_to_text, *table.text_to_image])
    close(found, mean[:10])


def golden_batch(data, which, second_set):
    """Step `which` of a golden trajectory as the loader would hand it over."""
    fields = ("images", "image_lengths", "captions", "caption_lengths", "img_ids")
    return Batch(
        *(data[name][which] if second_set else data[f"step{which}_{name}"] for name in fields)
    )


def run_steps(data, second_set, hardest_from, topk, graph_from=3):
    """Six steps of the small model through the engine. Returns model, objective,
    step reports, initial weights."""
    model = small_model()
    objective = small_objective(topk, base_loss="vse", gnn_loss="vse")
    before = {
        name: value.detach().clone() for name, value in named_parameters(model, objective).items()
    }
    optimizer = optim.build(model, objective, learning_rate=5e-4)
    reports = []
    for which in range(6):
        engine.train_epoch(
            model,
            objective,
            optimizer,
            [golden_batch(data, which, second_set)],
            step=which,
            seed=0,
            warmup=graph_from,
            hardest=which >= hardest_from,
            grad_clip=2.0,
            device=published.DEVICE,
            on_step=lambda step, report, *times: reports.append(report),
        )
    return model.eval(), objective, reports, before


def named_parameters(model, objective):
    """All parameters under their published names,
    the encoder or `criterion.` in front as golden files have it."""
    found = {published_name(name): value for name, value in model.named_parameters()}
    return found | {
        "criterion." + published_name(name): value for name, value in objective.named_parameters()
    }


def has_true_gradient(name):
    """Biases whose true gradient is zero: Adam amplifies their rounding."""
    return name != "image_encoder.fc.mlp.layers.0.bias" and not name.endswith("self.key.bias")


def test_steps():
    data = golden("steps.npz")
    model, objective, reports, _ = run_steps(data, second_set=False, hardest_from=4, topk=5)
    close(
        torch.stack([report.loss for report in reports]), data["losses"], absolute=0, relative=1e-4
    )
    images, captions = model(golden_batch(data, 0, second_set=False))
    close(images.embedding, data["probe_img_emb"], absolute=1e-3)
    close(captions.embedding, data["probe_cap_emb"], absolute=1e-3)
    norms = json.loads(str(data["param_norms"]))
    found = named_parameters(model, objective)
    compared = [name for name in norms if name in found and has_true_gradient(name)]
    assert len(compared) == len(found) - 2
    for name in compared:
        # float32 sums of 23 M squares drift
        close(found[name].double().norm(), norms[name], absolute=0, relative=1e-3)


@pytest.mark.parametrize("trajectory, hardest_from", [("sum_", 99), ("switch4_", 4)])
def test_steps_second_set(trajectory, hardest_from):
    data = golden("more/steps.npz")
    model, objective, reports, before = run_steps(
        data, second_set=True, hardest_from=hardest_from, topk=8
    )
    close(
        torch.stack([report.loss for report in reports]),
        data[trajectory + "losses"],
        absolute=0,
        relative=1e-4,
    )
    norms = torch.stack([report.gradient_norm for report in reports])
    close(norms, data[trajectory + "grad_norms_before_clip"], absolute=0, relative=1e-4)
    images = model.image_encoder(data["probe_images"], data["probe_image_lengths"])
    captions = model.text_encoder(data["probe_captions"], data["probe_caption_lengths"])
    close(images.embedding, data[trajectory + "probe_img_emb"], absolute=1e-3)
    close(captions.embedding, data[trajectory + "probe_cap_emb"], absolute=1e-3)
    # the running mean holds the bias before it, which Adam moves at random by up to a rate a step
    close(
        model.image_encoder.mlp[1].running_mean, data[trajectory + "bn_running_mean"], absolute=1e-3
    )
    close(
        model.image_encoder.mlp[1].running_var, data[trajectory + "bn_running_var"], absolute=1e-5
    )
    found = named_parameters(model, objective)
    changes = dict(zip(data["param_names"].tolist(), data[trajectory + "param_change_norms"]))
    compared = [name for name in changes if name in found and has_true_gradient(name)]
    assert len(compared) == len(found) - 2
    for name in compared:
        close((found[name] - before[name]).norm(), changes[name], absolute=1e-6, relative=2e-3)


def test_tokens():
    tokeniser = small_tokeniser()
    expected = json.loads((GOLDEN / "tokens.json").read_text())
    assert len(expected) == 70
    captions = tokenise([caption["caption"] for caption in expected], tokeniser)
    for number, caption in enumerate(expected):
        assert split_words(caption["caption"], tokeniser) == caption["words"]
        assert captions.ids(number).tolist() == caption["ids_vocab_small"]
        assert captions.lengths[number] == len(caption["ids_vocab_small"])
