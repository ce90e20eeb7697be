"""Malformed submissions of every competition: each is refused in a sentence that names the fault, none ends otherwise.

Every case goes the way of a user: a file or folder is given to ``06_make_submission.py --lint``.
"""

import contextlib
import csv
import io
import os
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import stage
from sisters import COMMON, EXPERIMENTS, SEGMENTATION, TRAIN

from lib.competitions import NAMES, open_competition
from lib.competitions.bright import Bright
from lib.competitions.voc.competition import VOC
from lib.competitions.xview2.pairs import lint_png_pairs
from lib.config.load import load
from lib.scenes import rle

SIZE = (8, 9)
MASK = np.zeros(SIZE, np.uint8)
MASK[2:5, 3:7] = 1
ELSEWHERE = np.zeros(SIZE, np.uint8)
ELSEWHERE[6:, :2] = 1
TILE = (1024, 1024)
STAGE = "06_make_submission"

OPTIONS = {
    "xview2": {},
    "binary_rle": {"order": "column", "origin": 1},
    "objects": {"order": "column", "origin": 1, "metric": "object_map"},
    "multiclass_rle": {"classes": ["1", "2"], "order": "column", "origin": 1},
    "exclusive": {"classes": ["1", "2"], "order": "column", "origin": 1, "exclusive": True},
    "labels": {"classes": ["cat", "dog"]},
    "probabilities": {"classes": ["cat", "dog"], "submit": "probabilities"},
    "voc": {"classes": ["background", "cat", "dog"]},
    "videos": {"test": "test"},
}
"""Competition, or a second form of one, and its options."""
COMPETITION_OF = {"objects": "binary_rle", "exclusive": "multiclass_rle", "probabilities": "labels"}
IDS = ("a1", "a2", "b_1")
TEXT = rle.encode(MASK)
OTHER = rle.encode(ELSEWHERE)
TABLES = {
    "binary_rle": f"id,rle\na1,{TEXT}\na2,\nb_1,{OTHER}\n",
    "objects": f"id,rle\na1,{TEXT}\na1,{OTHER}\na2,\nb_1,{OTHER}\n",
    "multiclass_rle": f"id,class,segmentation\na1,1,{TEXT}\na1,2,{TEXT}\na2,1,\na2,2,{OTHER}\nb_1,1,{OTHER}\nb_1,2,\n",
    "exclusive": f"id,class,segmentation\na1,1,{TEXT}\na1,2,{OTHER}\na2,1,\na2,2,{OTHER}\nb_1,1,{OTHER}\nb_1,2,\n",
    "labels": "id,label\na1,cat\na2,dog\nb_1,cat\n",
    "probabilities": "id,cat,dog\na1,0.750000,0.250000\na2,0.100000,0.900000\nb_1,0.500000,0.500000\n",
    "voc": f"ImageId_ClassId,EncodedPixels\na1_1,{TEXT}\na1_2,{OTHER}\na2_1,\na2_2,\nb_1_1,{OTHER}\nb_1_2,\n",
    "videos": "fname,liveness_score\na1.mp4,0.900\na2.mp4,0.100\nb_1.mp4,0.500\n",
}
"""Valid submissions, written by hand."""


# ---- data and valid submissions -----------------------------------------------------------------------
def picture(path: Path, shape: tuple[int, ...] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(shape, 90, np.uint8))


def write_data(root: Path, form: str) -> None:
    """Write the test scenes of a competition, and of its labelled scenes what ``--lint`` needs."""
    competition = COMPETITION_OF.get(form, form)
    if competition == "xview2":
        for number in (1, 2, 3):
            for side in ("pre", "post"):
                picture(root / f"test/images/storm_0000000{number}_{side}_disaster.png", TILE)
    elif competition == "voc":
        for scene_id in ("t", *IDS):
            picture(root / f"JPEGImages/{scene_id}.png")
        (root / "ImageSets/Segmentation").mkdir(parents=True)
        for split, ids in (("train", ["t"]), ("test", IDS)):
            (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids) + "\n")
        (root / "SegmentationClass").mkdir()
        cv2.imwrite(str(root / "SegmentationClass/t.png"), MASK)
    elif competition in ("binary_rle", "multiclass_rle"):
        picture(root / "train_images/t.png")
        for scene_id in IDS:
            picture(root / f"test_images/{scene_id}.png")
        header, *fields = ("id,rle", "t") if competition == "binary_rle" else ("id,class,segmentation", "t", "1")
        (root / "train.csv").write_text(f"{header}\n{','.join(fields)},{TEXT}\n")
    else:
        suffix = ".mp4" if competition == "videos" else ".png"
        for place in ("train/t", *(f"test/{scene_id}" for scene_id in IDS)):
            picture(root / f"{place}.png")
            (root / f"{place}.png").rename(root / f"{place}{suffix}")
        (root / "train.csv").write_text("id,label\nt,cat\n")


def answers_of(scenes):
    """Yield an answer for each xView2 scene; the last one has no building, which is no fault."""
    for number, scene in enumerate(scenes):
        damage = np.zeros(TILE, np.uint8)
        if number < 2:
            damage[100:200, 100:300], damage[400:500, 50 : 90 + number] = 1 + number, 4
        yield scene, {"localization": (damage > 0).astype(np.uint8), "damage": damage}


class Forms:
    """The data, experiment and a valid submission of each competition, written when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder, self.written = folder, set()

    def make(self, form: str) -> tuple[Path, Path]:
        """Return the experiment file and the folder of a valid submission."""
        config, valid = self.folder / f"{form}.yaml", self.folder / form / "valid"
        if form not in self.written:
            self.written.add(form)
            root, competition = self.folder / form / "data", COMPETITION_OF.get(form, form)
            write_data(root, form)
            valid.mkdir()
            experiment = EXPERIMENTS.get(competition) or {
                "models": {"loc": {"task": "loc", "network": {**SEGMENTATION, "images": ["pre"]},
                                   "train": {**TRAIN, "loss": {"terms": {"dice": 1}}}}},
            }  # fmt: skip
            data = {"root": str(root), "options": OPTIONS[form]}
            config.write_text(
                yaml.safe_dump({**COMMON, **experiment, "name": form, "competition": competition, "data": data})
            )
            if form in TABLES:
                (valid / "submission.csv").write_text(TABLES[form])
            if competition == "xview2":
                opened = open_competition(competition, root)
                opened.write_submission(answers_of(opened.scenes("test")), valid)
            if form == "labels":
                (valid / "probabilities.csv").write_text(TABLES["probabilities"].replace("0.5,0.5", "0.6,0.4"))
            if form == "voc":
                (valid / "masks").mkdir()
                for scene_id, mask in zip(IDS, (MASK + 2 * ELSEWHERE, 0 * MASK, ELSEWHERE), strict=True):
                    cv2.imwrite(str(valid / f"masks/{scene_id}.png"), mask)
        return config, valid


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Forms:
    return Forms(tmp_path_factory.mktemp("forms"))


# ---- the cases ----------------------------------------------------------------------------------------
Change = Callable[[Path], Path | tuple]
"""Breaks a copy of a valid submission; returns what is linted, and further flags of the stage."""


@dataclass(frozen=True)
class Case:
    """One malformed submission."""

    form: str
    place: str
    """What is broken: the CSV, the folder of PNGs, the archive, or the folder of stage 06 that holds them."""
    kind: str
    change: Change
    words: str
    """What must be said of it."""

    def __str__(self) -> str:
        return f"{self.form}-{self.place}-{self.kind}".replace(" ", "_")


def lines(change: Callable[[list[str]], list[str]], **writing) -> Change:
    """Change the lines of the CSV, header first, which is then linted alone."""

    def apply(folder: Path) -> Path:
        path = folder.parent / "alone.csv"
        path.write_text("".join(line + "\n" for line in change((folder / "submission.csv").read_text().splitlines())),
                        **writing)  # fmt: skip
        return path

    return apply


def text(change: Callable[[str], str | bytes]) -> Change:
    """Change the text of the CSV, which is then linted alone."""

    def apply(folder: Path) -> Path:
        path, changed = folder.parent / "alone.csv", change((folder / "submission.csv").read_text())
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        return path

    return apply


def sampled(content: Callable[[str], str | None]) -> Change:
    """Give a sample of this content made of the submission's text; None: a file that is not there."""

    def apply(folder: Path) -> tuple:
        table, sample = folder / "submission.csv", folder.parent / "sample.csv"
        if (made := content(table.read_text())) is not None:
            sample.write_text(made)
        return table, "--sample", sample

    return apply


def last(field: str) -> Change:
    """Put another text in the last field of the first row that is not empty there."""

    def put(rows: list[str]) -> list[str]:
        at = next(i for i, row in enumerate(rows) if i and not row.endswith(","))
        return [*rows[:at], f"{rows[at].rpartition(',')[0]},{field}", *rows[at + 1 :]]

    return lines(put)


MISSING, FOREIGN, HEADER = "missing", "not one of the scenes asked for", "expected the header"
EVERY_CSV: list[tuple[str, Change, str]] = [
    ("empty file", text(lambda t: ""), "expected"),
    ("header alone", lines(lambda r: r[:1]), "expected rows below the header, got none"),
    ("no header", lines(lambda r: r[1:]), HEADER),
    ("other header", lines(lambda r: ["a,b,c"[: 2 * r[0].count(",") + 1], *r[1:]]), HEADER),
    ("columns exchanged", lines(lambda r: [",".join(reversed(row.split(","))) for row in r]), HEADER),
    ("scene missing", lines(lambda r: [row for row in r if not row.startswith("b_1")] if "b_1" in r[-1] else r[:-5]),
     MISSING),
    ("row foreign", lines(lambda r: [*r, r[-1].replace("b_1", "zz").replace("storm", "flood")]), FOREIGN),
    ("field more", lines(lambda r: [*r[:-1], r[-1] + ",1"]), "fields"),
    ("field less", lines(lambda r: [*r[:-1], r[-1].split(",")[0]]), "1 instead of"),
    ("blank line", lines(lambda r: [*r[:2], "", *r[2:]]), "0 instead of"),
    ("semicolons", text(lambda t: t.replace(",", ";")), "expected"),
    ("tabs", text(lambda t: t.replace(",", "\t")), "expected"),
    ("UTF-16", text(lambda t: t.encode("utf-16")), "UTF-8"),
    ("unclosed quote", text(lambda t: ',"'.join(t[:-1].rpartition(",")[::2])), "unexpected end of data"),
    ("id with a blank", lines(lambda r: [*r[:-1], " " + r[-1]]), FOREIGN),
    ("two files joined", lines(lambda r: [*r, *r]), ""),
    ("a picture", text(lambda t: b"\x89PNG\r\n\x1a\n\xff\xfe"), "expected a CSV file in UTF-8"),
    ("order of the sample", sampled(lambda t: "\n".join([t.split("\n")[0], *sorted(t.split("\n")[1:-1])[::-1]]) + "\n"),
     "expected the sample's order"),
    ("sample without rows", sampled(lambda t: t.split("\n")[0] + "\n"), "a header alone"),
    ("sample empty", sampled(lambda t: ""), "an empty file"),
    ("sample not there", sampled(lambda t: None), "sample.csv: expected a"),
    ("sample of others", sampled(lambda t: t.replace("a1", "q1").replace("storm", "flood")), "the sample has it"),
]  # fmt: skip
ONE_ROW = [
    ("row twice", lines(lambda r: [*r, r[-1]]), "id written more than once"),
    ("row missing", lines(lambda r: r[:-1]), MISSING),
]
RUNS = [
    ("nan", last("nan"), "NaN where an empty mask is an empty text"),
    ("odd count", last("1 1 5"), "an odd count of numbers"),
    ("words", last("one two"), "not whole numbers"),
    ("decimals", last("1.0 2"), "not whole numbers"),
    ("brackets", last("[1 2]"), "not whole numbers"),
    ("negative", last("5 -2"), "not whole numbers"),
    ("outside", last("1048576 2"), "a run outside of the image"),
    ("from 0", last("0 2"), "a run outside of the image"),
    ("past int64", last("99999999999999999999999 1"), "a run outside of the image"),
    ("length 0", last("3 0"), "a run of length 0"),
    ("out of order", last("9 2 3 2"), "runs out of order"),
    ("overlapping", last("3 4 5 2"), "overlapping runs"),
]
LABELS = [
    ("unknown class", last("bird"), "label is none of the classes"),
    ("empty", last(""), "label is none of the classes"),
    ("other case", last("Cat"), "label is none of the classes"),
    ("number", last("0"), "label is none of the classes"),
]
PROBABILITIES = [
    ("sum", last("0.9"), "do not add up to 1"),
    ("above 1", last("1.2"), "expected probabilities in [0, 1]"),
    ("nan", last("nan"), "expected probabilities in [0, 1]"),
    ("word", last("dog"), "expected probabilities in [0, 1]"),
    ("underscore", last("0.2_5"), "expected probabilities in [0, 1]"),
]
SCORES = [
    (kind, last(field), "expected a score in [0, 1]")
    for kind, field in {"above 1": "1.5", "below 0": "-0.1", "nan": "nan", "empty": "", "word": "real",
                        "infinite": "inf", "decimal comma": '"0,5"', "underscore": "0_1",
                        "other digits": "\u0661"}.items()
]  # fmt: skip


def cases() -> list[Case]:
    found = []
    for form, own in {
        "xview2": [*ONE_ROW, *RUNS], "binary_rle": [*ONE_ROW, *RUNS], "objects": RUNS,
        "multiclass_rle": [*ONE_ROW, *RUNS], "exclusive": [], "labels": [*ONE_ROW, *LABELS],
        "probabilities": PROBABILITIES, "voc": [*ONE_ROW, *RUNS], "videos": [*ONE_ROW, *SCORES],
    }.items():  # fmt: skip
        every = EVERY_CSV if form not in ("objects", "exclusive", "probabilities") else []
        found += [Case(form, "csv", *case) for case in [*every, *own]]
    return [*found, *OTHERS]


# ---- archives -----------------------------------------------------------------------------------------
def entries(folder: Path) -> dict[str, bytes]:
    """Return the entries of the valid archive: name -> bytes."""
    with zipfile.ZipFile(folder / "xview2.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


DAMAGE, BUILDINGS = "test_damage_00001_prediction.png", "test_localization_00001_prediction.png"


def archive(change: Callable[[dict[str, bytes]], object] = lambda e: None, method: int = zipfile.ZIP_STORED,
            then: Callable[[bytes], bytes] = lambda data: data, alone: bool = True) -> Change:  # fmt: skip
    """Change the entries of the archive, pack them, and change the bytes; ``alone``: away from the other files."""

    def apply(folder: Path) -> Path:
        content = entries(folder)
        changed = change(content)
        path = folder.parent / "handed_in.zip" if alone else folder / "xview2.zip"
        with zipfile.ZipFile(path, "w", method) as packed:
            for name, data in changed if isinstance(changed, list) else content.items():
                packed.writestr(name, data)
        path.write_bytes(then(path.read_bytes()))
        return path if alone else folder

    return apply


def png(mask: np.ndarray) -> bytes:
    return cv2.imencode(".png", mask)[1].tobytes()


def unpng(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def jpeg(data: bytes) -> bytes:
    return cv2.imencode(".jpg", unpng(data))[1].tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_adler(data: bytes) -> bytes:
    """Spoil the checksum of the pixels, and make that of the chunk right again."""
    raw = bytearray(zlib.compress(b"".join(b"\0" + row.tobytes() for row in unpng(data))))
    raw[-1] ^= 1
    header = struct.pack(">IIBBBBB", *TILE, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(raw)) + chunk(b"IEND", b"")


def flipped(data: bytes) -> bytes:
    """Change one bit in the middle."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


def renamed(entry: str, name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda e: e.update({name: e.pop(entry)})


def damaged_from(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, bytes]], None]:
    """Replace the damage picture of the second pair by one made of it."""
    return lambda e: e.update({DAMAGE: png(make(unpng(e[DAMAGE])))})


def field(offset: int, value: bytes, local: int | None) -> Callable[[bytes], bytes]:
    """Write bytes into the first entry's record of the central directory and, at ``local``, into its own header."""

    def apply(data: bytes) -> bytes:
        for start, at in ((data.index(b"PK\x01\x02"), offset), (0, local)):
            if at is not None:
                data = data[: start + at] + value + data[start + at + len(value) :]
        return data

    return apply


def without_pair(e: dict[str, bytes]) -> None:
    del e[DAMAGE], e[BUILDINGS]


def black(e: dict[str, bytes]) -> None:
    e.update({name: png(np.zeros(TILE, np.uint8)) for name in e})


def sample_of(folder: Path) -> Path:
    """Write a sample of the scenes and one more."""
    path = folder.parent / "sample.csv"
    table = (folder / "submission.csv").read_text()
    path.write_text(table + "".join(f"storm_00000009_{part},\n" for part in range(5)))
    return path


# kind, change of the entries, change of the bytes, words
ARCHIVES: list[tuple[str, Change, str]] = [
    ("pair missing", archive(without_pair), "expected the scenes asked for|does not exist"),
    ("picture missing", archive(lambda e: e.pop(DAMAGE)), "does not exist"),
    ("all black", archive(black), "every localization picture is black"),
    ("damage black", archive(damaged_from(lambda m: 0 * m)), "is black though the localization picture has buildings"),
    ("entry twice", archive(lambda e: [*e.items(), (DAMAGE, e[DAMAGE])]), "more than once"),
    ("in a folder", archive(lambda e: [("out/" + name, data) for name, data in e.items()]), "lies in a folder"),
    ("up and out", archive(renamed(DAMAGE, "../" + DAMAGE)), "lies in a folder"),
    ("absolute path", archive(renamed(DAMAGE, "/tmp/" + DAMAGE)), "lies in a folder"),
    ("backslashes", archive(renamed(DAMAGE, "out\\" + DAMAGE)), "lies in a folder"),
    ("folder entry", archive(lambda e: [("out/", b""), *e.items()]), "lies in a folder"),
    ("another file in it", archive(lambda e: e.update({"notes.txt": b"hello"})), "is not named like"),
    ("other name", archive(renamed(DAMAGE, "storm_00000002_damage.png")), "is not named like"),
    ("foreign pair", archive(lambda e: e.update({n.replace("00001", "00007"): e[n] for n in (DAMAGE, BUILDINGS)})),
     "is of no scene that is asked for"),
    ("wrong checksum", archive(lambda e: e.update({DAMAGE: flipped(e[DAMAGE])})), "a chunk has a wrong checksum"),
    ("trailing bytes", archive(lambda e: e.update({DAMAGE: e[DAMAGE] + b"more"})), "has bytes after the end"),
    ("cut PNG", archive(lambda e: e.update({DAMAGE: e[DAMAGE][:-20]})), "is cut short"),
    ("pixels of another checksum", archive(lambda e: e.update({DAMAGE: with_adler(e[DAMAGE])})), "cannot be decoded"),
    ("JPEG", archive(lambda e: e.update({DAMAGE: jpeg(e[DAMAGE])})), "is not a PNG"),
    ("0 and 255", archive(lambda e: e.update({BUILDINGS: png(255 * unpng(e[BUILDINGS]))})), "holds values other than"),
    ("other size", archive(damaged_from(lambda m: m[:512])), "is 512 x 1024"),
    ("colour", archive(damaged_from(lambda m: np.dstack([m] * 3))), "8-bit RGB PNG"),
    ("16 bit", archive(damaged_from(lambda m: m.astype(np.uint16))), "16-bit grey PNG"),
    ("damage outside", archive(damaged_from(lambda m: np.roll(m, 300, 0))), "damage outside of every building"),
    ("encrypted", archive(then=field(8, b"\x01", 6)), "is encrypted"),
    ("unknown compression", archive(then=field(10, b"\x63\0", 8)), "is packed by method 99"),
    ("bzip2", archive(method=zipfile.ZIP_BZIP2), "is packed by method 12"),
    ("newer zip", archive(then=field(6, b"\xff\0", 4)), "expected a zip of PNG pairs, got zip file version"),
    ("broken stream", archive(method=zipfile.ZIP_DEFLATED, then=lambda d: d[:90] + b"\xff" * 200 + d[290:]),
     "cannot be unpacked"),
    ("wrong CRC", archive(then=field(16, b"\1\2\3\4", 14)), "cannot be unpacked (Bad CRC-32"),
    ("size in zip64 that is not there", archive(then=field(24, b"\xff\xff\xff\xff", 22)),
     "unpacks to more than|expected a zip of PNG pairs"),
    ("two sizes", archive(then=field(20, b"\1\2\0\0", None)), "gives it two sizes"),
    ("local name differs", archive(then=lambda d: d.replace(b"test_damage_00000", b"test_damage_00009", 1)),
     "cannot be unpacked"),
    ("truncated directory", archive(then=lambda d: d[:-40]), "expected a zip of PNG pairs"),
    ("directory of rubbish", archive(then=lambda d: d[: d.index(b"PK\1\2")] + b"x" * 40 + d[d.index(b"PK\1\2") + 40 :]),
     "expected a zip of PNG pairs"),
    ("half", archive(then=lambda d: d[: len(d) // 2]), "expected a zip of PNG pairs"),
    ("empty zip", archive(lambda e: e.clear()), "does not exist"),
    ("no zip", archive(then=lambda d: b"hello"), "expected a zip of PNG pairs"),
    ("bomb", archive(lambda e: e.update({DAMAGE: bytes(2**24)}), zipfile.ZIP_DEFLATED), "unpacks to more than 2097152"),
    ("bomb that lies", archive(lambda e: e.update({"test_damage_00000_prediction.png": bytes(2**24)}),
                               zipfile.ZIP_DEFLATED, field(24, b"\xff\xff\0\0", 22)), "cannot be unpacked"),
    ("link", lambda folder: linked(folder), "is a link"),
    ("sample with more scenes", lambda folder: (archive()(folder), "--sample", sample_of(folder)), "storm_00000009"),
    ("sample empty", lambda folder: (archive()(folder), *sampled(lambda t: "")(folder)[1:]), "an empty file"),
]  # fmt: skip


def linked(folder: Path) -> Path:
    """Write the archive with its first entry as a symbolic link."""
    path = folder.parent / "handed_in.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for number, (name, data) in enumerate(entries(folder).items()):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (0o120777 if number == 0 else 0o644) << 16
            packed.writestr(info, b"/etc/passwd" if number == 0 else data)
    return path


def zip64(folder: Path) -> Path:
    """Write the archive with sizes in the form that files above 4 GiB need."""
    path = folder.parent / "handed_in.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in entries(folder).items():
            with packed.open(name, "w", force_zip64=True) as file:
                file.write(data)
    return path


# ---- folders ------------------------------------------------------------------------------------------
def within(part: str, change: Callable[[Path], object]) -> Change:
    """Change a part of the folder of stage 06, all of which is linted then."""

    def apply(folder: Path) -> Path:
        change(folder / part)
        return folder

    return apply


def pngs(part: str, change: Callable[[Path], object], beside: bool = False) -> Change:
    """Change the folder of PNGs, which is linted alone; ``beside``: at its place in the folder of stage 06."""

    def apply(folder: Path) -> Path:
        place = folder / part
        if not beside:
            place = folder.parent / "handed_in"
            shutil.copytree(folder / part, place)
        change(place)
        return place

    return apply


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes(change((place / name).read_bytes()))


def before(mark: bytes) -> Callable[[bytes], bytes]:
    """Return what cuts a file off where this stands first."""
    return lambda data: data[: data.index(mark)]


def rewrite_mask(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return rewrite(name, lambda data: png(change(unpng(data))))


def drop(*names: str) -> Callable[[Path], object]:
    return lambda place: [(place / name).unlink() for name in names]


def move_damage(table: Path) -> None:
    """Let the damage rows of the first scene lie elsewhere in the image."""
    found = table.read_text().splitlines()
    found[5] = "storm_00000001_4,1 3"
    table.write_text("\n".join(found) + "\n")


def same_damage(table: Path) -> None:
    """Give the first scene two damage classes on the same pixels."""
    found = table.read_text().splitlines()
    found[4] = "storm_00000001_3," + found[5].split(",")[1]
    table.write_text("\n".join(found) + "\n")


def alone(change: Callable[[Path], object]) -> Change:
    """Change the CSV and lint it alone."""

    def apply(folder: Path) -> Path:
        path = folder.parent / "alone.csv"
        shutil.copy(folder / "submission.csv", path)
        change(path)
        return path

    return apply


IDS_FILE = "scene_ids.csv"
OTHERS = [
    *(Case("xview2", "zip", *case) for case in ARCHIVES),
    Case("xview2", "csv", "class 5", lines(lambda r: [*r, "storm_00000003_5,"]), FOREIGN),
    Case("xview2", "csv", "two damage classes", alone(same_damage), "two damage classes on one pixel (storm_00000001)"),
    Case("xview2", "csv", "damage outside", alone(move_damage), "damage outside of every building"),
    *(Case("xview2", "pngs", kind, pngs("xview2", change), words) for kind, change, words in [
        ("pair missing", drop(DAMAGE, BUILDINGS), "does not exist"),
        ("picture missing", drop(BUILDINGS), "does not exist"),
        ("pair missing and no list", drop(DAMAGE, BUILDINGS, IDS_FILE), "does not exist"),
        ("list short", rewrite(IDS_FILE, before(b"storm_00000003")), "expected the scenes asked for"),
        ("list twice", rewrite(IDS_FILE, lambda d: d + b"storm_00000003,test_00002\n"), "once"),
        ("list of rubbish", rewrite(IDS_FILE, lambda d: b"hello"), "expected rows of scene_id,pair"),
        ("wrong checksum", rewrite(DAMAGE, flipped), "a chunk has a wrong checksum"),
        ("trailing bytes", rewrite(DAMAGE, lambda d: d + b"\0"), "has bytes after the end"),
        ("empty file", rewrite(DAMAGE, lambda d: b""), "is not a PNG"),
        ("large file", rewrite(DAMAGE, lambda d: d + bytes(2**22)), "has more than 2097152 bytes"),
        ("damage outside", rewrite_mask(DAMAGE, lambda m: np.roll(m, 300, 0)), "damage outside of every building"),
        ("other name", lambda p: (p / DAMAGE).rename(p / "damage.png"), "is not named like"),
        ("folder in a place", lambda p: ((p / DAMAGE).unlink(), (p / DAMAGE).mkdir()), "cannot be read"),
        ("all black", lambda p: [q.write_bytes(png(np.zeros(TILE, np.uint8))) for q in p.glob("*.png")], "is black"),
        ("no PNG", lambda p: [q.unlink() for q in p.glob("*.png")], "does not exist"),
    ]),
    Case("xview2", "pngs", "black beside the CSV", pngs("xview2", lambda p: [
        (p / name).write_bytes(png(np.zeros(TILE, np.uint8))) for name in (DAMAGE, BUILDINGS)
    ], beside=True), "gives another answer than submission.csv"),
    Case("xview2", "pngs", "sample with more scenes",
         lambda f: (pngs("xview2", drop(IDS_FILE))(f), "--sample", sample_of(f)), "storm_00000009"),
    *(Case("xview2", "folder", kind, change, words) for kind, change, words in [
        ("archive black", archive(black, alone=False), "gives another answer than submission.csv"),
        ("archive of a pair less", archive(without_pair, alone=False), "does not exist"),
        ("archive with pairs exchanged", archive(lambda e: [
            (name.replace("00000", "x").replace("00001", "00000").replace("x", "00001"), data)
            for name, data in e.items()], alone=False), "gives another answer than submission.csv"),
        ("no archive", within("", drop("xview2.zip")), "expected a zip of PNG pairs"),
        ("no CSV", within("", drop("submission.csv")), "found nothing there"),
        ("no list", within("xview2", drop(IDS_FILE)), IDS_FILE),
        ("list short", within("xview2", rewrite(IDS_FILE, before(b"storm_00000003"))), "storm_00000003"),
        ("picture shifted", within("xview2", lambda p: [
            rewrite_mask(name, lambda m: np.roll(m, 1, 1))(p) for name in (DAMAGE, BUILDINGS)
        ]), "gives another answer than submission.csv"),
        ("CSV of other answers", within("", rewrite("submission.csv", lambda d: d.replace(b"3_0,", b"3_0,5 2"))),
         "gives another answer"),
        ("CSV lacks a scene", within("", rewrite("submission.csv", before(b"storm_00000003"))), "missing"),
    ]),
    Case("objects", "csv", "objects overlap", lines(lambda r: [*r, f"b_1,{OTHER}"]), "objects that overlap"),
    Case("objects", "csv", "empty beside others", lines(lambda r: [*r, "b_1,"]), "an empty row beside others"),
    Case("multiclass_rle", "csv", "class with a blank", lines(lambda r: [r[0], r[1].replace("a1,1", "a1, 1"), *r[2:]]),
         FOREIGN),
    Case("multiclass_rle", "csv", "class as a decimal", text(lambda t: t.replace(",2,", ",2.0,")), FOREIGN),
    Case("multiclass_rle", "csv", "class unknown", lines(lambda r: [*r, "b_1,3,"]), FOREIGN),
    Case("exclusive", "csv", "two classes on one pixel", text(lambda t: t.replace(OTHER, TEXT, 1)), "on one pixel"),
    Case("labels", "folder", "probabilities lack a row", within("", rewrite("probabilities.csv", before(b"b_1"))),
         MISSING),
    Case("labels", "folder", "probabilities of another label", within("", rewrite("probabilities.csv",
         lambda d: d.replace(b"0.750000,0.250000", b"0.250000,0.750000"))), "not the most probable"),
    Case("labels", "folder", "probabilities of a foreign row", within("", rewrite("probabilities.csv",
         lambda d: d + b"zz,0.5,0.5\n")), FOREIGN),
    Case("voc", "csv", "class 0", lines(lambda r: [*r, "b_1_0,"]), FOREIGN),
    Case("voc", "csv", "two classes on one pixel", text(lambda t: t.replace(f"a1_2,{OTHER}", f"a1_2,{TEXT}")),
         "two classes on one pixel (a1)"),
    *(Case("voc", "pngs", kind, pngs("masks", change), words) for kind, change, words in [
        ("picture missing", drop("a2.png"), "picture without a PNG"),
        ("foreign picture", lambda p: shutil.copy(p / "a1.png", p / "zz.png"), FOREIGN),
        ("wrong checksum", rewrite("a1.png", flipped), "wrong checksum"),
        ("trailing bytes", rewrite("a1.png", lambda d: d + b"more"), "bytes after the end"),
        ("cut short", rewrite("a1.png", lambda d: d[:-15]), "is cut short"),
        ("JPEG", rewrite("a1.png", jpeg), "is not a PNG"),
        ("unknown class", rewrite_mask("a1.png", lambda m: 3 * (m > 0).astype(np.uint8)), "none of the classes 0..2"),
        ("ignore", rewrite_mask("a1.png", lambda m: 255 * np.minimum(m, 1)), "none of the classes 0..2"),
        ("other size", rewrite_mask("a1.png", lambda m: m[:-1]), "not of its picture's size"),
        ("colour", rewrite_mask("a1.png", lambda m: np.dstack([m] * 3)), "no PNG of 8-bit indices"),
        ("all background", lambda p: [rewrite_mask(q.name, lambda m: 0 * m)(p) for q in p.iterdir()],
         "background in every pixel"),
    ]),
    Case("voc", "pngs", "sample with more scenes", lambda f: (
        pngs("masks", lambda p: None)(f), *sampled(lambda t: t + "c1_1,\nc1_2,\n")(f)[1:]), "without a PNG"),
    Case("voc", "folder", "PNG of another answer", within("masks", rewrite_mask("a1.png", lambda m: np.roll(m, 1, 1))),
         "differ from the PNGs"),
    Case("voc", "folder", "no CSV", within("", drop("submission.csv")), "found nothing there"),
]  # fmt: skip
CASES = cases()


def lint(forms: Forms, case: Case, folder: Path) -> tuple[int, str]:
    """Change a valid submission and lint it; returns the exit code and what was said."""
    config, valid = forms.make(case.form)
    shutil.copytree(valid, folder / "copy")
    changed = case.change(folder / "copy")
    path, *more = changed if isinstance(changed, tuple) else (changed,)
    return said_of("--config", config, "--lint", path, *more)


def said_of(*flags: str | Path) -> tuple[int, str]:
    """Run the stage; returns its exit code and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = stage(STAGE, *map(str, flags))
    return code, said.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_malformed_submission_is_refused_by_name(forms, tmp_path, case):
    code, said = lint(forms, case, tmp_path)
    assert code == 2, f"accepted: {said}"
    assert any(word in said for word in case.words.split("|")), said


# ---- what is no fault ---------------------------------------------------------------------------------
def rewritten(**writing) -> Change:
    """Let pandas read the CSV and write it again, all of it text."""

    def apply(folder: Path) -> Path:
        path = folder.parent / "alone.csv"
        pd.read_csv(folder / "submission.csv", dtype=str, keep_default_na=False).to_csv(path, index=False, **writing)
        return path

    return apply


EVERY_VALID = [
    ("alone", lines(lambda r: r)),
    ("other order", lines(lambda r: [r[0], *reversed(r[1:])])),
    ("CRLF", text(lambda t: t.replace("\n", "\r\n"))),
    ("no line end at the end", text(lambda t: t[:-1])),
    ("byte order mark", text(lambda t: "\ufeff" + t)),
    ("quoted", rewritten(quoting=csv.QUOTE_ALL)),
    ("with its own sample", sampled(lambda t: t)),
]
VALID = [
    *(Case(form, "csv", kind, change, "valid") for form in ("xview2", *TABLES) for kind, change in EVERY_VALID),
    *(Case(form, "folder", "whole", lambda folder: folder, "valid") for form in ("xview2", "labels", "voc")),
    *(Case("xview2", "zip", kind, change, "valid") for kind, change in [
        ("stored", archive()),
        ("deflated", archive(method=zipfile.ZIP_DEFLATED)),
        ("other order", archive(lambda e: [*reversed(e.items())])),
        ("zip64", lambda folder: zip64(folder)),
        ("with a comment", archive(then=lambda d: d[:-2] + b"\2\0hi")),
        ("other compression of the PNGs", archive(lambda e: e.update({
            name: cv2.imencode(".png", unpng(data), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
            for name, data in e.items()
        }), alone=False)),
        ("buildings of 4", archive(lambda e: e.update({BUILDINGS: png(4 * unpng(e[BUILDINGS]))}))),
    ]),
    Case("xview2", "pngs", "alone", pngs("xview2", lambda p: None), "valid"),
    Case("xview2", "pngs", "beside", pngs("xview2", lambda p: None, beside=True), "valid"),
    Case("voc", "pngs", "alone", pngs("masks", lambda p: None), "valid"),
]  # fmt: skip


@pytest.mark.parametrize("case", VALID, ids=str)
def test_a_valid_form_of_a_submission_passes(forms, tmp_path, case):
    code, said = lint(forms, case, tmp_path)
    assert code == 0 and said.endswith(": valid\n"), said


# ---- around it ----------------------------------------------------------------------------------------
def test_there_are_130_and_every_competition_has_some():
    assert len(CASES) == len({str(case) for case in CASES}) >= 130
    assert Bright.lint is VOC.lint and Bright._lint_masks is VOC._lint_masks  # so one of them stands for both
    assert {COMPETITION_OF.get(case.form, case.form) for case in CASES} == set(NAMES) - {"bright"}


def test_without_a_list_of_scenes_it_is_said_that_none_was_missed(forms):
    """The submission lacks a scene, which nothing here can tell but the list."""
    config, valid = forms.make("labels")
    table = forms.folder / "short.csv"
    table.write_text("".join((valid / "submission.csv").read_text().splitlines(keepends=True)[:-1]))
    lists = (("--config", config), ("--config", config, "--sample", valid / "submission.csv"))
    for flags in lists:
        code, said = said_of(*flags, "--lint", table)
        assert code == 2 and "missing" in said
    nowhere = ("--set", f"data.root={forms.folder / 'nowhere'}")
    for flags, why in (
        (nowhere, "nowhere"),
        (("--set", "data.options={classes: [cat, dog], test: null}"), "has no test scenes"),
    ):
        code, said = said_of("--config", config, *flags, "--lint", table)
        assert code == 0 and "whether an answer is missing was NOT checked" in said and why in said
    code, said = said_of("--lint", forms.make("xview2")[1] / "submission.csv")
    assert code == 0 and "NOT checked: no --config says which scenes there are" in said


def test_out_of_fold_submissions_are_owed_the_labelled_scenes(forms):
    config, _ = forms.make("labels")
    table = forms.folder / "oof.csv"
    table.write_text("id,label\nt,cat\n")
    assert said_of("--config", config, "--lint", table, "--split", "oof") == (0, f"{table}: valid\n")
    assert said_of("--config", config, "--lint", table)[0] == 2


@pytest.mark.parametrize(("form", "answer"), [("binary_rle", ""), ("voc", ""), ("labels", "cat"), ("videos", "0.5")])
def test_a_submission_that_nobody_has_filled_in_is_said(forms, tmp_path, form, answer):
    config, valid = forms.make(form)
    header, *rows = (valid / "submission.csv").read_text().splitlines()
    table = tmp_path / "submission.csv"
    table.write_text("\n".join([header, *(f"{row.rpartition(',')[0]},{answer}" for row in rows)]) + "\n")
    code, said = said_of("--config", config, "--lint", table)
    assert code == 0 and f"each of its {len(rows)} rows holds the same answer ({answer!r})" in said
    assert "same answer" not in said_of("--config", config, "--lint", valid / "submission.csv")[1]


def test_without_an_experiment_the_linter_says_whose_form_it_holds_a_file_to(tmp_path):
    table = tmp_path / "submission.csv"
    table.write_text("id,rle_mask\na,1 2\nb,\n")
    code, said = said_of("--lint", table)
    assert code == 2 and "ImageId_ClassId,EncodedPixels" in said and "fault" in said.splitlines()[-1]
    assert said.splitlines()[-1] == (f"{table}: 1 fault, judged as one of xview2, the competition of the demo; name "
                                     "your experiment with --config")  # fmt: skip


def test_of_files_that_stage_06_wrote_the_others_are_read_whichever_is_named(forms, tmp_path):
    config, valid = forms.make("labels")
    shutil.copytree(valid, tmp_path / "test")
    (tmp_path / "test/manifest.json").write_text("{}")
    table = tmp_path / "test/submission.csv"
    assert said_of("--config", config, "--lint", table) == (0, f"{table}: valid\n")
    table.write_text("id,label\na1,dog\na2,dog\nb_1,cat\n")
    code, said = said_of("--config", config, "--lint", table)
    assert code == 2 and "label is not the most probable class (a1)" in said


def test_a_pipe_is_no_submission(forms, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    code, said = said_of("--config", forms.make("labels")[0], "--lint", tmp_path / "pipe.csv")
    assert code == 2 and "expected a file or a folder, found a pipe or a device" in said


def test_a_sample_is_used_or_refused(forms):
    code, said = said_of("--config", forms.make("labels")[0], "--sample", "sample.csv")
    assert code == 2 and "--sample: goes with --lint" in said


def test_a_number_between_others_that_has_no_pair_is_missed_without_any_list(tmp_path):
    place = tmp_path / "handed_in"
    place.mkdir()
    for number in (3, 5):
        for kind in ("localization", "damage"):
            (place / f"test_{kind}_0000{number}_prediction.png").write_bytes(png(np.eye(*TILE, dtype=np.uint8)))
    (fault,) = lint_png_pairs(place)
    assert "others have one below and above it (test_00004)" in fault
    assert lint_png_pairs(place, ["test_00003", "test_00005"]) == []


def test_a_bomb_is_not_unpacked(forms, tmp_path, monkeypatch):
    """16 MiB are declared, or declared as 64 KiB; neither disk nor memory takes them."""
    config, valid = forms.make("xview2")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    for case in (case for case in CASES if case.kind.startswith("bomb")):
        shutil.copytree(valid, tmp_path / case.kind / "copy")
        path = case.change(tmp_path / case.kind / "copy")
        tracemalloc.start()
        try:
            code, _ = said_of("--config", config, "--lint", path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert code == 2 and peak < 2**24


@pytest.mark.parametrize("form", ["xview2", "voc", "labels", "videos", "multiclass_rle"])
def test_what_stage_06_wrote_is_compared_with_what_it_would_write(forms, tmp_path, monkeypatch, form):
    """A valid submission of other answers is no submission of these."""
    config, _ = forms.make(form)
    experiment = load(config)
    competition = open_competition(experiment.competition, experiment.data.root, experiment.data.options)
    answers, other = {
        "xview2": lambda: [list(answers_of(scenes)), [(s, {k: np.roll(m, 1, 1) for k, m in a.items()})
                                                      for s, a in answers_of(scenes)]],
        "voc": lambda: [[(s, mask) for s in scenes] for mask in (MASK, 2 * MASK)],
        "labels": lambda: [[(s, np.array(p)) for s in scenes] for p in ([0.75, 0.25], [0.74, 0.26])],
        "videos": lambda: [[(s, p) for s in scenes] for p in (0.5, 0.501)],
        "multiclass_rle": lambda: [[(s, np.stack(m)) for s in scenes] for m in ([MASK, MASK], [MASK, ELSEWHERE])],
    }[form]() if (scenes := competition.scenes("test")) else ([], [])  # fmt: skip
    assert competition.submit(iter(answers), tmp_path) == []
    short = competition.submit(iter(answers[:-1]), tmp_path, owed=scenes)
    assert short and scenes[-1].id in " ".join(short)
    write = competition.write_submission
    monkeypatch.setattr(competition, "write_submission", lambda given, folder: (list(given), write(other, folder)))
    (fault,) = competition.submit(iter(answers), tmp_path)
    changed = 2 if form == "xview2" else len(scenes)  # its last scene is empty
    assert f"{changed} scenes: holds another answer than was written ({scenes[0].id}" in fault
