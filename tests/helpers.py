"""What several files of tests share: small data sets, runs of both programs, what they leave,
and comparisons."""

import torch

import eval as evaluation
import train
from lib.data import demo
from lib.training import engine

PROCESS_TIMEOUT = 300  # seconds after which a process is said to hang; a busy machine is slow
SHARED = []  # folders that several tests read


def shared(folder):
    """The same folder, and after every test it must be as it was before: see conftest.py."""
    SHARED.append(folder)
    return folder


def make_data(tmp_path_factory, train, dev, test):
    """A folder of its own with the demo data: this many images in each split."""
    folder = tmp_path_factory.mktemp("data")
    demo.build(folder / "demo_precomp", sizes={"train": train, "dev": dev, "test": test})
    return folder


def fit(options, data, folder, *more):
    """Train into `folder`, returned. options: of the command line, a list."""
    train.main([*options, "--data_path", str(data), "--logger_name", str(folder), *map(str, more)])
    return folder


class Stopped(Exception):
    """Stands for whatever ends a process."""


def stop_at_step(monkeypatch, step):
    """Training raises `Stopped` before that step, counted from 0."""
    compute = engine.training_step
    met = []

    def step_or_stop(*arguments, **settings):
        met.append(None)
        if len(met) > step:
            raise Stopped
        return compute(*arguments, **settings)

    monkeypatch.setattr(engine, "training_step", step_or_stop)


def evaluate(*arguments):
    evaluation.main([str(argument) for argument in arguments])


def read(folder, name="model_best.pth"):
    """The content of a checkpoint file."""
    return torch.load(folder / name, weights_only=True)


def events(folder):
    """What a run told TensorBoard, read as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(
        str(folder), size_guidance={"images": 0, "histograms": 0, "scalars": 0}
    )
    found.Reload()
    return found


def scalars(folder):
    """TensorBoard curves of a run: name -> [(step, value)]."""
    found = events(folder)
    return {
        tag: [(point.step, point.value) for point in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def close(found, expected, absolute=1e-5, relative=0.0):
    """Numbers are equal but for rounding, in the precision of what was found."""
    found = torch.as_tensor(found).detach().cpu()
    expected = torch.as_tensor(expected, dtype=found.dtype).detach().cpu()
    torch.testing.assert_close(found, expected, atol=absolute, rtol=relative)


def normal(*shape, seed=0, dtype=torch.float32):
    """Normally distributed numbers, the same ones in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same(left, right):
    """Equal structure and bit-identical tensors."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right
