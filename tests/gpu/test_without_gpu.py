"""Training steps on the stand-in for a GPU: no step mixes host and device, no step waits for the
device, and no step launches more kernels for a larger batch. The checks themselves are tested."""

import pytest
import torch
from configurations import (
    CROSS_ATTENTION,
    OTHERS,
    POOLED,
    SOME_GRAPHS,
    batch_of_configuration,
    small_batch,
    small_setting,
)
from device_checks import CUDA, DeviceError, DeviceTensor, StandIn, to_device

from lib.model import fragment, matches, pair_scores
from lib.objective import losses, relation
from lib.training import averaging, engine

CONFIGURATIONS = SOME_GRAPHS | POOLED | OTHERS | CROSS_ATTENTION


def run_step(name, precision="fp32", batch=None, steps=1):
    """(mode, report) of the last of some training steps of a configuration."""
    batch = batch or batch_of_configuration(CONFIGURATIONS[name][1])
    with StandIn() as found:
        model, objective, optimizer = small_setting(*CONFIGURATIONS[name], to_device)
        skipped = DeviceTensor(torch.zeros((), dtype=torch.int32))
        for number in range(steps):
            found.operations = found.copies = 0
            engine.seed_step(0, number)
            report = engine.training_step(
                model, objective, optimizer, batch.to(CUDA), use_graph=True,
                hardest=True, precision=precision, skipped=skipped,
            )  # fmt: skip
    return found, report


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_step_stays_on_the_device(name):
    assert bool(run_step(name)[1].is_finite.values)


# the precision is that of the encoders
ENCODERS = [*POOLED, *OTHERS, "fusion, both, trip", "scan t2i", "naaf", "chan, BiGRU"]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_step_in_bf16_stays_on_the_device(name):
    assert bool(run_step(name, "bf16")[1].is_finite.values)


def test_an_average_of_the_weights_stays_on_the_device():
    with StandIn():
        model, objective, optimizer = small_setting(*CONFIGURATIONS["no region MLP"], to_device)
        average = averaging.WeightAverage(model, 0.9)
        for number in range(2):
            engine.seed_step(0, number)
            report = engine.training_step(
                model, objective, optimizer, small_batch().to(CUDA), use_graph=False
            )
            average.update(model, report.is_finite)
    assert int(average.steps.values) == 2
    found, last = (dict(each.named_parameters()) for each in (average.model, model))
    name = "image_encoder.projection.weight"
    assert not torch.equal(found[name].values, last[name].values)


def test_a_step_in_tf32_stays_on_the_device():
    assert bool(run_step("fusion, both, trip", "tf32")[1].is_finite.values)


@pytest.mark.parametrize("name", ["fusion, both, trip", "gpo+relation", "BiGRU", "naaf"])
def test_the_stand_in_computes_what_the_cpu_computes(name, monkeypatch):
    """Two steps, so that the second sees what the first has changed."""
    monkeypatch.setitem(matches.BLOCKS, "cpu", matches.BLOCKS["cuda"])
    monkeypatch.setitem(pair_scores.SCORE_BLOCKS, "cpu", pair_scores.SCORE_BLOCKS["cuda"])
    _, report = run_step(name, steps=2)
    parts = small_setting(*CONFIGURATIONS[name], lambda module: module)
    for number in range(2):
        engine.seed_step(0, number)
        expected = engine.training_step(*parts, small_batch(), use_graph=True, hardest=True)
    torch.testing.assert_close(report.loss.values, expected.loss)
    torch.testing.assert_close(
        report.gradient_norm.values, expected.gradient_norm, rtol=1e-4, atol=0
    )


LENGTHS = (14, 9, 8, 6, 5, 3, 3, 2)


@pytest.mark.parametrize("name", [
    "fusion, both, trip", "standalone, inter, infonce", "gpo", "masked padding", "BiGRU",
    "scan t2i", "scan i2t", "naaf", "chan",
])  # fmt: skip
def test_a_larger_batch_takes_no_more_operations(name):
    """Nothing loops over samples. Blocks are larger than either batch."""
    twice = sorted(LENGTHS * 2, reverse=True)
    small, large = (run_step(name, batch=small_batch(each))[0] for each in (LENGTHS, twice))
    assert small.operations == large.operations and small.copies == large.copies > 0


def test_operations_are_those_of_the_core():
    def work(x):
        y = (x @ x.T).sum(1)
        y.add_(1).unsqueeze(0).view(-1)  # views launch nothing
        return y

    with StandIn() as found:
        x = torch.zeros(3, 3).to(CUDA, non_blocking=True)
        work(x)
    assert found.copies == 1 and found.operations == 4  # copy, mm, sum, add_


ALLOWED = {
    "arithmetic with a number": lambda x, host: 2 * x + 1,
    "a scalar tensor of the host": lambda x, host: x * torch.tensor(2.0),
    "a copy that does not wait": lambda x, host: host.to(x.device, non_blocking=True) + x,
    "an operation on the host": lambda x, host: host[host > 0].tolist(),
    "masked_fill": lambda x, host: x.masked_fill(x > 0, 0),
    "a factory on the device": lambda x, host: torch.arange(4, device=x.device) + x,
    "new_zeros": lambda x, host: x.new_zeros(4) + x,
    "a number where a mask says": lambda x, host: x.clone().index_put_((x > 0,), torch.tensor(0.0)),
    "repeat_interleave with a size":
        lambda x, host: torch.repeat_interleave(x.long().abs() + 1, output_size=10),
    "backward": lambda x, host: (x.clone().requires_grad_() ** 2).sum().backward(),
}  # fmt: skip
REFUSED = {
    "host + device": lambda x, host: x + host,
    "host in place": lambda x, host: x.add_(host),
    "host index": lambda x, host: x[host.long()],
    "host index in index_select": lambda x, host: x.index_select(0, host.long()),
    "host scalar in cat": lambda x, host: torch.cat([x, host[:1]]),
    "host mask": lambda x, host: x.masked_fill(host > 0, 0),
    "host out": lambda x, host: torch.add(x, x, out=host),
    "host factory": lambda x, host: torch.arange(4) < x,
    "host in backward": lambda x, host: x.clone().requires_grad_().backward(host),
    "item": lambda x, host: x.sum().item(),
    "float": lambda x, host: float(x.sum()),
    "if": lambda x, host: 1 if x.sum() > 0 else 0,
    "tolist": lambda x, host: x.tolist(),
    "cpu": lambda x, host: x.cpu(),
    "to cpu": lambda x, host: x.to("cpu", non_blocking=True),
    "copy_ to the host": lambda x, host: host.copy_(x),
    "numpy": lambda x, host: x.cpu().numpy(),
    "nonzero": lambda x, host: x.nonzero(),
    "boolean index": lambda x, host: x[x > 0],
    "boolean index, written": lambda x, host: x.__setitem__(x > 0, x),
    "masked_select": lambda x, host: x.masked_select(x > 0),
    "unique": lambda x, host: x.unique(),
    "unique_consecutive": lambda x, host: x.unique_consecutive(),
    "repeat_interleave": lambda x, host: torch.repeat_interleave(x.long()),
    "bincount": lambda x, host: x.long().bincount(),
    "multinomial": lambda x, host: x.abs().multinomial(1),
    "torch.equal": lambda x, host: torch.equal(x, x),
    "allclose": lambda x, host: torch.allclose(x, x),
    "a range by a device number": lambda x, host: list(range(x.sum().long())),
    "a copy that waits": lambda x, host: host.to(x.device),
    "a tensor of Python numbers": lambda x, host: torch.tensor([1.0, 2.0], device=x.device),
    "too many matrices": lambda x, host: x.new_zeros(2**16, 1, 1) @ x.new_zeros(2**16, 1, 1),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_gpu_does_without_waiting_is_allowed(name):
    with StandIn():
        ALLOWED[name](DeviceTensor(torch.tensor([1.0, -2, 0, 3])), torch.ones(4))


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_refuses_or_waits_for_is_found(name):
    with StandIn(), pytest.raises(DeviceError):
        REFUSED[name](DeviceTensor(torch.tensor([1.0, 2, 0, 3])), torch.ones(4))


def mask_on_the_host(lengths, longest, device=None):
    return torch.arange(longest) < lengths.unsqueeze(1)


def read_the_loss(similarities, positives, margin, negatives, for_captions):
    loss = (margin + similarities).clamp(min=0).sum((1, 2))
    return loss * 2 if loss.sum() > 0 else loss


def count_the_closest(closeness, threshold):
    return closeness >= closeness[closeness > 0].mean()


def pool_a_sample_at_a_time(fragments, lengths):
    return torch.stack([rows[:count].amax(0) for rows, count in zip(fragments, lengths)])


@pytest.mark.parametrize("where, name, mistake, configuration, message", [
    (relation, "connection", count_the_closest, "fusion, both, trip", "boolean index"),
    ("lib.model.pooling", "real_mask", mask_on_the_host, "maxk", "meets tensors of the device"),
    ("graph_lib", "hinge_loss", read_the_loss, "fusion, intra, vse", "item"),
    (losses, "draw_negatives", lambda weights, generator: weights.flatten(0, -2).multinomial(1),
     "fusion, both, trip", "multinomial"),
])  # fmt: skip
def test_a_mistake_planted_in_the_method_is_found(
    where, name, mistake, configuration, message, monkeypatch
):
    target = f"{where if isinstance(where, str) else where.__name__}.{name}"
    monkeypatch.setattr(target, mistake)
    with pytest.raises(DeviceError, match=message):
        run_step(configuration)


def test_a_loop_over_samples_is_found(monkeypatch):
    monkeypatch.setitem(fragment.WITHOUT_WEIGHTS, "max", pool_a_sample_at_a_time)
    with pytest.raises(AssertionError):
        test_a_larger_batch_takes_no_more_operations("max")
