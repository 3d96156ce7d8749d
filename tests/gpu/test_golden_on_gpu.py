"""The golden numbers on a GPU: the tests of test_golden.py once more, in float32; and how far TF32
and bfloat16 are from them."""

import published
import pytest
import torch
from published import golden, small_model, small_objective
from test_golden import (  # noqa: F401  they run here a second time
    golden_batch,
    test_encoders_in_evaluation,
    test_fusion,
    test_fusion_second_set,
    test_hinge_loss,
    test_image_encoder_in_training,
    test_relations,
    test_relations_second_set,
    test_steps,
    test_steps_second_set,
    test_triplet_loss,
    test_triplet_loss_second_set,
)

from lib.objective import losses
from lib.training import engine

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch):
    """Golden arrays and models on the GPU; the golden draws came from the generator of the CPU."""
    draw = losses.draw_negatives

    def drawn_on_the_cpu(distribution, generator=None):
        return draw(distribution.cpu(), generator).to(distribution.device)

    monkeypatch.setattr(published, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(losses, "draw_negatives", drawn_on_the_cpu)


def loss_and_gradients(precision):
    """Loss of the first golden step, and all its gradients as one vector."""
    model = small_model().train()
    objective = small_objective(5, base_loss="vse", gnn_loss="vse").train()
    batch = golden_batch(golden("steps.npz"), 0, second_set=False)
    settings = dict(use_graph=True, hardest=False, precision=precision)
    loss = engine.batch_loss(model, objective, batch, **settings).total
    with engine.matrix_products(precision):
        loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters()]
    return float(loss.detach()), torch.cat(gradients)


@pytest.mark.parametrize("precision, bound", [("fp32", 0), ("tf32", 2e-3), ("bf16", 2e-2)])
def test_a_lower_precision_stays_within_its_bound(precision, bound):
    """Loss relative to that of float32; direction of the gradient: 1 - cosine within the bound."""
    expected, expected_gradient = loss_and_gradients("fp32")
    found, gradient = loss_and_gradients(precision)
    cosine = torch.cosine_similarity(gradient.double(), expected_gradient.double(), dim=0)
    print(precision, abs(found / expected - 1), 1 - float(cosine))
    assert abs(found / expected - 1) <= bound + 1e-6
    assert 1 - float(cosine) <= bound + 1e-6
