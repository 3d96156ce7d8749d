"""Parameter groups and the learning-rate schedule (docs/method.md, section 6)."""

import torch

BERT_LR_FACTOR = 0.1  # of the learning rate
WEIGHT_DECAY = 1e-4


def parameter_groups(model, objective, learning_rate, graph_lr_factor=1.0):
    """AdamW's groups, each with its `name`: everything but BERT, BERT at a tenth,
    the relation modules by a factor.

    A group of nothing is left out: another text encoder than BERT learns with the first.
    """
    bert = [
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith("text_encoder.bert.")
    ]
    is_bert = {id(parameter) for parameter in bert}
    encoders = [parameter for parameter in model.parameters() if id(parameter) not in is_bert]
    groups = [
        dict(name="encoders", params=encoders, lr=learning_rate),
        dict(name="bert", params=bert, lr=learning_rate * BERT_LR_FACTOR),
        dict(
            name="relations",
            params=list(objective.parameters()),
            lr=learning_rate * graph_lr_factor,
        ),
    ]
    return [group for group in groups if group["params"]]


def build(model, objective, learning_rate, graph_lr_factor=1.0):
    """AdamW over the model and the objective. Its fused form can skip a step without asking the GPU
    first."""
    groups = parameter_groups(model, objective, learning_rate, graph_lr_factor)
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)


def set_learning_rates(optimizer, epoch, schedule, decay_rate):
    """Set every group's rate for an epoch, counted from 0: decayed once at each epoch of `schedule`
    reached so far."""
    decay = decay_rate ** sum(epoch >= milestone for milestone in schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * decay
