"""What competitions share whose answer is a class for every pixel: decoded, scored by mIoU, written as runs and PNGs.

Metric: mIoU, the mean over classes of intersection / union, from one confusion matrix of all pixels of all scenes. A
class found neither in the truth nor in the answer has no union and is left out of the mean; its own figure is 0.
Answer: (H, W) uint8 class indices. Submission: one row of runs per scene and class but the first, and index PNGs.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib import metrics as scoring
from lib.competitions import label_map, tables
from lib.competitions.answers import hex_of
from lib.competitions.class_rows import ClassRows
from lib.competitions.decoding import Setting, gains, morphology
from lib.competitions.scene import Answer, Finding, Levels, Params, Row, Scene, summarize
from lib.competitions.tables import SUBMISSION, Name
from lib.ensemble.morphology import open_and_close
from lib.errors import DataError
from lib.metrics import confusion_table
from lib.scenes import png, raster, rle
from lib.tasks import MulticlassMask, names_of

MASKS = "masks"
"""Folder of index PNGs in a submission."""


class ClassMaps(ClassRows):
    """A class for every pixel of a scene, told by the levels of one network task, ``loc``."""

    steps = label_map.STEPS
    steps_in_search = False
    names: tuple[str, ...]
    """Names of the classes as settings and scores have them; index 0 is what fills the rest."""
    ending = ""
    """What follows the id in the name of an index PNG."""

    def set_classes(self, classes: Sequence[str]) -> None:
        """Set the task, the names and the decode settings for these classes, index 0 first."""
        self.tasks = {"loc": MulticlassMask(tuple(classes))}
        self.names = names_of(classes)
        self.settings = gains(self.names) | {"min_area": Setting(0, "parts of a class of fewer pixels become class 0")}
        self.settings |= morphology("every class but 0")

    # ---- answers --------------------------------------------------------------------------------------
    def answer(self, levels: Levels, settings: Params) -> Answer:
        """Give every pixel the class with the highest level times its gain (ties: the lower), then clean the map."""
        answer = label_map.winner(levels["loc"], [settings[f"gain_{name}"] for name in self.names])
        answer = open_and_close(answer, settings["opening"], settings["closing"])
        return label_map.remove_small(answer, settings["min_area"])

    @property
    def counted(self) -> int:
        return 3 * len(self.names)

    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one answer: (3 C,) int64, for each class the pixels of intersection, answer and truth."""
        return scoring.overlaps(scoring.confusion(answer, truth, len(self.names))).ravel()

    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return mIoU over the classes found in truth or answer: (..., 3 C) -> (...) float64, 0 where none is."""
        return np.nan_to_num(scoring.mean_present(scoring.overlap_iou(self._by_name(counts))))

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the IoU of each class: (..., 3 C) -> (..., C) float64, 0 for one found in neither."""
        return np.nan_to_num(scoring.overlap_iou(self._by_name(counts)))

    def named_scores(self, counts: np.ndarray) -> Mapping[str, Any]:
        """Return pixel accuracy, mIoU and the IoU of each class."""
        hits, _, true = self._by_name(counts).sum(-2)
        named = {"pixel_accuracy": hits / true if true else 0.0, "iou": self.score(counts)}
        return named | {f"iou_{name}": v for name, v in zip(self.names, self.class_scores(counts), strict=True)}

    def _by_name(self, counts: np.ndarray) -> np.ndarray:
        return counts.reshape(*counts.shape[:-1], len(self.names), 3)  # (..., C, 3)

    def detail(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count the confusion of all classes: (C * C,) int64."""
        return scoring.confusion(answer, truth, len(self.names)).ravel()

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return the confusion of pixels, truth by rows."""
        return {"confusion": confusion_table(details, self.names)}

    def paint(self, image: np.ndarray, answer: Answer) -> np.ndarray:
        """Lay PASCAL's colours of the classes over an image; class 0 only dims it, ignored pixels are nearly white."""
        return image // 2 + palette()[answer] // 2

    def legend(self) -> dict[str, str]:
        """Return PASCAL's colours of the classes but the first."""
        colours = palette(len(self.names))
        return {name: hex_of(colours[number]) for number, name in enumerate(self.names) if number}

    # ---- submission -----------------------------------------------------------------------------------
    def rows(self, scene: Scene, answer: Answer) -> list[Row]:
        """Return a row of runs for each class but the first."""
        texts = rle.encode_labels(answer, count=len(self.names) - 1)
        return [(f"{self.row_id(scene)}_{index}", text) for index, text in enumerate(texts, 1)]

    def answer_from(self, scene: Scene, rows: Sequence[Row]) -> Answer:
        answer = np.zeros(self.canvas(scene), np.uint8)
        for row_id, text in rows:
            answer[rle.decode(text, answer.shape) > 0] = int(row_id.rpartition("_")[2])
        return answer

    def scene_fault(self, rows: Sequence[Row]) -> str:
        """Say whether two classes share a pixel."""
        return "two classes on one pixel" if rle.overlap([rle.parse(text)[0] for _, text in rows]) else ""

    def row_names(self, scene: Scene) -> list[Name]:
        return [(f"{self.row_id(scene)}_{index}",) for index in range(1, len(self.names))]

    def png_name(self, scene: Scene) -> str:
        """Return the name of a scene's index PNG."""
        return f"{scene.id}{self.ending}.png"

    def _id_of(self, path: Path) -> str:
        return path.stem.removesuffix(self.ending)

    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write the CSV of runs and a folder of index PNGs."""
        pictures = Path(folder) / MASKS
        pictures.mkdir(parents=True, exist_ok=True)
        written = []

        def drawn() -> Iterable[tuple[Scene, Answer]]:
            for scene, answer in answers:
                written.append(pictures / self.png_name(scene))
                raster.write_png(written[-1], answer)
                yield scene, answer

        return super().write_submission(drawn(), folder) + written

    def read_submission(self, folder: Path, scene: Scene) -> Answer:
        """Read a picture's answer back from its PNG; that the CSV says the same is for ``lint`` to see."""
        return raster.read_mask(Path(folder) / MASKS / self.png_name(scene))

    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Lint what ``write_submission`` wrote, a folder of index PNGs, or a CSV.

        Where both formats are there, they must give the same answers. Needs no data unless ``scenes`` are given.
        """
        path = Path(path)
        if not path.is_dir():
            return super().lint(path, scenes, sample)
        table, pictures = path / SUBMISSION, path / MASKS
        if not table.exists() and not pictures.exists():
            return self._lint_masks(path, scenes, sample)
        faults = self._lint_masks(pictures, scenes) + super().lint(table, scenes, sample)
        return faults or self._lint_agreement(table, pictures)

    def _lint_masks(self, folder: Path, scenes: Sequence[Scene] | None, sample: Path | None = None) -> list[str]:
        """Lint index PNGs: all there and no others, whole, of the picture's size, classes only.

        ``sample`` says which pictures must be answered. Where no CSV lies beside the folder, one of them must show
        another class than the first.
        """
        found = {self._id_of(path): path for path in sorted(folder.glob("*.png"))}
        if not found:
            return [f"{folder}: expected index PNGs, one per picture, found none"]
        wanted: dict[str, Any] = {scene.id: self.size(scene) for scene in scenes or ()}
        try:
            of_sample = self.scenes_of(sample) if sample else []
        except DataError as error:
            return [str(error)]
        wanted = {**dict.fromkeys(of_sample), **wanted} or dict.fromkeys(found)
        missing, foreign = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        faults = [Finding("picture without a PNG", scene_id) for scene_id in missing]
        faults += [Finding("not one of the scenes asked for", found[scene_id].name) for scene_id in foreign]
        shown = 0
        for scene_id in sorted(wanted.keys() & found.keys()):
            path, size = found[scene_id], wanted[scene_id]
            try:
                mask = read_index_png(path)
            except DataError as error:
                faults.append(Finding(str(error), path.name))
                continue
            shown += bool(mask.any())
            if size not in (None, (None, None)) and mask.shape != tuple(size):
                faults.append(Finding("not of its picture's size", path.name))
            if mask.max(initial=0) >= len(self.names):
                faults.append(Finding(f"values that are none of the classes 0..{len(self.names) - 1}", path.name))
        if not shown and not faults and not (folder.parent / SUBMISSION).exists():
            faults.append(Finding(f"{self.names[0]} in every pixel of every picture", min(found)))
        return [f"{folder}: {line}" for line in summarize(faults)]

    def _lint_agreement(self, table: Path, pictures: Path) -> list[str]:
        """Return the pictures whose answers in the CSV and in the PNGs differ, or that are in one of them only."""
        runs = {row_id: text for row_id, text in tables.read(table, self.form)}
        differing: list[str] = []
        for path in sorted(pictures.glob("*.png")):
            rows = self.rows(Scene(self._id_of(path), {}), raster.read_mask(path))
            if [runs.pop(row_id, None) for row_id, _ in rows] != [text for _, text in rows]:
                differing.append(self._id_of(path))
        differing += sorted({row_id.rpartition("_")[0] for row_id in runs})
        return [f"{table}: {len(differing)} pictures differ from the PNGs (first: {differing[0]})"] if differing else []


# ---- masks and colours --------------------------------------------------------------------------------
def palette(count: int = 256) -> np.ndarray:
    """Return PASCAL's colours of the indices 0 .. count - 1: (count, 3) uint8 RGB; bits of the index, dealt in turn."""
    index = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def read_index_png(path: Path) -> np.ndarray:
    """Read a submitted mask as (H, W) uint8. Raises DataError, the reason alone, unless it is a whole index PNG."""
    data = path.read_bytes()
    if fault := png.fault(data):
        raise DataError(fault)
    if data[24] > 8 or data[25] not in (0, 3):  # bits per sample; grey or palette
        raise DataError("is no PNG of 8-bit indices, grey or with a palette")
    try:
        return raster.read_mask(path)
    except DataError as error:
        raise DataError("is damaged and cannot be decoded") from error
