"""How many operations a training step consists of. On a GPU each is a kernel or a few, and
launching them is what a step of the published configuration takes its time for."""

import pytest
import torch
from published import make_model, make_objective, small_bert
from test_optim import DIM, HEADS, REGION_DIM, VOCABULARY, batch_of

from benchmarks import common
from lib.objective import relation
from lib.training import engine, optim

MOST = {"fp32": 1120, "bf16": 1210}


@pytest.mark.parametrize("precision", MOST)
def test_a_step_of_the_published_depth_takes_few_operations(precision, monkeypatch):
    """Twelve layers of BERT, batches cut as on a GPU. Without dropout, of which a GPU makes one
    operation each way; a CPU makes several, and of attention with dropout many."""
    monkeypatch.setitem(relation.BLOCKS, "cpu", relation.BLOCKS["cuda"])
    torch.manual_seed(0)
    bert = small_bert(
        vocab_size=VOCABULARY, hidden_size=24, num_attention_heads=3, intermediate_size=32,
        num_hidden_layers=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    sizes = dict(embed_size=DIM, nhead=HEADS, dropout=0.0)
    model = make_model(bert, REGION_DIM, **sizes).train()
    objective = make_objective(topk=4, **sizes).train()
    optimizer = optim.build(model, objective, 1e-3)
    batch = batch_of(lengths=(8, 6, 5, 3))

    def step():
        engine.training_step(
            model, objective, optimizer, batch, use_graph=True, precision=precision
        )

    step()  # the first one also makes the optimiser's state
    found = common.operations(step)
    assert found <= MOST[precision], (
        f"a step in {precision} takes {found} operations, expected at most {MOST[precision]}; "
        "if they are needed, raise MOST"
    )
