"""Alike scenes are found by hash, by embedding and by place, each as by a slow search."""

import itertools
from math import asin, cos, radians, sin, sqrt

import cv2
import numpy as np
import pytest

from lib.scenes import pairs


def picture(seed: int, size: int = 256) -> np.ndarray:
    """A picture with large and small features: (size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    field = sum(
        weight * cv2.resize(rng.normal(size=(n, n, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
        for n, weight in ((5, 26), (17, 16), (60, 9), (size, 4))
    )
    return np.clip(100 + field, 0, 255).astype(np.uint8)


def bits_apart(a: int, b: int) -> int:
    return bin(a ^ b).count("1")


# ---- hashes -------------------------------------------------------------------------------------------
COPIES = {
    "darker": lambda image: np.clip(image * 0.7 + 8, 0, 255).astype(np.uint8),
    "brighter": lambda image: np.clip(image * 1.2 + 5, 0, 255).astype(np.uint8),
    "other gain per channel": lambda image: np.clip(image * (1.1, 1.0, 0.9), 0, 255).astype(np.uint8),
    "JPEG": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1),
    "half size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "odd size": lambda image: cv2.resize(image, (301, 277)),
}


@pytest.mark.parametrize("change", COPIES)
def test_copies_keep_their_hash_within_the_threshold(change):
    for seed in range(8):
        image = picture(seed)
        apart = bits_apart(pairs.perceptual_hash(image), pairs.perceptual_hash(COPIES[change](image)))
        assert apart <= pairs.DUPLICATE_BITS, (seed, apart)


def test_other_scenes_have_other_hashes():
    hashes = [pairs.perceptual_hash(picture(seed)) for seed in range(60)]
    apart = [bits_apart(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > pairs.DUPLICATE_BITS
    assert 28 < np.mean(apart) < 35


def test_flat_pictures_have_the_flat_hash_and_others_never():
    for value in (0, 90, 255):
        assert pairs.perceptual_hash(np.full((64, 64, 3), value, np.uint8)) == pairs.FLAT
    for seed in range(20):
        assert 20 < bin(pairs.perceptual_hash(picture(seed))).count("1") <= 32


def test_near_duplicates_equal_a_slow_search():
    rng = np.random.default_rng(0)
    hashes = [int(x) for x in rng.integers(1, 2**63, 600)]
    for i, j, flips in [(3, 500, 0), (4, 5, 6), (255, 256, 3), (257, 599, 7), (10, 300, 1)]:
        hashes[j] = hashes[i] ^ sum(1 << int(bit) for bit in rng.choice(64, flips, replace=False))
    hashes[100] = hashes[101] = pairs.FLAT
    slow = [
        (i, j, bits_apart(hashes[i], hashes[j]))
        for i in range(600)
        for j in range(i + 1, 600)
        if bits_apart(hashes[i], hashes[j]) <= 6 and pairs.FLAT not in (hashes[i], hashes[j])
    ]
    assert sorted(map(tuple, pairs.near_duplicates(hashes, 6).tolist())) == slow
    assert len(slow) == 4
    assert pairs.near_duplicates([], 6).shape == (0, 3)


def test_scenes_of_several_frames_pair_by_their_nearest_frames():
    rng = np.random.default_rng(2)
    sizes = [1, 3, 0, 2, 300, 1, 3, 5] * 5  # 300 frames: more than one block
    hashes = [[int(x) for x in rng.integers(1, 2**63, n)] for n in sizes]
    hashes[9][2] = hashes[1][0] ^ 0b111
    hashes[11][0] = hashes[1][2] ^ 0b1  # the same frame as below: the nearest counts, once
    hashes[11][1] = hashes[1][2]
    hashes[36][299] = hashes[4][7] ^ 0b11
    hashes[14] = [pairs.FLAT, hashes[0][0], pairs.FLAT]
    hashes[15][1] = pairs.FLAT
    slow = []
    for i, j in itertools.combinations(range(len(sizes)), 2):
        seen = [bits_apart(a, b) for a in hashes[i] for b in hashes[j] if pairs.FLAT not in (a, b)]
        if seen and min(seen) <= 6:
            slow.append((i, j, min(seen)))
    assert slow == [(0, 14, 0), (1, 9, 3), (1, 11, 0), (4, 36, 2)]
    assert list(map(tuple, pairs.near_duplicates(hashes, 6).tolist())) == slow


# ---- embeddings ---------------------------------------------------------------------------------------
def test_look_alikes_equal_a_slow_search():
    rng = np.random.default_rng(3)
    vectors = [rng.normal(size=(n, 8)).astype(np.float32) for n in [1, 3, 2, 0, 1, 280, 2] * 4]
    vectors = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    vectors[8][1] = 0.0  # an image without structure
    vectors[9][:] = 0.0
    vectors[13] = None  # not embedded
    vectors[20][1] = vectors[0][0]
    slow = {}
    for i, j in itertools.combinations(range(len(vectors)), 2):
        if vectors[i] is not None and vectors[j] is not None and len(vectors[i]) and len(vectors[j]):
            slow[i, j] = max(float(np.dot(a, b)) for a in vectors[i] for b in vectors[j])
    wanted = {pair: cosine for pair, cosine in slow.items() if cosine >= 0.85}
    assert 5 < len(wanted) < len(slow) / 2
    found, cosine = pairs.look_alikes(vectors, 0.85)
    assert list(map(tuple, found.tolist())) == list(wanted)
    np.testing.assert_allclose(cosine, list(wanted.values()), atol=1e-6)
    assert dict(zip(map(tuple, found.tolist()), cosine))[0, 20] == pytest.approx(1.0)
    assert cosine.max() <= 1.0
    assert not any(9 in pair for pair in found.tolist())


def test_nothing_to_compare_gives_no_pairs():
    for nothing in ([], [None], [None, np.ones((1, 4), np.float32)], [np.empty((0, 4), np.float32)] * 3):
        found, cosine = pairs.look_alikes(nothing)
        assert found.shape == (0, 2) and cosine.shape == (0,)


def test_a_video_is_known_by_its_first_middle_and_last_frame():
    video = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1) * np.ones((1, 4, 5, 3), np.uint8)
    assert [int(frame[0, 0, 0]) for frame in pairs.frames(video)] == [0, 3, 6]
    assert [len(pairs.frames(video[:n])) for n in range(4)] == [0, 1, 2, 3]
    (image,) = pairs.frames(video[2])
    assert image.shape == (4, 5, 3)


# ---- neighbours ---------------------------------------------------------------------------------------
def haversine_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    (lng1, lat1), (lng2, lat2) = (tuple(map(radians, place)) for place in (a, b))
    h = sin((lat2 - lat1) / 2) ** 2 + cos(lat1) * cos(lat2) * sin((lng2 - lng1) / 2) ** 2
    return 2 * 6371.0 * asin(sqrt(h))


def test_neighbours_equal_a_slow_search():
    rng = np.random.default_rng(1)
    places = [(float(x), float(y)) for x, y in rng.uniform((-122.80, 38.40), (-122.70, 38.50), (200, 2))]
    places += [(179.9999, -18.0), (-179.9999, -18.0)]  # 21 m apart, across the date line
    with_gaps = [None if i % 7 == 0 else place for i, place in enumerate(places)]
    slow = [
        (i, j)
        for i in range(len(places))
        for j in range(i + 1, len(places))
        if with_gaps[i] and with_gaps[j] and haversine_km(places[i], places[j]) <= 0.75
    ]
    assert (200, 201) in slow
    assert list(map(tuple, pairs.neighbours(with_gaps, 0.75).tolist())) == slow
    assert pairs.neighbours([None, (0.0, 0.0)], 1.0).shape == (0, 2)
