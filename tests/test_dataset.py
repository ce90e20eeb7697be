"""Sampling: pure in (seed, sample), the 2020 repetition, focus on rare classes, and batches shared by ranks."""

import time
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lib.competitions.contract import Scene
from lib.config.sections import Sampling
from lib.errors import ConfigError, DataError
from lib.run import cores
from lib.scenes.augment import build
from lib.tasks import BinaryMask, MulticlassMask, MultilabelMask
from lib.training.dataset import (
    BatchSampler,
    CropDataset,
    FrameDataset,
    TrainingSet,
    components,
    focus_values,
    repeat_scenes,
    source_weights,
)

PAIR = ("pre", "post")
CLASSES = ("background", "no-damage", "minor-damage", "major-damage", "destroyed")


SCENES = [Scene(f"{number:08d}", {}) for number in range(7)]


def read(scene: Scene, image: str) -> np.ndarray:
    rng = np.random.default_rng([int(scene.id), PAIR.index(image)])
    return rng.integers(0, 256, (60, 70, 3), dtype=np.uint8)


def target(scene: Scene) -> np.ndarray:
    """Scene k holds the classes 1..k-2, each a block; scenes 0..2 hold none."""
    mask = np.zeros((60, 70), np.uint8)
    for value in range(1, int(scene.id) - 1):
        mask[10 * value : 10 * value + 6, 40:48] = value
    return mask


def stream(kind, read, target, scenes, images, preset="none", *, seed, order=None, teacher=None, cache="none",
           focus=None, weights=None, **sampling):  # fmt: skip
    """A stream of samples; ``focus`` by class index, and then of every crop where nothing else is said."""
    if focus:
        sampling = {"focus": {CLASSES[value]: w for value, w in focus.items()}, "focus_probability": 1.0} | sampling
    source = TrainingSet(MulticlassMask(CLASSES), scenes, images, read, target, order, weights, teacher)
    return kind(source, build(preset, 32, images), Sampling(**sampling), seed, cache)


def dataset(preset: str = "light", scenes=SCENES, **options) -> CropDataset:
    return stream(CropDataset, read, target, scenes, PAIR, preset, **({"seed": 5} | options))


def samples_equal(a, b) -> bool:
    return torch.equal(a["image"], b["image"]) and torch.equal(a["target"], b["target"]) and a["id"] == b["id"]


def test_an_item_is_the_stacked_images_and_their_target():
    data = dataset("none")
    item = data[0]
    assert item["image"].shape == (6, 32, 32) and item["image"].dtype == torch.uint8
    assert item["target"].shape == (32, 32) and item["target"].dtype == torch.uint8
    scene = next(scene for scene in SCENES if scene.id == item["id"])
    windows = [
        np.dstack([read(scene, "pre"), read(scene, "post"), target(scene)])[top : top + 32, left : left + 32]
        for top in range(29)
        for left in range(39)
    ]
    crop = torch.cat([item["image"], item["target"][None]]).permute(1, 2, 0).numpy()
    assert sum(np.array_equal(crop, window) for window in windows) == 1


def test_a_sample_depends_on_seed_and_number_alone():
    a, b, other = dataset(), dataset(), dataset(seed=6)
    forward, backward = [a[i] for i in range(20)], [b[i] for i in reversed(range(20))][::-1]
    assert all(samples_equal(x, y) for x, y in zip(forward, backward))
    assert not any(samples_equal(x, other[i]) for i, x in enumerate(forward))
    assert len({x["image"].numpy().tobytes() for x in forward}) == 20


def test_workers_and_epochs_do_not_change_the_stream():
    def two_epochs(workers):
        data = dataset(focus={1: 1.0, 2: 1.0})
        sampler = BatchSampler(len(data), batch_size=3)
        loader = DataLoader(
            data,
            batch_sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            timeout=30 if workers else 0,
        )
        batches = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            batches += list(loader)
        return batches

    alone = two_epochs(0)
    assert len(alone) == 4
    assert len({row.numpy().tobytes() for batch in alone for row in batch["image"]}) == 12
    for workers in (1, 2):
        for a, b in zip(alone, two_epochs(workers), strict=True):
            assert torch.equal(a["image"], b["image"]) and torch.equal(a["target"], b["target"]) and a["id"] == b["id"]


FROM = ("HPA", "HuBMAP", "HPA", "", "HPA", "HuBMAP", "extra")


def weighted(kind=CropDataset, target=target, order=None, sources=None, **options):
    sources = {"HuBMAP": 2.5, "extra": 0} if sources is None else sources
    scenes = [replace(scene, source=name) for scene, name in zip(SCENES, FROM, strict=True)]
    weights = source_weights(scenes, sources, range(7) if order is None else order)
    images, look = (PAIR, read) if kind is CropDataset else (("frames",), frames)
    return stream(kind, look, target, scenes, images, order=order, weights=weights, **({"seed": 5} | options))


def test_scenes_come_as_often_as_their_source_weighs():
    """Row H28. Weights 1, 2.5, 1, 1, 1, 2.5 and 0 of seven scenes; the sixth part of 9 is one of six in a round."""
    data = weighted()
    assert len(data) == 6 and [data.scene_of(i) for i in range(60)] != [data.scene_of(i + 60) for i in range(60)]
    rounds = [Counter(data.scene_of(6 * number + i) for i in range(6)) for number in range(600)]
    expected = {0: 6 / 9, 1: 15 / 9, 2: 6 / 9, 3: 6 / 9, 4: 6 / 9, 5: 15 / 9}
    for scene, often in expected.items():
        counts = [count[scene] for count in rounds]
        assert set(counts) <= {int(often), int(often) + 1}
        assert np.mean(counts) == pytest.approx(often, abs=0.06)  # three standard deviations of a mean of 600
    assert sum(count[6] for count in rounds) == 0
    again = weighted()
    assert [again.scene_of(i) for i in reversed(range(600))] == [data.scene_of(i) for i in range(600)][::-1]


def test_without_weights_and_with_equal_ones_a_round_holds_every_scene_once():
    assert weighted(sources={}).weights is None
    for data in (weighted(sources={}), weighted(sources={"HPA": 1.0}), weighted(sources={name: 3 for name in FROM})):
        assert all(sorted(data.scene_of(7 * k + i) for i in range(7)) == list(range(7)) for k in range(20))
    plain = dataset()
    assert [plain.scene_of(i) for i in range(50)] == [weighted(sources={}).scene_of(i) for i in range(50)]


def test_weights_of_sources_go_with_repetition_balance_and_focus():
    drawn = Counter(weighted(order=[0, 0, 1, 2]).scene_of(i) for i in range(4 * 500))  # of 5.5: 2, 2.5 and 1
    assert [drawn[k] / 500 for k in (0, 1, 2)] == pytest.approx([4 * 2 / 5.5, 4 * 2.5 / 5.5, 4 / 5.5], abs=0.08)
    balanced = weighted(FrameDataset, classes_of, balance=True)  # scene 0 to 3 are class 0: 1, 2.5, 1, 1
    drawn = Counter(balanced.scene_of(i) for i in range(2 * 1000))
    assert [drawn[k] / 1000 for k in (0, 1, 4)] == pytest.approx([1 / 5.5, 2.5 / 5.5, 1], abs=0.05) and not drawn[6]
    focused = weighted(focus={1: 1.0}, focus_first="class")
    rng = np.random.default_rng(0)
    drawn = Counter(focused.draw_class(rng)[0] for _ in range(3000))  # class 1 is in scenes 3, 4, 5 and 6
    assert [drawn[k] / 3000 for k in (3, 4, 5, 6)] == pytest.approx([1 / 4.5, 1 / 4.5, 2.5 / 4.5, 0], abs=0.03)


def test_scenes_that_are_added_keep_their_share_and_nothing_left_is_refused():
    """Pseudo-labelled scenes of weight 1 beside labelled ones whose weights have the mean 1."""
    scenes = [Scene(str(k), {}, name) for k, name in enumerate("aabb")]
    weights = source_weights(scenes, {"a": 9.0}, [0, 1, 2, 3])
    assert np.mean(weights) == pytest.approx(1) and weights[0] == pytest.approx(9 * weights[2])
    assert source_weights(scenes, {}, [0, 1]) is None
    with pytest.raises(DataError, match="sampling.sources: expected training scenes with a weight above 0"):
        source_weights(scenes, {"a": 0.0}, [0, 1])


def test_workers_do_not_wait_for_opencvs_threads():
    cv2.setNumThreads(2)
    cv2.warpAffine(np.zeros((1000, 1000, 3), np.uint8), np.eye(2, 3) + 0.1, (1000, 1000))  # starts the threads
    time.sleep(0.05)  # and lets them fall asleep
    loader = DataLoader(
        dataset("selim2020_loc"),
        batch_size=2,
        num_workers=2,
        timeout=30,
        worker_init_fn=lambda worker: cv2.setNumThreads(1),
    )
    assert len(list(loader)) == 4


def test_a_resumed_run_sees_what_an_unbroken_one_sees():
    unbroken, resumed = BatchSampler(7, 2), BatchSampler(7, 2)
    epochs = []
    for epoch in range(3):
        unbroken.set_epoch(epoch)
        epochs.append(list(unbroken))
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]


def test_repetition_is_the_2020_list():
    strata = [
        {"minor": False, "major": False, "destroyed": False, "empty": True},
        {"minor": True, "major": False, "destroyed": False, "empty": False},
        {"minor": True, "major": True, "destroyed": True, "empty": False},
        {"minor": False, "major": False, "destroyed": True, "empty": False},
    ]
    order = repeat_scenes(strata, ("minor", "major", "destroyed"))
    assert Counter(order) == {0: 1, 1: 2, 2: 4, 3: 2}
    assert Counter(repeat_scenes(strata, ("minor",), multiplier=3)) == {0: 3, 1: 6, 2: 6, 3: 3}
    assert repeat_scenes(strata) == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="medium"):
        repeat_scenes(strata, ("medium",))


def test_every_round_is_a_new_permutation_of_the_order():
    order = [0, 1, 1, 2, 2, 2]
    data = dataset(scenes=SCENES[:3], order=order)
    assert len(data) == 6
    rounds = [[data.scene_of(6 * r + i) for i in range(6)] for r in range(20)]
    assert all(sorted(r) == order for r in rounds)
    assert len({tuple(r) for r in rounds}) > 10


def test_a_short_epoch_starves_no_scene():
    data = dataset(samples=3)
    assert len(data) == 3
    sampler = BatchSampler(len(data), 1)
    seen = Counter()
    for epoch in range(7):
        sampler.set_epoch(epoch)
        seen.update(data.scene_of(i) for batch in sampler for i in batch)
    assert seen == {index: 3 for index in range(7)}


@pytest.mark.parametrize("length, batch", [(12, 4), (13, 4), (3, 8)])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_see_the_batches_of_one_process(length, batch, world):
    one = BatchSampler(length, batch)
    ranks = [BatchSampler(length, batch, rank, world) for rank in range(world)]
    stream = []
    for epoch in range(3):
        for sampler in (one, *ranks):
            sampler.set_epoch(epoch)
        assert len(one) == len(ranks[0]) == max(length // batch, 1)
        for whole, parts in zip(one, zip(*ranks, strict=True), strict=True):
            assert [i for part in parts for i in part] == whole
            assert len({len(part) for part in parts}) == 1
            stream += whole
    assert stream == list(range(len(stream)))


def test_a_batch_the_ranks_cannot_share_is_refused():
    with pytest.raises(ConfigError, match="batch size"):
        BatchSampler(10, 3, 0, 2)
    with pytest.raises(ConfigError, match="batch size"):
        BatchSampler(10, 0)


def test_components_equal_a_flood_fill():
    rng = np.random.default_rng(0)
    mask = (rng.random((40, 50)) < 0.3).astype(np.uint8) * 3
    mask[::2, ::2] = 0
    left = {tuple(pixel) for pixel in np.argwhere(mask == 3)}
    expected = []
    while left:
        stack, component = [left.pop()], set()
        while stack:
            y, x = stack.pop()
            component.add((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            stack += around
        expected.append(component)
    found = components(mask, 3)
    assert len(found) == len(expected)
    boxes = {
        (min(y for y, _ in c), min(x for _, x in c), max(y for y, _ in c) + 1, max(x for _, x in c) + 1): c
        for c in expected
    }
    assert {focus.box for focus in found} == set(boxes)
    if len(boxes) == len(expected):
        assert all(focus.point in boxes[focus.box] for focus in found)
    assert all(mask[focus.point] == 3 for focus in found)


def test_more_components_than_a_byte_can_count():
    mask = np.zeros((80, 80), np.uint8)
    mask[::4, ::4] = 2
    assert len({focus.point for focus in components(mask, 2)}) == 400
    assert components(mask, 1) == []


def test_focus_follows_the_weights_among_the_classes_present():
    data = dataset(scenes=SCENES[5:6], focus={1: 3.0, 2: 0.0, 3: 1.0, 4: 9.0})  # scene 5 holds 1, 2, 3
    mask = target(SCENES[5])
    rng = np.random.default_rng(0)
    drawn = Counter(int(mask[data.choose_focus(rng, 0, mask).point]) for _ in range(800))
    assert set(drawn) == {1, 3}
    assert abs(drawn[1] / 800 - 0.75) < 0.06


def test_small_and_large_components_are_equally_likely():
    mask = np.zeros((60, 70), np.uint8)
    mask[:30] = 1
    mask[50, 60] = 1
    data = stream(CropDataset, read, lambda scene: mask, SCENES[:1], PAIR, seed=0, focus={1: 1.0})
    rng = np.random.default_rng(0)
    small = np.mean([data.choose_focus(rng, 0, mask).point == (50, 60) for _ in range(600)])
    assert abs(small - 0.5) < 0.08


def test_every_focused_crop_shows_its_class_and_empty_scenes_still_serve():
    data = dataset("none", scenes=SCENES, focus={4: 1.0})  # only scene 6 holds class 4
    shown = {}
    for sample in range(70):
        item = data[sample]
        shown.setdefault(item["id"], []).append(bool((item["target"] == 4).any()))
    assert len(shown) == 7
    assert all(shown["00000006"])
    half = dataset("none", scenes=SCENES[6:], focus={4: 1.0}, focus_probability=0.5)
    without = dataset("none", scenes=SCENES[6:])
    rate = np.mean([(half[i]["target"] == 4).any() for i in range(200)])
    base = np.mean([(without[i]["target"] == 4).any() for i in range(200)])
    assert abs(rate - (0.5 + 0.5 * base)) < 0.1 and base < 0.8


def test_focus_is_named_by_class():
    cls, loc = MulticlassMask(CLASSES), BinaryMask(("building",))
    assert focus_values(cls, {"minor-damage": 1, "destroyed": 0.5}) == {2: 1.0, 4: 0.5}
    assert focus_values(loc, {"building": 1}) == {1: 1.0}
    with pytest.raises(ConfigError, match="minor"):
        focus_values(loc, {"minor-damage": 1})


def test_the_cache_changes_no_sample_and_reads_each_scene_once():
    reads = []

    def counting(scene, image):
        reads.append((scene.id, image))
        return read(scene, image)

    plain = dataset("selim2020_loc", focus={1: 1.0})
    cached = stream(
        CropDataset,
        counting,
        target,
        SCENES,
        PAIR,
        "selim2020_loc",
        seed=5,
        focus={1: 1.0},
        cache="memory",
    )
    assert sorted(reads) == sorted((scene.id, image) for scene in SCENES for image in PAIR)
    for _ in range(2):  # the second time shows that serving did not write into the cache
        assert all(samples_equal(plain[i], cached[i]) for i in range(14))
    assert len(reads) == 14


def test_one_image_of_a_scene_may_be_enough():
    data = stream(CropDataset, read, target, SCENES, ("post",), "selim2020_cls", seed=0)
    assert data[0]["image"].shape == (3, 32, 32)


def test_bad_input_names_the_scene():
    def odd_read(scene, image):
        return read(scene, image)[:-1] if image == "post" else read(scene, image)

    with pytest.raises(DataError, match="0000000. *, image post"):
        stream(CropDataset, odd_read, target, SCENES, PAIR, seed=0)[0]
    with pytest.raises(DataError, match="target"):
        stream(CropDataset, read, lambda scene: target(scene).astype(int), SCENES, PAIR, seed=0)[0]
    with pytest.raises(DataError, match="at least one"):
        dataset(scenes=[])
    with pytest.raises(ConfigError, match="balance"):
        dataset(balance=True)


def test_class_first_focus_shows_rare_classes_as_often_as_asked():
    """Class 4 lives in one scene of seven; drawn by scene it is rare, drawn by class it comes by its weight."""
    options = {"focus": {1: 1, 4: 3}, "focus_probability": 1.0}
    by_class = dataset("none", focus_first="class", **options)
    scenes = Counter(by_class[i]["id"] for i in range(400))
    holders_of_1 = [s.id for s in SCENES if 1 in target(s)]
    assert set(scenes) <= set(holders_of_1)
    only_4 = SCENES[6].id
    expected = 3 / 4 + 1 / 4 / len(holders_of_1)
    assert abs(scenes[only_4] / 400 - expected) < 0.08
    assert all((by_class[i]["target"] == 4).any() or (by_class[i]["target"] == 1).any() for i in range(50))
    by_scene = dataset("none", **options)
    assert Counter(by_scene[i]["id"] for i in range(400))[only_4] / 400 < 0.2


def test_class_first_focus_draws_scenes_by_the_root_of_their_components():
    def targets(scene):
        mask = np.zeros((60, 70), np.uint8)
        for k in range(9 if scene.id == SCENES[0].id else 1):
            mask[6 * k : 6 * k + 3, 5:9] = 1
        return mask

    data = stream(
        CropDataset,
        read,
        targets,
        SCENES[:2],
        PAIR,
        seed=1,
        focus={1: 1.0},
        focus_first="class",
    )
    drawn = Counter(data[i]["id"] for i in range(600))
    assert abs(drawn[SCENES[0].id] / 600 - 3 / 4) < 0.06  # sqrt(9) : sqrt(1)


def frames(scene: Scene, image: str) -> np.ndarray:
    """Scene k has k + 1 frames; frame f is of the one colour 10 k + f."""
    k = int(scene.id)
    return np.stack([np.full((40, 50, 3), 10 * k + f, np.uint8) for f in range(k + 1)])


def test_a_label_sample_is_one_frame_with_its_label_and_all_frames_come():
    def label(scene):
        return np.full((1, 1), int(scene.id) % 2, np.uint8)

    data = stream(FrameDataset, frames, label, SCENES, ("frames",), seed=3)
    seen = {}
    for i in range(400):
        item = data[i]
        k = int(item["id"])
        assert item["image"].shape == (3, 32, 32) and item["target"].tolist() == [[k % 2]]
        colour = set(item["image"].flatten().tolist())
        assert len(colour) == 1
        seen.setdefault(k, set()).add(colour.pop() - 10 * k)
    assert seen == {k: set(range(k + 1)) for k in range(7)}
    assert samples_equal(data[17], data[17]) and len(data) == 7


def classes_of(scene: Scene) -> np.ndarray:
    """Scenes 0..3 are class 0, scene 4 is class 2, scene 5 has no label, scene 6 is class 1."""
    return np.full((1, 1), [0, 0, 0, 0, 2, 255, 1][int(scene.id)], np.uint8)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_balance_draws_the_class_first_and_then_a_scene_of_it(cache):
    options = {"seed": 3, "order": [0, 0, 1, 2, 3, 4, 5, 6], "cache": cache, "balance": True}
    data = stream(FrameDataset, frames, classes_of, SCENES, ("frames",), **options)
    drawn = [data.scene_of(i) for i in range(3 * 40)]
    labels = [int(classes_of(SCENES[index]).item()) for index in drawn]
    assert all(sorted(labels[i : i + 3]) == [0, 1, 2] for i in range(0, 120, 3))  # never a batch without a class
    assert len({tuple(labels[i : i + 3]) for i in range(0, 120, 3)}) == 6
    assert Counter(drawn) == {0: 16, 1: 8, 2: 8, 3: 8, 4: 40, 6: 40}  # none starves, repetition counts, 5 never comes
    again = stream(FrameDataset, frames, classes_of, SCENES, ("frames",), **options)
    assert [again.scene_of(i) for i in reversed(range(120))] == drawn[::-1]
    assert samples_equal(data[50], again[50]) and data[50]["target"].item() == labels[50] and len(data) == 8
    with pytest.raises(DataError, match="scenes with a label"):
        stream(
            FrameDataset,
            frames,
            classes_of,
            SCENES[5:6],
            ("frames",),
            seed=0,
            balance=True,
        )


def test_scenes_that_do_not_fit_into_memory_are_refused_after_a_few(monkeypatch):
    """Seven scenes of 60 x 70 pixels, two images and a target each: 29,400 bytes."""
    seen = []

    def counted(scene, name):
        seen.append(scene.id)
        return read(scene, name)

    monkeypatch.setattr(cores, "free_memory", lambda: 6 * 29_400 - 1)
    with pytest.raises(
        ConfigError, match="needs about 0.00 GiB for 7 scenes, and 0.00 GiB are free; set train.cache: d"
    ):
        stream(CropDataset, counted, target, SCENES, PAIR, seed=0, cache="memory")
    assert len(set(seen)) == 1
    monkeypatch.setattr(cores, "free_memory", lambda: 6 * 29_400)
    stream(CropDataset, read, target, SCENES, PAIR, seed=0, cache="memory")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="GiB for each process for 7 scenes, and 0.00 GiB are free for each process"):
        stream(CropDataset, read, target, SCENES, PAIR, seed=0, cache="memory")


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_teachers_logits_are_cut_like_the_target(cache):
    def teacher(scene):
        return np.stack([target(scene) * 40.5, 200.25 - target(scene) * 40.5]).astype(np.float16)

    options = {"seed": 5, "focus": {1: 1.0}, "cache": cache}
    for preset in ("none", "selim2020_loc"):
        data = stream(CropDataset, read, target, SCENES, PAIR, preset, teacher=teacher, **options)
        plain = stream(CropDataset, read, target, SCENES, PAIR, preset, **options)
        for i in range(10):
            item = data[i]
            assert samples_equal(item, plain[i]) and "teacher" not in plain[i]
            assert item["teacher"].shape == (2, 32, 32) and item["teacher"].dtype == torch.float16
            known = item["target"] != 255
            first, second = item["teacher"].float()
            assert ((first + second)[known] - 200.25).abs().max() <= 0.2  # float16 of two numbers up to 200
            if preset == "none":
                assert first[known].equal(item["target"][known] * 40.5)
            elif (item["target"] == 1).sum() > 20:  # blurred at the edges, the same inside
                assert (first[item["target"] == 1] == 40.5).any()


def test_a_teachers_logits_of_frames_follow_the_frame():
    def teacher(scene):  # (C, 1, F)
        colours = frames(scene, "frames")[:, 0, 0, 0]
        return np.stack([colours, 255 - colours])[:, None].astype(np.float16)

    data = stream(FrameDataset, frames, classes_of, SCENES, ("frames",), seed=3,
                        teacher=teacher)  # fmt: skip
    for i in range(30):
        item = data[i]
        colour = int(item["image"][0, 0, 0])
        assert item["teacher"].tolist() == [[[colour]], [[255 - colour]]]


def test_a_teacher_of_another_size_is_refused():
    def wrong(scene):
        return np.zeros((2, 59, 70), np.float16)

    with pytest.raises(DataError, match=r"teacher: expected logits float16 \(C, 60, 70\), got .* \(2, 59, 70\)"):
        stream(CropDataset, read, target, SCENES, PAIR, seed=0, teacher=wrong)[0]
    with pytest.raises(DataError, match=r"expected logits float16 \(C, 1, \d\)"):
        stream(FrameDataset, frames, classes_of, SCENES, ("frames",), seed=0, teacher=wrong)[0]


def test_frames_that_are_an_image_are_refused():
    with pytest.raises(DataError, match=r"expected frames \(F, H, W, 3\)"):
        stream(FrameDataset, lambda s, n: np.zeros((8, 8, 3), np.uint8), lambda s: np.zeros((1, 1), np.uint8), SCENES,
                     ("frames",), seed=0, cache="memory")  # fmt: skip


def test_focus_on_a_class_of_several_is_where_it_is_alone():
    assert focus_values(MultilabelMask(("a", "b", "c")), {"c": 2}) == {4: 2.0}
