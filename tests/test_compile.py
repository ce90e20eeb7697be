"""torch.compile and cuDNN's choice of algorithms: names and losses stay, and a failure is a sentence."""

import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from test_fit import fit, network, train
from torch import nn

from lib.errors import ConfigError
from lib.models.layers import Network
from lib.run import runtime


class Few(Network):
    """A network of few kernels, each of which the compiler takes seconds for."""

    stride, source = 1, None

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head(self.encoder(x.float() / 255))


@pytest.fixture
def backend(monkeypatch):
    """Return a function that makes torch.compile take another backend than the one that calls a C compiler."""
    own = torch.compile
    return lambda name: monkeypatch.setattr(torch, "compile", partial(own, backend=name))


def both(tmp_path, section, net=network):
    """Train as it is and compiled: the losses, and the saved weights."""
    logs, weights = [], []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        folder.mkdir()
        logs.append([line["loss"] for line in fit(folder, train(**section, compile=compiled), net=net())])
        weights.append(load_file(folder / "best.safetensors"))
    return logs, weights


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_under_the_same_names_through_a_thaw(tmp_path, backend):
    backend("aot_eager")
    section = {"epochs": 2, "freeze_encoder_epochs": 1, "ema": 0.9, "optimizer": {"lr": 1e-4}}
    (plain, compiled), weights = both(tmp_path, section)
    assert compiled == pytest.approx(plain, rel=1e-3)
    start = network().state_dict()
    assert weights[0].keys() == weights[1].keys() == start.keys()
    moved = [name for name, tensor in weights[1].items() if not tensor.equal(start[name])]
    encoder = [name for name in moved if name.startswith("encoder.") and name.endswith("weight")]
    assert encoder, "the encoder thawed in the second epoch"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_the_default_backend_learns_the_same(tmp_path):
    (plain, compiled), _ = both(tmp_path, {"epochs": 2, "optimizer": {"lr": 1e-4}}, Few)
    assert compiled == pytest.approx(plain, rel=1e-2)


@pytest.mark.slow
def test_a_failure_to_compile_is_a_sentence(tmp_path, backend):
    def broken(graph, inputs):
        raise RuntimeError("no compiler on this machine")

    backend(broken)
    with pytest.raises(ConfigError, match=r"train\.compile: torch could not compile .*no compiler.*; set it to false"):
        fit(tmp_path, train(epochs=1, compile=True))


@pytest.mark.parametrize("wanted", [True, False])
def test_cudnn_times_its_algorithms_only_where_results_may_differ(monkeypatch, wanted):
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, name == "benchmark" and wanted)  # the wrong way round
    runtime.deterministic(wanted)
    assert torch.backends.cudnn.deterministic is wanted and torch.backends.cudnn.benchmark is not wanted
