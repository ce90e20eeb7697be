"""What stage 01 says of real sets: each line with a figure equals one that is counted here in another way.

The counts use the names of files, csv and PIL alone. Where the sets are not at hand these tests are skipped; TGS is
made in its own form in any case.
"""

import csv
import os
import re
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.competitions import open_competition
from lib.config.load import load
from lib.config.sections import Folds
from lib.scenes import embed
from lib.stages.folds import check, split

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[1] / "../shared/data"))
CONFIGS = Path(__file__).parents[1] / "configs"


def needs(folder: str):
    return pytest.mark.skipif(not (SHARED / folder).is_dir(), reason=f"{folder} is not here")


def said(root: Path, folder: Path, config: str) -> tuple[list[str], dict[str, int]]:
    """Run what stage 01 runs; return its lines and the fold of each scene."""
    folder.mkdir()
    experiment = load(CONFIGS / config, [f"data.root={root}"])
    competition = open_competition(experiment.competition, root, experiment.data.options)
    lines = [*check(competition, folder, strict=False), *split(competition, experiment.folds, folder)]
    return [line.strip() for line in lines], folds_of(folder)


def folds_of(folder: Path) -> dict[str, int]:
    with open(folder / "folds.csv", newline="") as file:
        return {row["id"]: int(row["fold"]) for row in csv.DictReader(file)}


def agree(lines: list[str], expected: list[str]) -> None:
    """Insist that each line with a figure is expected, and each expected line is said."""
    figures = [re.sub(r" \(state data.options.*", "", line) for line in lines if re.search(r"\d", line)]
    assert sorted(figures) == sorted(expected)


def first_three(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} ({', '.join(names[:3])}{more})"


def fold_lines(fold_of: dict[str, int], holds: dict[str, list[str]], flags: list[str]) -> list[str]:
    """Return the line of each fold, with how many of its scenes hold a flag."""
    lines = []
    for fold in sorted({*fold_of.values()}):
        own = [scene for scene, k in fold_of.items() if k == fold]
        held = ", ".join(f"{flag} {sum(flag in holds[scene] for scene in own)}" for flag in flags)
        lines.append(f"fold {fold}: {len(own)} scenes; with {held}")
    return lines


def look_alikes(paths: dict[str, Path], group: dict[str, str], fold_of: dict[str, int]) -> list[tuple[str, str]]:
    """Return the pairs in different folds and groups of which the features are alike, compared one by one."""
    embedder, absent = embed.load()
    assert embedder, absent
    vectors = {name: embedder([np.asarray(Image.open(path).convert("RGB"))])[0] for name, path in paths.items()}
    apart = [(a, b) for a, b in combinations(paths, 2)
             if group.get(a, a) != group.get(b, b) and fold_of[a] != fold_of[b]]  # fmt: skip
    return [(a, b) for a, b in apart if np.dot(vectors[a], vectors[b]) >= 0.85]


# ---- pets ---------------------------------------------------------------------------------------------
@needs("pets_voc")
@pytest.mark.slow
def test_pets(tmp_path):
    root = SHARED / "pets_voc"
    lines, fold_of = said(root, tmp_path / "01", "pets_cpu.yaml")
    photos = {path.stem: path for path in (root / "test/res").iterdir() if path.suffix == ".jpg"}
    masks = {path.stem: set(np.unique(np.asarray(Image.open(path)))) for path in (root / "test/res/label").iterdir()}
    assert set(photos) == set(masks) == set(fold_of) and len(photos) == 26
    others = sorted(f"test/res/{path.name}" for path in (root / "test/res").iterdir()
                    if path.is_file() and path.suffix != ".jpg" and not path.name.startswith("."))  # fmt: skip
    holds = {name: [flag for index, flag in ((1, "cat"), (2, "dog")) if index in masks[name]] for name in photos}
    agree(lines, [
        f"{len(photos)} training scenes listed; 0 test scenes found; looked in test/res/*.jpg",
        *([f"file in test/res that no scene uses: {first_three(others)}"] if others else []),
        *fold_lines(fold_of, holds, ["cat", "dog"]),
    ])  # fmt: skip
    assert lines[-1] == "audit: nothing to remark"
    assert look_alikes(photos, {}, fold_of) == []


# ---- CamVid -------------------------------------------------------------------------------------------
@needs("camvid")
@pytest.mark.slow
def test_camvid(tmp_path):
    root = SHARED / "camvid"
    lines, fold_of = said(root, tmp_path / "01", "camvid_cpu.yaml")
    classes = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    frames = {path.stem: (split, path) for split in ("train", "val", "test") for path in (root / split).glob("*.png")}
    listed = [Path(line.split()[0]).stem for split in ("train", "val", "test")
              for line in (root / f"{split}.txt").read_text().splitlines() if line.strip()]  # fmt: skip
    gone = list(dict.fromkeys(name for name in listed if name not in frames))
    assert len(frames) == 44 and set(frames) <= set(listed) and set(fold_of) == set(frames)
    masks = {name: set(np.unique(np.asarray(Image.open(root / f"{split}annot" / f"{name}.png"))))
             for name, (split, _) in frames.items()}  # fmt: skip
    holds = {name: [classes[index] for index in masks[name] if 0 < index < 11] for name in frames}
    splits: dict[str, set[str]] = {}
    for name, (split_name, _) in frames.items():
        splits.setdefault(name.split("_")[0], set()).add(split_name)
    shared = {video: sorted(held) for video, held in sorted(splits.items()) if len(held) > 1}
    (video, held) = next(iter(shared.items()))
    agree([line.partition(": scores")[0] for line in lines], [
        f"{len(frames)} training scenes listed; no test set, as asked for",
        f"listed picture is not here: {first_three(gone)}",
        *fold_lines(fold_of, holds, classes[1:]),
        f"audit: {len(shared)} of {len(splits)} groups lie in more than one split of the data as shipped "
        f"({video} in {' and '.join(held)})",
    ])  # fmt: skip
    groups = {name: name.split("_")[0] for name in frames}
    assert look_alikes({name: path for name, (_, path) in frames.items()}, groups, fold_of) == []


# ---- DSB 2018 -----------------------------------------------------------------------------------------
@needs("dsb2018")
@pytest.mark.slow
def test_nuclei(tmp_path):
    root = SHARED / "dsb2018"
    lines, fold_of = said(root, tmp_path / "01", "nuclei_cpu.yaml")
    images = {path.name: path / "images" / f"{path.name}.png" for path in (root / "stage1_train").iterdir()
              if path.is_dir()}  # fmt: skip
    shares, nuclei = {}, 0
    for name, path in images.items():
        masks = [np.asarray(Image.open(mask)) > 0 for mask in (path.parents[1] / "masks").glob("*.png")]
        nuclei += len(masks)
        shares[name] = np.any(masks, axis=0).mean()
    assert len(images) == 28 and nuclei == 552 and set(fold_of) == set(images)
    median = np.median(list(shares.values()))
    holds = {name: ["empty" if not share else "small" if share <= median else "large"]
             for name, share in shares.items()}  # fmt: skip
    alike = look_alikes(images, {}, fold_of)
    stained = {name: np.ptp(np.asarray(Image.open(path).convert("RGB")).astype(int), axis=2).mean() > 4
               for name, path in images.items()}  # fmt: skip
    spread = {kind: {fold_of[name] for name in images if stained[name] == kind} for kind in (True, False)}
    agree([line.partition(": scores tell")[0] for line in lines], [
        f"{len(images)} training scenes listed; 0 test scenes found; looked in test_images, test/images, stage1_test, "
        "test",
        "RLE order assumed: column order from 1, no training runs, so Kaggle's rule",
        *fold_lines(fold_of, holds, ["empty", "small", "large"]),
        f"audit: {len(alike)} pairs of scenes in different folds resemble each other to a network, but their pixels do "
        "not match: pictures of one kind, as it seems",
        f"audit: {sum(len(folds) > 1 for folds in spread.values())} of {len(spread)} domains have scenes in more than "
        "one fold",
    ])  # fmt: skip


# ---- TGS ----------------------------------------------------------------------------------------------
def tgs(root: Path, images: int = 200) -> dict[str, np.ndarray]:
    """Write a set in the form of TGS salt: 101x101, masks of 16 bits, runs by columns, depths of both splits.

    Returns id -> truth of the training images.
    """
    rng = np.random.default_rng(0)
    for folder in ("train/images", "train/masks", "test/images"):
        (root / folder).mkdir(parents=True)
    truths, rows, depths = {}, [("id", "rle_mask")], [("id", "z")]
    y, x = np.mgrid[:101, :101]
    for number in range(images):
        name = f"{rng.integers(2**40):010x}"
        tilt, at, waves = rng.normal(size=2), rng.integers(10, 90, 2), rng.normal(size=(101, 101))
        truth = (y - at[0]) * tilt[0] + (x - at[1]) * tilt[1] > 0 if number % 5 < 3 else np.zeros((101, 101), bool)
        grey = np.clip(110 + 50 * np.sin(y / (3 + number % 7) + number) + 20 * waves + 30 * truth, 1, 255)
        if number == 7:
            grey = np.zeros((101, 101))  # as some of TGS are
        Image.fromarray(np.repeat(grey.astype(np.uint8)[..., None], 3, 2)).save(root / f"train/images/{name}.png")
        Image.fromarray(truth.astype(np.uint16) * np.uint16(65535)).save(root / f"train/masks/{name}.png")
        truths[name] = truth
        rows.append((name, runs_by_column(truth)))
        depths.append((name, str(int(rng.integers(50, 960)))))
    tests = []
    for number in range(60):
        tests.append(name := f"{rng.integers(2**40):010x}")
        grey = np.clip(110 + 50 * np.cos(x / (3 + number % 5) + number) + 20 * rng.normal(size=(101, 101)), 1, 255)
        Image.fromarray(np.repeat(grey.astype(np.uint8)[..., None], 3, 2)).save(root / f"test/images/{name}.png")
        depths.append((name, "100"))
    sample = [("id", "rle_mask"), *((name, "1 1") for name in tests)]
    for path, table in (("train.csv", rows), ("depths.csv", depths), ("sample_submission.csv", sample)):
        with open(root / path, "w", newline="") as file:
            csv.writer(file).writerows(table)
    return truths


def runs_by_column(mask: np.ndarray) -> str:
    """Write runs pixel by pixel, the slow way: first pixel from 1, down the columns."""
    flat, runs = mask.T.ravel().tolist(), []
    for at, value in enumerate(flat):
        if value and (at == 0 or not flat[at - 1]):
            runs += [at + 1, 0]
        if value:
            runs[-1] += 1
    return " ".join(map(str, runs))


@pytest.mark.slow
def test_salt(tmp_path):
    root = tmp_path / "tgs"
    truths = tgs(root)
    names, tests = list(truths), sorted(path.stem for path in (root / "test/images").iterdir())
    for test, name in ((tests[3], names[10]), (tests[8], names[11]), (tests[9], names[10])):
        shutil.copy(root / f"train/images/{name}.png", root / f"test/images/{test}.png")
    sample = (root / "sample_submission.csv").read_text().splitlines()
    order = [line.split(",")[0] for line in sample[1:]]
    order.remove(tests[20])
    order[5:5] = ["00000000aa", "00000000bb"]
    (root / "sample_submission.csv").write_text("\n".join(["id,rle_mask", *(f"{name},1 1" for name in order)]))
    (root / "test/images/preview.gif").write_bytes(b"GIF89a")
    (root / "more/images").mkdir(parents=True)
    shutil.copy(root / f"train/images/{names[0]}.png", root / "more/images/x.png")
    competition = open_competition("binary_rle", root, {"class_name": "salt"})
    folder = tmp_path / "01"
    folder.mkdir()
    section = Folds(n=5, embed=False)
    lines = [line.strip() for line in (*check(competition, folder, strict=False), *split(competition, section, folder))]

    shares = {name: truth.mean() for name, truth in truths.items()}
    median = np.median([share for share in shares.values() if share])
    holds = {name: ["empty" if not share else "small" if share <= median else "large"]
             for name, share in shares.items()}  # fmt: skip
    black = [name for name in names if not np.asarray(Image.open(root / f"train/images/{name}.png")).any()]
    assert len(black) == 1
    bytes_of = {path: path.read_bytes() for side in ("train", "test") for path in (root / side / "images").iterdir()}
    same = sorted((t.stem, s.stem) for t in bytes_of for s in bytes_of
                  if "test" in t.parts[-3] and "train" in s.parts[-3] and bytes_of[t] == bytes_of[s])  # fmt: skip
    assert len(same) == 3
    fold_of = folds_of(folder)
    absent = [name for name in order if name not in tests]
    expected = [
        f"{len(truths)} training scenes listed; {len(order)} test scenes",
        f"sample_submission.csv names {len(order)} scenes; the submission has its header id,rle_mask and its order of "
        "rows",
        f"{len(absent)} of {len(order)} test scenes cannot be predicted: they take predict.fallback, or stop stage 04 "
        f"where there is none: {'; '.join(f'{name} (expected image, found no file of it)' for name in absent)}",
        f"the sample names it, there is no file of it: {first_three(absent)}",
        f"test file that the sample does not name: {first_three([tests[20]])}",
        "file of a suffix that is not read (.gif): 1 (test/images/preview.gif)",
        "file in more/images that no scene uses: 1 (more/images/x.png)",
        f"image all black: {first_three(black)}",
        *fold_lines(fold_of, holds, ["empty", "small", "large"]),
        f"audit: {len({test for test, _ in same})} of {len(order)} test scenes are training scenes under another name "
        f"or place, with the same bytes, such as {same[0][0]} (test) and {same[0][1]} (train)",
        f"audit: {len(black)} images show nothing, or nearly so, and were not compared, such as {black[0]}",
    ]  # fmt: skip
    found = [re.sub(r": (what is scored on).*", "", line) for line in lines if "RLE order" not in line]
    agree(found, expected)
    assert [line for line in lines if line.startswith("RLE order detected: column order from 1")]
    assert Counter(fold_of.values()) == {fold: 40 for fold in range(5)}
