"""Licences of encoders: what timm and smp say, and who is warned."""

import pytest
import segmentation_models_pytorch as smp
import timm
from packaging import version

from lib.models.licences import NON_COMMERCIAL, licence, warning

TIMM = version.parse(timm.__version__)
stated = pytest.mark.skipif(TIMM < version.parse("1.0.22"), reason="timm states every licence from 1.0.22 on")


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("mit_b3", "nvidia-source-code-license"),
        ("efficientnet-b4", "apache-2.0"),
        ("resnet34", "bsd-3-clause"),
        ("se_resnext50_32x4d", "apache-2.0"),
        ("resnext50_32x4d", "bsd-3-clause"),
        ("resnext101_32x16d", "cc-by-nc-4.0"),  # smp has no ImageNet weights of it, only Instagram's
        ("tu-swin_tiny_patch4_window7_224", "mit"),
        ("swin_tiny_patch4_window7_224", "mit"),
        pytest.param("tu-tf_efficientnet_b4.ns_jft_in1k", "apache-2.0", marks=stated),
        ("tu-convnextv2_tiny.fcmae_ft_in22k_in1k", "cc-by-nc-4.0"),
        ("tu-resnet50.fb_swsl_ig1b_ft_in1k", "cc-by-nc-4.0"),
        pytest.param("tu-test_vit", "apache-2.0", marks=stated),
        ("tu-tf_efficientnet_b4.no_such_tag", None),
        ("tu-no_such_model", None),
        ("none", None),
    ],
)
def test_licence_of(encoder, expected):
    assert licence(encoder) == expected


def test_every_native_encoder_has_one():
    assert [name for name in smp.encoders.encoders if not licence(name)] == []


def test_what_timm_calls_non_commercial_is_in_the_table():
    """And nothing else is there but Nvidia's, as far as this timm knows: each release names more licences."""
    known = {timm.get_pretrained_cfg(name).license for name in timm.list_pretrained()}
    marked = {name for name in known if name and any(part in name for part in ("-nc", "noncommercial", "amlr", "seer"))}
    table = NON_COMMERCIAL.keys() - {"nvidia-source-code-license"}
    assert marked <= table and (marked == table or TIMM < version.parse("1.0.31"))


def test_a_warning_is_one_sentence_and_only_for_what_excludes_commercial_use():
    text = warning("mit_b0")
    assert "mit_b0" in text and "nvidia-source-code-license" in text and "\n" not in text
    assert warning("resnet34") is None
    assert warning("none") is None


def test_random_weights_are_free_but_licensed_code_is_not():
    encoder = "tu-convnextv2_tiny.fcmae_ft_in22k_in1k"
    assert warning(encoder) and warning(encoder, "none") is None
    assert warning("mit_b0", "none")
