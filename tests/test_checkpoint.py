"""network.json may come from anywhere: it never loads other weights, and odd contents are damage with the way out."""

import json

import pytest
import timm
import torch

from lib.errors import ArtifactError, ConfigError
from lib.models import build, checkpoint, weights

NETWORK = {"architecture": "segmentation", "encoder": "tu-test_efficientnet", "classes": 2, "images": 1,
           "decoder": "unet", "decoder_channels": [8, 8, 8, 8], "upsample_logits": 2}  # fmt: skip
LABELS = {"architecture": "classifier", "encoder": "tu-test_efficientnet", "classes": 2, "images": 1}


@pytest.fixture
def folder(tmp_path):
    network = build(**NETWORK)
    checkpoint.describe(tmp_path, NETWORK, ("image",), ("a", "b"))
    checkpoint.save_weights(tmp_path, network.state_dict())
    return tmp_path


def change(folder, **changes):
    path = folder / checkpoint.DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("setting", ["hub", "bundled", "/etc/passwd", "https://example.org/x.pth", ["a"], 3])
def test_encoder_weights_of_a_description_are_not_looked_for(folder, monkeypatch, setting):
    def looked(*arguments, **more):
        raise AssertionError("weights were looked for")

    for name in ("_download", "_search", "_bundled", "bundled", "_read"):
        monkeypatch.setattr(weights, name, looked)
    change(folder, network={**NETWORK, "encoder_weights": setting})
    assert checkpoint.read_description(folder)["network"]["encoder_weights"] == "none"
    mine = checkpoint.read_weights(folder)
    assert all(torch.equal(tensor, mine[name]) for name, tensor in checkpoint.load_network(folder).state_dict().items())


@pytest.mark.parametrize("network", [NETWORK, LABELS], ids=["segmentation", "classifier"])
@pytest.mark.parametrize("option", [
    {"pretrained": True}, {"checkpoint_path": "/etc/passwd"}, {"weights": True}, {"cache_dir": "/tmp"},
    {"pretrained_cfg": {"file": "/etc/passwd"}}, {"pretrained_cfg_overlay": {"url": "https://example.org/x.pth"}},
], ids=lambda option: next(iter(option)))  # fmt: skip
def test_no_option_of_an_encoder_loads_weights(folder, monkeypatch, network, option):
    def looked(*arguments, **more):
        raise AssertionError("timm loads weights")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", looked)
    monkeypatch.setattr(timm.models._factory, "load_checkpoint", looked)
    with pytest.raises(ConfigError, match="would load weights; name them in encoder_weights"):
        build(**network, encoder_options=option)
    change(folder, network={**network, "encoder_options": option})
    with pytest.raises(ArtifactError, match="can no longer be built .*would load weights"):
        checkpoint.load_network(folder)


@pytest.mark.parametrize("encoder", ["hf-hub:someone/net", "tu-hf-hub:someone/net", "local-dir:/tmp", "tu-/etc/passwd"])
@pytest.mark.parametrize("network", [NETWORK, LABELS], ids=["segmentation", "classifier"])
def test_no_name_of_an_encoder_fetches_anything(folder, network, encoder):
    change(folder, network={**network, "encoder": encoder})
    with pytest.raises(ArtifactError, match="can no longer be built"):
        checkpoint.load_network(folder)


@pytest.mark.parametrize("content", [
    "[]", "3", "null", "{}", "{", "", "[" * 5000, '{"network": [], "images": ["image"], "classes": ["a", "b"]}',
    '{"network": {}, "images": "image", "classes": ["a", "b"]}', '{"network": {}, "images": ["image"], "classes": [1]}',
    '{"network": {}, "images": [], "classes": ["a", "b"]}', '{"network": {}, "images": ["image"]}', "\xff",
])  # fmt: skip
def test_odd_contents_of_a_description_are_damage_with_the_way_out(folder, content):
    (folder / checkpoint.DESCRIPTION).write_bytes(content.encode("latin-1"))
    with pytest.raises(ArtifactError, match="network.json: missing or damaged .*train again with --force"):
        checkpoint.read_description(folder)


@pytest.mark.parametrize("network", [
    {}, {**NETWORK, "classes": "two"}, {**NETWORK, "classes": -1}, {**NETWORK, "encoder": 3},
    {**NETWORK, "images": None}, {**NETWORK, "decoder_channels": "many"}, {**NETWORK, "decoder_channels": [8]},
    {**NETWORK, "architecture": []}, {**NETWORK, "encoder_options": [1]}, {**NETWORK, "auxiliary": [1]},
    {**NETWORK, "normalize": {}},
    {**LABELS, "drop_rate": "much"}, {**LABELS, "encoder": []},
])  # fmt: skip
def test_a_description_of_no_network_is_a_sentence(folder, network):
    change(folder, network=network)
    with pytest.raises(ArtifactError, match="can no longer be built|do not belong together|parts that its weights"):
        checkpoint.load_network(folder)
