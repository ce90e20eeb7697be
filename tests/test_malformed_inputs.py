"""Inputs as people have them: each is read right, or named in a sentence, and no healthy row or scene is blamed.

A case changes one thing in a whole set. ``right``: every scene has the truth it had. ``left_out``: so has every other
scene, these have none. ``refused``: nothing can be used. What the data doctor must say of it stands beside it, and it
says nothing else. An error other than the project's own fails the test.
"""

import json
import shutil
from dataclasses import dataclass, field

import cv2
import numpy as np
import pandas as pd
import pytest

from lib.competitions import open_competition
from lib.config.sections import Folds
from lib.errors import ConfigError, DataError
from lib.scenes import rle
from lib.scenes.raster import write_png
from lib.stages import folds as stage

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@dataclass
class Case:
    """A change of a set and what becomes of it."""

    change: object
    """What is done to the folder of the set."""
    says: set = field(default_factory=set)
    """(kind, scene) of each finding."""
    left_out: set = field(default_factory=set)
    """Scenes that must not be used."""
    refused: str = ""
    """What the error says; "": the set can be used."""
    options: dict = field(default_factory=dict)


def outcome(competition):
    """Return the truth of each training scene, and (kind, scene) of each finding."""
    truths = {scene.id: competition.truth(scene) for scene in competition.scenes("train")}
    return truths, {(finding.kind, finding.scene) for finding in competition.inspect()}


def judge(name, root, options, case, known):
    """Check one case. ``known``: the truths of the set before the change."""
    case.change(root)
    competition = open_competition(name, root, {**options, **case.options})
    if case.refused:
        with pytest.raises((DataError, ConfigError)) as error:
            outcome(competition)
        said = str(error.value)
        assert case.refused in said and "\n" not in said, said
        return
    truths, findings = outcome(competition)
    assert findings == case.says
    assert truths.keys() == known.keys() - case.left_out
    for scene_id, truth in truths.items():
        np.testing.assert_array_equal(truth, known[scene_id], err_msg=scene_id)


def text(name, edit, encoding="utf-8"):
    """Change the text of a file."""

    def change(root):
        written = edit((root / name).read_text())
        (root / name).write_bytes(written if isinstance(written, bytes) else written.encode(encoding))

    return change


def rows(name, edit):
    """Change the lines of a file, header first."""
    return text(name, lambda written: "\n".join(edit(written.splitlines())) + "\n")


def line(name, number, edit):
    """Change one line of a file, counted from 1."""
    return rows(name, lambda lines: [*lines[: number - 1], edit(lines[number - 1]), *lines[number:]])


def swapped(pattern, by):
    return lambda written: written.replace(pattern, by)


def sheet(edit_row):
    """Change every row but the header: (fields) -> (fields)."""
    return lambda lines: [lines[0], *(",".join(edit_row(*row.split(",", 1))) for row in lines[1:])]


# ---- one class of objects, runs in a table --------------------------------------------------------------
SHAPE = (17, 24)


def blobs(number):
    """A mask that shows order and origin of its runs: one piece at the end of columns and rows, or nothing."""
    mask = np.zeros(SHAPE, np.uint8)
    if number % 4 != 3:
        mask[10 - number % 3 :, 3 + number % 5 : 9 + number % 5] = 1
        mask[: 5 + number % 3, 17:] = 1
    return mask


def binary(root, ids=None):
    """Twelve images with the ids 0001 to 0012; the truth of every fourth is empty."""
    (root / "train_images").mkdir()
    names = ids or [f"{number:04d}" for number in range(1, 13)]
    lines = ["id,rle"]
    for number, name in enumerate(names, 1):
        pixels = np.random.default_rng(number).integers(1, 256, (*SHAPE, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "train_images" / f"{name}.png"), pixels)
        lines.append(f"{name},{rle.encode(blobs(number))}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")


def without(root, *names):
    for name in names:
        (root / name).unlink()


def encoded(name):
    """Return the cases of a file in the encodings and with the ends of lines that other systems write."""
    return {
        "byte order mark": Case(text(name, lambda t: t.encode("utf-8-sig"))),
        "UTF-16": Case(text(name, lambda t: t.encode("utf-16"))),
        "carriage returns": Case(text(name, swapped("\n", "\r\n"))),
    }


RUNS_OF_ONE = rle.encode(blobs(1))
EXCHANGED = " ".join(np.array(RUNS_OF_ONE.split()).reshape(-1, 2)[::-1].ravel())
BROKEN_1 = {("broken truth", "0001")}
CHANGED = "ids written otherwise than their files, read as those"
TABLE = "train.csv"

BINARY = {
    "as it should be": Case(lambda root: None),
    **encoded(TABLE),
    "semicolons": Case(text(TABLE, swapped(",", ";"))),
    "tabs": Case(text(TABLE, swapped(",", "\t"))),
    "blank before a column": Case(text(TABLE, swapped("id,rle", "id, rle"))),
    "EncodedPixels with a blank": Case(text(TABLE, swapped("id,rle", "ImageId, EncodedPixels"))),
    "blanks around ids and runs": Case(rows(TABLE, sheet(lambda i, r: (f" {i} ", f" {r}  ")))),
    "blank lines": Case(rows(TABLE, lambda lines: ["", lines[0], "", *lines[1:4], "  ", *lines[4:], ",", ""])),
    "old carriage returns": Case(text(TABLE, swapped("\n", "\r"))),
    "everything quoted": Case(rows(TABLE, lambda ls: ['"' + row.replace(",", '","') + '"' for row in ls])),
    "empty columns of a spreadsheet": Case(rows(TABLE, lambda ls: [f"{row},," for row in ls])),
    "an index of pandas": Case(rows(TABLE, lambda ls: [f",{ls[0]}", *(f"{n},{r}" for n, r in enumerate(ls[1:]))])),
    "ids with a suffix": Case(rows(TABLE, sheet(lambda i, r: (f"{i}.png", r)))),
    "ids with another suffix": Case(rows(TABLE, sheet(lambda i, r: (f"{i}.TIF", r)))),
    "lost zeros": Case(rows(TABLE, sheet(lambda i, r: (i.lstrip("0"), r))), {(CHANGED, TABLE)}),
    "ids as floats": Case(rows(TABLE, sheet(lambda i, r: (f"{int(i)}.0", r))), {(CHANGED, TABLE)}),
    "-1 for empty": Case(rows(TABLE, sheet(lambda i, r: (i, r or "-1")))),
    "nan for empty": Case(rows(TABLE, sheet(lambda i, r: (i, r or "nan")))),
    "NaN and a blank for empty": Case(rows(TABLE, sheet(lambda i, r: (i, r or " NaN ")))),
    "a row twice": Case(rows(TABLE, lambda ls: [*ls, ls[1]]), {("row written twice, read once", "train.csv line 14")}),
    "two exchanged runs": Case(line(TABLE, 2, lambda row: f"0001,{EXCHANGED}"), BROKEN_1, {"0001"}),
    "a run beyond the image": Case(line(TABLE, 2, lambda row: row + " 409 3"), BROKEN_1, {"0001"}),
    "a run that begins before the first pixel": Case(
        line(TABLE, 2, lambda row: row.replace(",", ",0 2 ")), BROKEN_1, {"0001"}),
    "a run of length 0": Case(line(TABLE, 2, lambda row: row + " 408 0"), BROKEN_1, {"0001"}),
    "a number missing": Case(line(TABLE, 2, lambda row: row.rsplit(" ", 1)[0]), BROKEN_1, {"0001"}),
    "words for runs": Case(line(TABLE, 2, lambda row: "0001,see mail"), BROKEN_1, {"0001"}),
    "runs with fractions": Case(line(TABLE, 2, lambda row: "0001,3.5 2"), BROKEN_1, {"0001"}),
    "runs parted by commas": Case(
        line(TABLE, 2, lambda row: row.replace(" ", ",")),
        {("row left out", "train.csv line 2"), ("image without truth", "0001")}, {"0001"}),
    "a row cut short": Case(
        line(TABLE, 5, lambda row: "0004"),
        {("row left out", "train.csv line 5"), ("image without truth", "0004")}, {"0004"}),
    "a quotation mark that nothing closes": Case(
        line(TABLE, 3, lambda row: f'"{row}'),
        {("row left out", "train.csv line 3"), ("image without truth", "0002")}, {"0002"}),
    "a byte that is not UTF-8": Case(
        text(TABLE, lambda t: t.encode().replace(b"0002", b"0002\xff")),
        {("row left out", "train.csv line 3"), ("image without truth", "0002")}, {"0002"}),
    "a row without an id": Case(
        line(TABLE, 2, lambda row: row.removeprefix("0001")),
        {("row without an id, left out", "train.csv line 2"), ("image without truth", "0001")}, {"0001"}),
    "a row of no image": Case(rows(TABLE, lambda ls: [*ls, "9999,1 2"]), {("truth without image", "9999")}),
    "an image without a row": Case(
        rows(TABLE, lambda ls: [ls[0], *ls[2:]]), {("image without truth", "0001")}, {"0001"}),
    "an image that is cut short": Case(
        lambda root: (root / "train_images/0001.png").write_bytes((root / "train_images/0001.png").read_bytes()[:60]),
        {("unreadable image", "0001")}),
    "an image of no bytes": Case(
        lambda root: (root / "train_images/0001.png").write_bytes(b""), {("unreadable image", "0001")}, {"0001"}),
    "classes in a table of one": Case(
        rows(TABLE, lambda ls: [f"{ls[0]},class", *(f"{r},{n % 2}" for n, r in enumerate(ls[1:]))]),
        refused="use competition: multiclass_rle"),
    "a column of classes that says something else": Case(
        rows(TABLE, lambda ls: [f"{ls[0]},class", *(f"{r},{n % 2}" for n, r in enumerate(ls[1:]))]),
        options={"domain": "class"}),
    "sizes as floats": Case(
        rows(TABLE, lambda ls: [f"{ls[0]},img_height,img_width", *(f"{row},17.0,24.0" for row in ls[1:])])),
    "two organs of one image": Case(
        rows(TABLE, lambda ls: [f"{ls[0]},organ", *(f"{row},lung" for row in ls[1:]), "0004,,spleen"]),
        {("rows of one image differ, the first is read", "0004"), ("object without pixels", "0004")},
        options={"domain": "organ"}),
    "a pixel size that is no number": Case(
        rows(TABLE, lambda ls: [f"{ls[0]},pixel_size", f"{ls[1]},big", *(f"{row},0.4" for row in ls[2:])]),
        {("size of a pixel that is no number, not used", "0001")}),
    "an empty table": Case(text(TABLE, lambda t: ""), refused="expected a header and rows, got an empty file"),
    "a table without ids": Case(text(TABLE, swapped("id,rle", "name,rle")), refused="expected a column of ids"),
    "a column twice": Case(text(TABLE, swapped("id,rle", "rle,rle")), refused="got 'rle' twice; rename one of them"),
    "another sign below the header": Case(
        rows(TABLE, lambda ls: [ls[0], *(row.replace(",", ";") for row in ls[1:])]),
        refused="part the fields of all lines by the same sign"),
    "a picture for a table": Case(
        lambda root: shutil.copy(root / "train_images/0001.png", root / TABLE), refused="save it as UTF-8"),
    "a folder for a table": Case(
        lambda root: [(root / TABLE).unlink(), (root / TABLE).mkdir()], refused="got Is a directory; check the path"),
    "all runs beyond their images": Case(
        rows(TABLE, sheet(lambda i, r: (i, r and f"{r} 500 1"))), refused="no order or origin puts all runs inside"),
}  # fmt: skip


@pytest.fixture(scope="module")
def binary_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("binary") / "set"
    root.mkdir()
    binary(root)
    return root


@pytest.mark.parametrize("name", BINARY)
def test_one_class(tmp_path, binary_set, name):
    shutil.copytree(binary_set, tmp_path / "set")
    known = {f"{number:04d}": blobs(number) for number in range(1, 13)}
    judge("binary_rle", tmp_path / "set", {}, BINARY[name], known)


def test_a_broken_row_is_named_with_its_line(tmp_path, binary_set):
    shutil.copytree(binary_set, tmp_path / "set")
    BINARY["two exchanged runs"].change(tmp_path / "set")
    (finding,) = open_competition("binary_rle", tmp_path / "set").inspect()
    assert "train.csv line 2: RLE: expected sorted" in finding.detail


def test_a_start_of_0_in_one_row_does_not_move_all_others(tmp_path):
    """By that row alone all others would be drawn one pixel further on."""
    binary(tmp_path)
    line(TABLE, 2, lambda row: "0001,0 5 17 5")(tmp_path)
    competition = open_competition("binary_rle", tmp_path)
    assert (competition.rule.order, competition.rule.origin) == ("column", 1)
    assert [finding.scene for finding in competition.inspect()] == ["0001"]


def test_a_second_row_is_asked_about_where_images_have_one(tmp_path):
    binary(tmp_path, [f"{number:04d}" for number in range(1, 21)])
    rows(TABLE, lambda lines: [*lines, "0001,400 2"])(tmp_path)
    (finding,) = open_competition("binary_rle", tmp_path).inspect()
    assert (finding.kind, finding.scene) == ("several rows where most images have one, read as its objects", "0001")


# ---- several classes, a row per image and class -----------------------------------------------------------
CLASSES = ("stomach", "bowel")
OPTIONS = {"classes": list(CLASSES), "origin": 1, "order": "column"}


def organs(number):
    return np.stack([blobs(number), np.roll(blobs(number), 3, axis=1)])


def several(root):
    (root / "train_images").mkdir()
    lines = ["id,class,segmentation"]
    for number in range(1, 6):
        pixels = np.random.default_rng(number).integers(1, 256, (*SHAPE, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "train_images" / f"{number:03d}.png"), pixels)
        lines += [f"{number:03d},{name},{rle.encode(mask)}" for name, mask in zip(CLASSES, organs(number))]
    (root / "train.csv").write_text("\n".join(lines) + "\n")


OTHER_CLASSES = "classes written otherwise than in the options, read as those"
SEVERAL = {
    "as it should be": Case(lambda root: None),
    "semicolons and a byte order mark": Case(text(TABLE, lambda t: t.replace(",", ";").encode("utf-8-sig"))),
    "blanks in the header": Case(text(TABLE, swapped("id,class,segmentation", " ImageId, ClassId, EncodedPixels"))),
    "a class in upper case": Case(text(TABLE, swapped("stomach", "Stomach")), {(OTHER_CLASSES, TABLE)}),
    "classes of both cases": Case(line(TABLE, 2, swapped("stomach", "STOMACH")), {(OTHER_CLASSES, TABLE)}),
    "classes as floats": Case(
        text(TABLE, lambda t: t.replace("stomach", "1.0").replace("bowel", "2.0")), {(OTHER_CLASSES, TABLE)},
        options={"classes": ["1", "2"]}),
    "an unknown class": Case(
        rows(TABLE, lambda ls: [*ls, "001,spleen,1 2"]), {("class not in data.options.classes", "spleen")}),
    "-1 and nan for empty": Case(
        rows(TABLE, lambda ls: [row + ("-1" if n % 2 else "nan") if row.endswith(",") else row
                                for n, row in enumerate(ls)])),
    "a row twice": Case(rows(TABLE, lambda ls: [*ls, ls[1]]), {("row written twice, read once", "train.csv line 12")}),
    "two rows of one class": Case(
        rows(TABLE, lambda ls: [*ls, "001,stomach,"]), {("several rows of one image and class, joined", "001")}),
    "two exchanged runs": Case(
        line(TABLE, 2, lambda row: f"001,stomach,{EXCHANGED}"), {("label cannot be used", "001")}, {"001"}),
    "lost zeros": Case(rows(TABLE, sheet(lambda i, r: (i.lstrip("0"), r))), {(CHANGED, TABLE)}),
    "ids with a suffix": Case(rows(TABLE, sheet(lambda i, r: (f"{i}.jpeg", r)))),
    "no column of classes": Case(text(TABLE, swapped("id,class", "id,organ")), refused="rename them in the file"),
    "image and class in one column": Case(
        text(TABLE, swapped("id,class", "ImageId_ClassId,x")), refused="expected a column of ids out of"),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_several_classes(tmp_path, name):
    several(tmp_path)
    case = SEVERAL[name]
    suffix = ".png" if name == "ids with a suffix" else ""  # ids are written as the table has them
    judge("multiclass_rle", tmp_path, OPTIONS, case, {f"{n:03d}{suffix}": organs(n) for n in range(1, 6)})


# ---- labels of pictures -----------------------------------------------------------------------------------
def pictures(root):
    (root / "train").mkdir()
    lines = ["id,label"]
    for number in range(1, 9):
        pixels = np.random.default_rng(number).integers(1, 256, (12, 12, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "train" / f"{number:03d}.png"), pixels)
        lines.append(f"{number:03d},{('cat', 'dog')[number % 2]}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")


OTHER_LABELS = "labels written otherwise than their class, read as that"
UNLABELLED = {("image without label", "001.png")}
LABELS = {
    "as it should be": Case(lambda root: None),
    "semicolons": Case(text(TABLE, swapped(",", ";"))),
    "tabs and a byte order mark": Case(text(TABLE, lambda t: t.replace(",", "\t").encode("utf-8-sig"))),
    "blanks around names and labels": Case(rows(TABLE, lambda ls: [" , ".join(row.split(",")) + " " for row in ls])),
    "an empty label": Case(line(TABLE, 2, lambda row: "001,"), UNLABELLED, {"001"}),
    "a label that is nan": Case(line(TABLE, 2, lambda row: "001,nan"), UNLABELLED, {"001"}),
    "a label of a blank": Case(line(TABLE, 2, lambda row: "001, "), UNLABELLED, {"001"}),
    "a label in upper case": Case(line(TABLE, 2, lambda row: "001,Dog"), {(OTHER_LABELS, TABLE)}),
    "a label in upper case, classes stated": Case(
        line(TABLE, 2, lambda row: "001,DOG"), {(OTHER_LABELS, TABLE)}, options={"classes": ["cat", "dog"]}),
    "labels as floats": Case(
        text(TABLE, lambda t: t.replace("cat", "0.0").replace("dog", "1.0")), {(OTHER_LABELS, TABLE)},
        options={"classes": ["0", "1"]}),
    "some labels as floats": Case(
        rows(TABLE, lambda ls: [row.replace("cat", "0").replace("dog", "1") + ".0" * (n == 1)
                                for n, row in enumerate(ls)]), {(OTHER_LABELS, TABLE)}),
    "a label of no class": Case(
        line(TABLE, 2, lambda row: "001,bird"), {("label is none of the classes", "001")}, {"001"},
        options={"classes": ["cat", "dog"]}),
    "lost zeros": Case(rows(TABLE, sheet(lambda i, r: (i.lstrip("0"), r))), {(CHANGED, TABLE)}),
    "ids as floats": Case(rows(TABLE, sheet(lambda i, r: (f"{int(i)}.0", r))), {(CHANGED, TABLE)}),
    "a row twice": Case(rows(TABLE, lambda ls: [*ls, ls[1]]), {("row written twice, read once", "train.csv line 10")}),
    "two labels of one picture": Case(
        rows(TABLE, lambda ls: [*ls, "001,cat"]), {("label given twice", "001")}, {"001"}),
    "two labels, one under a name without zeros": Case(
        rows(TABLE, lambda ls: [*ls, "001.png,cat"]),
        {("label given twice", "001"), ("label given twice", "001.png")}, {"001"}),
    "a row too long": Case(
        line(TABLE, 2, lambda row: row + ",x"),
        {("row left out", "train.csv line 2"), ("image without label", "001.png")}, {"001"}),
    "paths from the root of the data": Case(rows(TABLE, sheet(lambda i, r: (f"train/{i}.png", r)))),
    "a row of no picture": Case(rows(TABLE, lambda ls: [*ls, "099,cat"]), {("label without picture", "099")}),
    "no column of labels": Case(text(TABLE, swapped("label", "breed")), refused="set data.options.columns"),
    "a header alone": Case(rows(TABLE, lambda ls: ls[:1]), refused="state data.options.classes"),
    "labels that are all empty": Case(
        text(TABLE, lambda t: t.replace("cat", "").replace("dog", "")), refused="classes of the data"),
}  # fmt: skip
WRITTEN = {"lost zeros": "{}", "ids as floats": "{}.0", "paths from the root of the data": "train_{:03d}.png"}
"""How the ids of such a table are written, which are the scenes' ids."""


@pytest.mark.parametrize("name", LABELS)
def test_labels(tmp_path, name):
    pictures(tmp_path)
    case, form = LABELS[name], WRITTEN.get(name, "{:03d}")
    judge("labels", tmp_path, {}, case, {form.format(number): number % 2 for number in range(1, 9)})


def test_classes_have_the_spelling_that_most_rows_have(tmp_path):
    pictures(tmp_path)
    LABELS["a label in upper case"].change(tmp_path)
    assert open_competition("labels", tmp_path).classes == ("cat", "dog")


# ---- videos -------------------------------------------------------------------------------------------
def clips(root):
    """Six videos of two frames each; a folder 3 of frames, whose id has no suffix, is one of them."""
    lines = ["fname,liveness_score"]
    for number in range(1, 7):
        name = f"{number}.avi" if number != 3 else "3"
        path = root / "train" / "videos" / name
        frames = np.random.default_rng(number).integers(1, 256, (2, 16, 16, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == 3:
            path.mkdir()
            for index, frame in enumerate(frames):
                cv2.imwrite(str(path / f"{index}.png"), frame)
        else:
            stream = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (16, 16))
            for frame in frames:
                stream.write(frame)
            stream.release()
        lines.append(f"{name},{number % 2}")
    (root / "train" / "label.csv").write_text("\n".join(lines) + "\n")


LIST = "train/label.csv"
REAL = {"positive": "real"}


def renamed(form):
    return rows(LIST, sheet(lambda i, label: (form(i), label)))


VIDEOS = {
    "as it should be": Case(lambda root: None),
    "semicolons and a byte order mark": Case(text(LIST, lambda t: t.replace(",", ";").encode("utf-8-sig"))),
    "labels as floats": Case(rows(LIST, sheet(lambda i, label: (i, f"{label}.0")))),
    "REAL and FAKE": Case(rows(LIST, sheet(lambda i, label: (i, ("FAKE", "REAL")[int(label)]))), options=REAL),
    "Real and fake": Case(rows(LIST, sheet(lambda i, label: (i, ("fake", "Real")[int(label)]))), options=REAL),
    "words without a positive one": Case(
        rows(LIST, sheet(lambda i, label: (i, ("FAKE", "REAL")[int(label)]))), refused="one of FAKE, REAL, got 'live'"),
    ".AVI for .avi": Case(renamed(str.upper)),
    "ids without a suffix": Case(renamed(lambda i: i.removesuffix(".avi"))),
    "an empty label": Case(line(LIST, 2, lambda row: "1.avi,"), {("video without label", "1.avi")}, {"1.avi"}),
    "a label of 2": Case(line(LIST, 2, lambda row: "1.avi,2"), {("label is not 0 or 1", "1.avi")}, {"1.avi"}),
    "a row twice": Case(rows(LIST, lambda ls: [*ls, ls[1]]), {("row written twice, read once", "label.csv line 8")}),
    "two labels of one video": Case(
        rows(LIST, lambda ls: [*ls, "1.avi,0"]), {("label given twice", "1.avi")}, {"1.avi"}),
    "a row cut short": Case(
        line(LIST, 2, lambda row: "1.avi"),
        {("row left out", "label.csv line 2"), ("video without label", "1.avi")}, {"1.avi"}),
    "a video of no bytes": Case(
        lambda root: (root / "train/videos/1.avi").write_bytes(b""), {("unreadable video", "1.avi")}, {"1.avi"}),
    "annotations with a bad line": Case(
        lambda root: [without(root, *(f"train/videos/{n}.avi" for n in (1, 2, 4, 5, 6))), (root / "a.txt").write_text(
            "train/videos/3 0 1 1\ntrain/videos/3 x 1 0\n\ntrain/videos/3 0 1 1\n")],
        {("row left out", "a.txt line 2")}, {f"{n}.avi" for n in range(1, 7)} | {"3"},
        options={"annotations": "a.txt"}),
    "annotations of another form": Case(
        lambda root: (root / "a.txt").write_text("3,1\n"), refused="expected lines of folder",
        options={"annotations": "a.txt"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def clip_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips") / "set"
    clips(root)
    return root


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(tmp_path, clip_set, name):
    shutil.copytree(clip_set, tmp_path / "set")
    known = {f"{n}.avi" if n != 3 else "3": n % 2 for n in range(1, 7)}
    if name in (".AVI for .avi", "ids without a suffix"):
        known = {i.upper() if name.startswith(".") else i.removesuffix(".avi"): v for i, v in known.items()}
    if name == "annotations with a bad line":
        known |= {"train_videos_3": 1}
    judge("videos", tmp_path / "set", {}, VIDEOS[name], known)


# ---- pictures with an index mask ----------------------------------------------------------------------
def classes(number):
    """A mask of class 1 or 2 on class 0; of the four of the set none is empty."""
    return blobs(4 if number == 3 else number) * (1 + number % 2)


def voc(root):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(1, 5):
        pixels = np.random.default_rng(number).integers(1, 256, (*SHAPE, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "JPEGImages" / f"{number:03d}.jpg"), pixels)
        write_png(root / "SegmentationClass" / f"{number:03d}.png", classes(number))
    (root / "ImageSets/Segmentation/train.txt").write_text("001\n002\n003\n004\n")


NAMES = "ImageSets/Segmentation/train.txt"
MASK_1 = "SegmentationClass/001.png"
VOC = {
    "as it should be": Case(lambda root: None),
    **encoded(NAMES),
    "blanks and blank lines": Case(text(NAMES, swapped("\n", "  \n\n"))),
    "names of pictures": Case(text(NAMES, swapped("\n", ".JPG\n"))),
    "paths of Windows": Case(rows(NAMES, lambda ls: [f"C:\\data\\JPEGImages\\{name}.jpg" for name in ls])),
    "picture and mask": Case(rows(NAMES, lambda ls: [f"{name}.jpg,{name}.png" for name in ls])),
    "names in quotation marks": Case(rows(NAMES, lambda ls: [f'"{name}"' for name in ls])),
    "an id twice": Case(text(NAMES, lambda t: t + "001\n")),
    "lines of remarks": Case(text(NAMES, lambda t: "# who has this seen?\n" + t)),
    "lost zeros": Case(
        text(NAMES, swapped("00", "")),
        {("ids written otherwise than their pictures, read as those", "train.txt")}),
    "a name of no picture": Case(
        text(NAMES, lambda t: t + "099\n"), {("listed picture is not here", "099")}),
    "an empty list": Case(text(NAMES, lambda t: ""), refused="set data.root, or data.options.lists"),
    "a list that is a picture": Case(
        lambda root: shutil.copy(root / "JPEGImages/001.jpg", root / NAMES), refused="save it as UTF-8"),
    "a mask of no bytes": Case(
        lambda root: (root / MASK_1).write_bytes(b""), {("label cannot be used", "001")}, {"001"}),
    "a mask of another size": Case(
        lambda root: write_png(root / MASK_1, np.ones((9, 9), np.uint8)), {("label cannot be used", "001")}, {"001"}),
    "a mask with an unknown class": Case(
        lambda root: write_png(root / MASK_1, np.full(SHAPE, 7, np.uint8)), {("label cannot be used", "001")}, {"001"}),
    "a picture that is text": Case(
        lambda root: (root / "JPEGImages/001.jpg").write_text("moved"), {("unreadable image", "001")}, {"001"}),
}  # fmt: skip


@pytest.mark.parametrize("name", VOC)
def test_index_masks(tmp_path, name):
    voc(tmp_path)
    known = {f"{n:03d}": classes(n) for n in range(1, 5)}
    judge("voc", tmp_path, {"classes": ["background", "cat", "dog"], "test_split": None}, VOC[name], known)


# ---- building damage ----------------------------------------------------------------------------------
def box(x, y):
    return f"POLYGON (({x} {y}, {x + 8} {y}, {x + 8} {y + 8}, {x} {y + 8}, {x} {y}))"


def damage(root):
    for folder in ("images", "labels"):
        (root / "train" / folder).mkdir(parents=True)
    for number in range(3):
        for seed, side in enumerate(("pre", "post")):
            name = f"storm_{number:08d}_{side}_disaster"
            pixels = np.random.default_rng(seed + number).integers(1, 256, (48, 48, 3), dtype=np.uint8)
            write_png(root / "train/images" / f"{name}.png", pixels)
            more = {"subtype": "destroyed"} if side == "post" else {}
            house = {"properties": {"feature_type": "building", "uid": "1", **more}, "wkt": box(4 + number, 6)}
            (root / "train/labels" / f"{name}.json").write_text(
                json.dumps({"features": {"xy": [house], "lng_lat": []}})
            )


FIRST = "storm_00000000"
POST = f"train/labels/{FIRST}_post_disaster.json"


def labels(edit):
    """Change the object in the post label of the first scene."""

    def change(root):
        held = json.loads((root / POST).read_text())
        changed = edit(held)
        (root / POST).write_text(json.dumps(held if changed is None else changed))

    return change


def house(**changes):
    return labels(lambda held: held["features"]["xy"][0].update(changes))


DAMAGE = {
    "as it should be": Case(lambda root: None),
    "a label cut short": Case(text(POST, lambda t: t[:40])),
    "a label of no bytes": Case(text(POST, lambda t: "")),
    "a label in Latin-1": Case(text(POST, lambda t: t.replace("1", "\xe9"), "latin-1")),
    "a list for an object": Case(labels(lambda held: [held])),
    "no features": Case(labels(lambda held: {"metadata": {}})),
    "features of null": Case(labels(lambda held: {"features": None})),
    "outlines that are an object": Case(labels(lambda held: {"features": {"xy": {}}})),
    "a building of null": Case(labels(lambda held: {"features": {"xy": [None]}})),
    "an outline that is no WKT": Case(house(wkt="POLYGON ((1 2, 3")),
    "an outline that is a number": Case(house(wkt=7)),
    "an outline that is a point": Case(house(wkt="POINT (1 2)")),
    "a vertex that is nan": Case(house(wkt="POLYGON ((nan 1, 2 2, 3 3, nan 1))")),
    "a vertex far away": Case(house(wkt="POLYGON ((0 0, 1e300 0, 3 3, 0 0))")),
    "no properties": Case(labels(lambda held: {"features": {"xy": [{"wkt": box(1, 1)}]}})),
    "an unknown damage": Case(house(properties={"feature_type": "building", "subtype": "gone"})),
    "damage in a list": Case(house(properties={"feature_type": "building", "subtype": ["destroyed"]})),
    "a deep nest": Case(text(POST, lambda t: "[" * 100_000 + "]" * 100_000)),
    "a label that is not there": Case(lambda root: without(root, POST)),
    "an image that is not there": Case(lambda root: without(root, f"train/images/{FIRST}_post_disaster.png")),
    "an image of another size": Case(
        lambda root: write_png(root / f"train/images/{FIRST}_post_disaster.png", np.full((47, 48, 3), 9, np.uint8))),
    "an image of no bytes": Case(
        lambda root: (root / f"train/images/{FIRST}_post_disaster.png").write_bytes(b"")),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_building_damage(tmp_path, name):
    """The scene is named in a finding and left out; the two others are what they were."""
    damage(tmp_path)
    DAMAGE[name].change(tmp_path)
    competition = open_competition("xview2", tmp_path)
    used = [scene.id for scene in competition.scenes("train")]
    findings = [finding for finding in competition.inspect() if finding.kind != "size is not 1024x1024"]
    whole = name == "as it should be"
    assert used == [FIRST] * whole + ["storm_00000001", "storm_00000002"]
    assert {finding.scene for finding in findings} == (set() if whole else {FIRST}), findings
    for number, scene in enumerate(competition.scenes("train"), int(not whole)):
        truth = np.zeros((48, 48), np.uint8)
        truth[6:15, 4 + number : 13 + number] = 4
        np.testing.assert_array_equal(competition.truth(scene)["damage"], truth)


# ---- given folds --------------------------------------------------------------------------------------
IDS = ["001", "002", "003", "004"]
GIVEN = "id,fold\n001,0\n002,1\n003,0\n004,1\n"
FOLDS = {
    "as it should be": (GIVEN, []),
    "semicolons and a byte order mark": ("\ufeff" + GIVEN.replace(",", ";"), []),
    "folds as floats": (GIVEN.replace("0\n", "0.0\n").replace("1\n", "1.0\n"), []),
    "lost zeros": (GIVEN.replace("00", ""), ["ids of folds.csv read as those of scenes: 1 (folds.csv)"]),
    "blanks and blank lines": (GIVEN.replace(",", " , ").replace("\n", "\n\n"), []),
    "ids with a suffix": (GIVEN.replace(",", ".PNG,").replace("id.PNG", "id"), []),
    "folds that begin at 1": (
        GIVEN.replace(",1", ",2").replace(",0", ",1"), "found none in fold 0; count folds from 0, or set folds.n"),
    "all scenes in one fold": (GIVEN.replace(",1", ",0"), "found none in fold 1"),
    "a row twice": (GIVEN + "001,0\n", ["folds.csv line 6: row written twice, read once (as line 2)"]),
    "a row too long": (
        GIVEN + "005,1,x\n", ["folds.csv line 6: row left out (expected 2 fields as in the header, got 3)"]),
    "two folds of one scene": (GIVEN + "001,1\n", "expected every id once, got 1 repeated (001)"),
    "a fold in words": (GIVEN.replace("001,0", "001,first"), "001 has 'first'"),
    "a scene that is missing": (GIVEN.replace("001,0\n", ""), "1 scenes have no fold (001)"),
    "no column of folds": (GIVEN.replace("fold", "part"), "expected the columns id and fold"),
    "nothing": ("", "got an empty file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDS)
def test_given_folds(tmp_path, name):
    written, said = FOLDS[name]
    (tmp_path / "folds.csv").write_text(written, encoding="utf-8")
    section, table = Folds(n=2, file=str(tmp_path / "folds.csv")), pd.DataFrame({"id": IDS})
    if isinstance(said, str):
        with pytest.raises((DataError, ConfigError)) as error:
            stage._given(section, table)
        assert said in str(error.value) and "folds" in str(error.value)
        return
    taken, lines = stage._given(section, table)
    assert dict(zip(taken["id"], taken["fold"])) == {"001": 0, "002": 1, "003": 0, "004": 1}
    assert [line.removeprefix("  ! ") for line in lines[1:]] == said and "folds taken from" in lines[0]


def test_there_are_more_than_sixty():
    counts = {"binary_rle": BINARY, "multiclass_rle": SEVERAL, "labels": LABELS, "videos": VIDEOS, "voc": VOC,
              "xview2": DAMAGE, "folds.file": FOLDS}  # fmt: skip
    assert all("as it should be" in cases for cases in counts.values())
    assert sum(len(cases) - 1 for cases in counts.values()) >= 60
