"""The predictor: probabilities whatever the memory layout of the image, in the precision that was asked for."""

import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lib.config.sections import Predict
from lib.errors import ArtifactError, ConfigError
from lib.inference.predict import FRAMES, Predictor
from lib.models import build, checkpoint
from lib.scenes.view import View, resize
from lib.stages.predict import Networks
from lib.tasks import Label


class Watched(nn.Module):
    """A 1 x 1 convolution that remembers how its input lay in memory."""

    stride = 32

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(6, 2, 1)
        self.strides = []

    def forward(self, x):
        self.strides.append(x.stride())
        return self.conv(x.float() / 255)


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 64, 96), dtype=np.uint8)


def looks(**changes) -> Predict:
    """Settings of a prediction: float32, one view, and what is asked; windows may be smaller than in an experiment."""
    return Predict.model_construct(**{"precision": "float32", "tta": "none", **changes})


@pytest.mark.parametrize("views", ["none", "flips", "d4"])
def test_the_layout_of_the_image_changes_neither_result_nor_layout_in_the_network(views):
    plain, stacked = image(), np.concatenate([half.transpose(1, 2, 0).copy().transpose(2, 0, 1)
                                              for half in np.split(image(), 2)])  # fmt: skip
    assert stacked.strides != plain.strides, "as images stacked from (H, W, 3) arrays are"
    network = Watched()
    predict = Predictor(network, lambda z: z.softmax(1), looks(tta=views))
    one = predict(plain)
    seen = list(network.strides)
    network.strides.clear()
    np.testing.assert_array_equal(predict(stacked), one)
    assert network.strides == seen
    assert one.shape == (2, 64, 96) and one.dtype == np.float32
    np.testing.assert_allclose(one.sum(0), 1, atol=1e-5)


def test_float16_becomes_bfloat16_on_a_cpu():
    assert Predictor(Watched(), torch.sigmoid, looks(precision="float16")).precision == "bfloat16"


class Blue(nn.Module):
    """Says how blue each pixel is."""

    stride = 32

    def forward(self, x):
        return x[:, 2:3].float() / 255


def smooth(height=64, width=96) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([np.rint(255 * (x + y * k) / (width + height * k)) for k in (0, 1, 2)]).astype(np.uint8)


@pytest.mark.parametrize("view", [View(scale=0.5), View(size=64), View(size=128, fit="square"), View(pixel_size=2.0)])
def test_a_resized_scene_comes_back_at_its_own_size(view):
    picture = smooth()
    probs = Predictor(Blue(), lambda z: z, looks(), view)(picture, pixel_size=1.0)
    assert probs.shape == (1, 64, 96)
    assert np.abs(probs[0] - picture[2] / 255)[2:-2, 2:-2].max() < 0.02  # smooth: little is lost on the way


def test_scales_are_the_mean_of_single_scales():
    picture = image()[:3]
    scales = (0.5, 1.0, 1.5)
    single = [Predictor(Blue(), lambda z: z, looks(scales=(s,)))(picture) for s in scales]
    together = Predictor(Blue(), lambda z: z, looks(scales=scales))(picture)
    np.testing.assert_allclose(together, np.mean(single, 0), atol=1e-6)
    np.testing.assert_allclose(single[1][0], picture[2] / 255, atol=1e-6)
    small = resize(np.ascontiguousarray(picture[2]), (32, 48))
    np.testing.assert_allclose(single[0][0], resize(small / np.float32(255), (64, 96)), atol=1e-6)


class Mean(nn.Module):
    """One logit per frame, as a classifier gives it."""

    stride = 1

    def forward(self, x):
        return x.float().mean((1, 2, 3), keepdim=True) / 255


def test_frames_are_predicted_one_by_one():
    frames = np.random.default_rng(1).integers(0, 256, (FRAMES + 3, 3, 20, 30), np.uint8)
    probs = Predictor(Mean(), lambda z: z, looks(tta="flips"))(frames)
    assert probs.shape == (1, 1, FRAMES + 3)
    np.testing.assert_allclose(probs[0, 0], frames.mean((1, 2, 3)) / 255, atol=1e-5)
    small = Predictor(Mean(), lambda z: z, looks(), View.model_construct(size=10, fit="square"))(frames)
    np.testing.assert_allclose(small[0, 0], frames.mean((1, 2, 3)) / 255, atol=2e-2)


class Corner(nn.Module):
    """Answers differently in every view: the image weighed by the column and row of the window."""

    stride = 32

    def forward(self, x):
        x = x[:, :2].float() / 255
        return x * torch.arange(1.0, x.shape[-1] + 1) / x.shape[-1] * torch.arange(x.shape[-2])[:, None] / x.shape[-2]


@pytest.mark.parametrize("options", [{}, {"tile": 32, "overlap": 0}, {"scales": (0.75, 1.0)}])
def test_every_set_of_views_is_predicted_as_if_alone(options):
    view = View(scale=0.5) if options.get("scales") else View()
    sets = ("none", "hflip", "d4")
    found = Predictor(Corner(), lambda z: z, looks(tta=sets, **options), view).every_set(image())
    assert list(found) == list(sets)
    for name, probs in found.items():
        np.testing.assert_array_equal(
            probs, Predictor(Corner(), lambda z: z, looks(tta=name, **options), view)(image())
        )
    assert not np.array_equal(found["none"], found["d4"])


# ---- float32 without TF32 ------------------------------------------------------------------------------
@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_as_the_settings_say_while_it_predicts_and_as_before_afterwards(allowed):
    """torch lets cuDNN use TF32 unless it is told otherwise, which is not the float32 that was promised."""

    def flags():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    class Seen(Watched):
        def forward(self, x):
            self.flags = flags()
            return super().forward(x)

    before, network = flags(), Seen()
    Predictor(network, torch.sigmoid, looks(tf32=allowed))(image())
    assert network.flags == (allowed, allowed) and flags() == before


# ---- compiled ------------------------------------------------------------------------------------------
class Deep(nn.Module):
    """Convolution, norm, activation, a smaller scale and back."""

    stride = 32

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        smaller = [nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2)]
        larger = [nn.Conv2d(8, 2, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear")]
        self.layers = nn.Sequential(*smaller, *larger)

    def forward(self, x):
        return self.layers(x.float() / 255)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_a_compiled_network_answers_as_the_plain_one(precision, close):
    plain, fast = (Predictor(Deep(), torch.sigmoid, looks(tta="hflip", precision=precision, compile=compiles, tile=64))
                   for compiles in (False, True))  # fmt: skip
    for shape in ((6, 64, 96), (6, 32, 40)):  # another size is another graph
        scene = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        np.testing.assert_allclose(fast(scene), plain(scene), atol=close)


@pytest.mark.slow
def test_a_network_of_the_pipeline_is_compiled_without_a_break(monkeypatch):
    """One graph from the first layer to the last, traced as for any backend; the answers are the same."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    network = build("siamese", classes=2, images=2, encoder="resnet18", encoder_weights="none",
                    decoder="unet", decoder_channels=[16, 16, 8, 8, 8], fusion="concat", bottleneck="both")  # fmt: skip
    plain, fast = (Predictor(network, torch.sigmoid, looks(tile=64, compile=compiles)) for compiles in (False, True))
    np.testing.assert_allclose(fast(image()), plain(image()), atol=1e-5)
    assert len(graphs) == 1


def test_a_network_that_cannot_be_compiled_says_so(monkeypatch):
    def backend(*_):
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(ConfigError, match="predict.compile: torch could not compile .*no compiler here.*false"):
        Predictor(Deep(), torch.sigmoid, looks(compile=True))(image())


def test_a_network_of_the_same_classes_in_another_order_is_refused(tmp_path):
    """It may be of ``--inputs``, where nothing else compares what it was trained on with the experiment."""
    checkpoint.describe(tmp_path, {}, ("image",), ("cat", "dog"))
    run = SimpleNamespace(
        store=SimpleNamespace(require=lambda unit: tmp_path),
        graph=SimpleNamespace(checkpoint=lambda name, fold: None),
        config=SimpleNamespace(models={"net": SimpleNamespace(task="cls")}),
        competition=SimpleNamespace(tasks={"cls": Label(("dog", "cat"))}),
    )
    run.on = lambda device: run
    with pytest.raises(ArtifactError, match=r"\(dog, cat\), found others \(cat, dog\)"):
        Networks(torch.device("cpu")).load(run, "net", 0)
