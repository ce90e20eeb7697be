"""What of the report needs the data: pictures of scenes, thumbnails of findings, places on the map.

They are drawn once, by stage 05 or 06, into ``report/pictures`` beside ``seen.json``, which says what they show and
what they were made from. A page takes them from there, so that it can be made anew without the data.
"""

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from lib.choose.choice import Decision
from lib.choose.figures import FIGURES, Figures
from lib.competitions.contract import FALSE_ALARM, MISSED, OTHER_CLASS, Competition, Scene, settings_for
from lib.errors import ArtifactError, DataError
from lib.files import digest, sha256, write_bytes, write_json
from lib.report.units import findings_of
from lib.run import manifest
from lib.run.cli import Run
from lib.scenes.probs import file_name, read_levels
from lib.stages.ensemble import averaged_scenes

FOLDER, SEEN = "pictures", "seen.json"
WORST, BEST = 3, 2
"""Scenes that are shown of each kind."""
SIDE, QUALITY = 512, 75
"""Most pixels of a picture's longer side, and the quality of its JPEG."""
ENCODING = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # fmt: skip
"""Colours of classes keep their edges (4:4:4). WebP saves a third of the bytes and takes ten times as long."""
SMALL, KINDS, EACH = 144, 6, 4
"""Pixels of a thumbnail's longer side; most kinds of findings, and scenes of each, that have thumbnails."""
COLOURS = {MISSED: (255, 70, 70), FALSE_ALARM: (70, 190, 255), OTHER_CLASS: (255, 220, 60)}
"""RGB of the outlines of errors."""
IN_WORDS = {MISSED: "red: missed", FALSE_ALARM: "blue: false alarm", OTHER_CLASS: "yellow: another class"}
THIN = 3
"""Errors that are thinner in a picture have no outline there."""
FORM = 5
"""Goes up when the same scenes are drawn in another way."""


class PictureFile(BaseModel):
    """A picture in the folder."""

    model_config = ConfigDict(frozen=True)
    title: str
    note: str = ""
    """What its colours mean, where it needs saying."""
    file: str
    sha256: str
    width: int
    height: int

    def read(self, folder: Path) -> str:
        """Return the picture as a data URI. Raises OSError where it is gone."""
        return "data:image/jpeg;base64," + base64.b64encode((folder / self.file).read_bytes()).decode()


class ShownScene(BaseModel):
    """A scene with its pictures."""

    model_config = ConfigDict(frozen=True)
    id: str
    why: str
    """ "worst", "best", or "fullest" where the scores of scenes are not known."""
    fold: int | None = None
    domain: str = ""
    score: float | None = None
    without: float | None = None
    panels: list[PictureFile]


class Thumbs(BaseModel):
    """Thumbnails of what the audit or the data doctor speaks of."""

    model_config = ConfigDict(frozen=True)
    caption: str
    panels: list[PictureFile]


class SeenData(BaseModel):
    """The contents of seen.json."""

    model_config = ConfigDict(frozen=True)
    mark: str
    """Stands for what it was made from."""
    scenes: list[ShownScene] = []
    thumbs: list[Thumbs] = []
    legend: dict[str, str] = {}
    """Class -> its colour in pictures, "#rrggbb"."""
    positions: dict[str, tuple[float, float]] = {}
    """Scene -> longitude and latitude of its centre, of those that have a place."""

    @classmethod
    def read(cls, folder: Path) -> "SeenData":
        """Read what lies in a report's folder of pictures. Raises ArtifactError."""
        content = manifest.read_json(folder / SEEN)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ArtifactError(f"{folder / SEEN}: {error.errors()[0]['msg']}; delete it and run stage 06") from error

    def files(self) -> list[PictureFile]:
        """Return all pictures."""
        return [panel for scene in self.scenes for panel in scene.panels] + [
            panel for own in self.thumbs for panel in own.panels
        ]

    def is_whole(self, folder: Path) -> bool:
        """Tell whether all pictures are there and have the bytes that were written."""
        try:
            return all(sha256(folder / one.file) == one.sha256 for one in self.files())
        except OSError:
            return False


def seen(run: Run, folder: Path) -> SeenData:
    """Return the pictures of an experiment that ``folder`` holds; draw them where they are not those of today."""
    mark = _made_from(run)
    try:
        known = SeenData.read(folder)
    except ArtifactError:
        known = None
    if known is not None and known.mark == mark and known.is_whole(folder):
        return known
    folder.mkdir(parents=True, exist_ok=True)
    scenes = _labelled(run)
    drawn = SeenData(
        mark=mark,
        scenes=list(_scenes(run, folder)),
        thumbs=list(_thumbs(run, folder)),
        legend=run.competition.legend(),
        positions={scene.id: scene.position for scene in scenes if scene.position is not None},
    )
    write_json(folder / SEEN, drawn.model_dump(mode="json"))
    kept = {one.file for one in drawn.files()}
    for path in folder.glob("*.jpg"):
        if path.name not in kept:
            path.unlink()
    return drawn


def _labelled(run: Run) -> list[Scene]:
    """Return the labelled scenes; with checkpoints from ``--inputs`` there may be test scenes alone."""
    try:
        return run.competition.scenes("train")
    except DataError:
        return []


def _made_from(run: Run) -> str:
    """Return a digest of the bytes of all units that the pictures show, whatever the clock said then."""
    graph = run.graph
    made = [manifest.made(run.store.folder(unit)) for unit in (graph.folds(), graph.decode(), graph.blend("oof"))]
    states = [[one.get("sha256") or manifest.content(one), one.get("data", {})] for one in made if one is not None]
    return digest([FORM, run.competition.name, run.config.data.options, states])


# ---- scenes -------------------------------------------------------------------------------------------
def wanted(run: Run) -> list[ShownScene]:
    """Return the scenes to show: those that drag the score down most, and those that lift it most.

    Where figures.json is missing, those with most in them.
    """
    path = run.store.folder(run.graph.decode()) / FIGURES
    there = {scene.id for scene in averaged_scenes(run, "oof")}
    if path.exists():
        scored = [one for one in Figures.read(path).scenes if one.id in there]
        order = sorted(scored, key=lambda one: (-one.without, one.id))
        worst = order[:WORST]
        best = [one for one in reversed(order) if one not in worst][:BEST]
        return [ShownScene(why=why, panels=[], **one.model_dump())
                for why, some in (("worst", worst), ("best", best)) for one in some]  # fmt: skip
    fullness = {s.id: sum(run.competition.strata(s).values()) for s in run.competition.scenes("train")}
    order_ = sorted(there, key=lambda i: (-fullness[i], i))[: WORST + BEST]
    return [ShownScene(id=scene, why="fullest", panels=[]) for scene in order_]


def _scenes(run: Run, folder: Path) -> Iterator[ShownScene]:
    if run.store.status(run.graph.blend("oof")) not in ("done", "frozen"):  # with checkpoints from --inputs alone
        return
    params, by_id = Decision.of(run).params, {scene.id: scene for scene in run.competition.scenes("train")}
    source = run.store.require(run.graph.blend("oof"))
    tasks = {model.task: run.competition.tasks[model.task] for model in run.config.models.values()}
    for number, one in enumerate(wanted(run)):
        scene = by_id[one.id]
        levels = {role: read_levels(run.store.check(source / role / file_name(scene.id)), task.classes)[0]
                  for role, task in tasks.items()}  # fmt: skip
        answer = run.competition.decode(levels, settings_for(scene, params))
        panels = [(title, small(image, SIDE)) for title, image in run.competition.panels(scene, answer)]
        files = [_write(folder, f"scene{number}-{place}", title, image)
                 for place, (title, image) in enumerate(panels)]  # fmt: skip
        if outlined := outline_errors(run.competition, scene, answer, panels):
            note, image = outlined
            files.append(_write(folder, f"scene{number}-{len(files)}", "errors", image, note))
        yield one.model_copy(update={"panels": files})


def outline_errors(
    competition: Competition, scene: Scene, answer: Any, panels: Sequence[tuple[str, np.ndarray]]
) -> tuple[str, np.ndarray] | None:
    """Draw the outlines of an answer's errors on the dimmed last image before the truth; None without any kind of them.

    Returns what the colours mean, and the picture.
    What is thinner than THIN pixels of the panel, such as the edge of an object that is right, has no outline.
    """
    if not competition.labelled(scene) or not (kinds := competition.errors(answer, competition.truth(scene))):
        return None
    titles = [title for title, _ in panels]
    image = panels[max(0, titles.index("truth") - 1) if "truth" in titles else 0][1] // 2
    size = image.shape[1], image.shape[0]
    shown = []
    for kind, mask in kinds.items():
        at_size = (cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 127).astype(np.uint8)
        thick = cv2.morphologyEx(at_size, cv2.MORPH_OPEN, np.ones((THIN, THIN), np.uint8))
        outlines, _ = cv2.findContours(thick, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, outlines, -1, COLOURS[kind], 2)
        shown.append(IN_WORDS[kind])
    return ", ".join(shown), image


# ---- thumbnails ---------------------------------------------------------------------------------------
def _thumbs(run: Run, folder: Path) -> Iterator[Thumbs]:
    """Draw the scenes that the audit gives as examples and that findings are of, a few of each kind."""
    by_id = {scene.id: scene for scene in (*run.competition.scenes("test"), *_labelled(run))}
    number = 0
    for caption, names in _spoken_of(run.store.folder(run.graph.folds())):
        files = []
        for name in names:
            if name in by_id and (image := _first_image(run.competition, by_id[name])) is not None:
                files.append(_write(folder, f"thumb{number}", name, small(image, SMALL)))
                number += 1
        if files:
            yield Thumbs(caption=caption, panels=files)


def _spoken_of(folds: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield captions and scene ids: of findings.csv by kind, of audit.json its pairs."""
    by_kind: dict[str, list[str]] = {}
    for finding in findings_of(folds):
        by_kind.setdefault(finding["kind"], []).append(finding["scene"])
    for kind, names in list(by_kind.items())[:KINDS]:
        yield kind, list(dict.fromkeys(names))[:EACH]
    try:
        audit = manifest.read_object(folds / "audit.json")
    except ArtifactError:
        return
    for key, caption in (("near_duplicates", "near-duplicates in different folds"),
                         ("look_alikes", "look-alikes in different folds"),
                         ("groups_alike", "groups that may be one")):  # fmt: skip
        for pair in ((audit.get(key) or {}).get("examples") or [])[: EACH // 2]:
            yield caption, list(pair.get("ids", ()))


def _first_image(competition: Competition, scene: Scene) -> np.ndarray | None:
    try:
        return still(competition.read(scene, competition.images[0]))
    except DataError:  # what is broken has no picture; the list of findings names it
        return None


def still(pixels: np.ndarray) -> np.ndarray:
    """Return the middle one of frames (F, H, W, 3), or the image (H, W, 3) itself."""
    return pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels


def small(image: np.ndarray, side: int) -> np.ndarray:
    """Shrink an image (H, W, 3) uint8 so that its longer side has at most ``side`` pixels; none is enlarged."""
    factor = side / max(image.shape[:2])
    if factor >= 1:
        return image
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _write(folder: Path, name: str, title: str, image: np.ndarray, note: str = "") -> PictureFile:
    """Write a picture (H, W, 3) uint8 RGB as JPEG."""
    _, content = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), ENCODING)
    path = folder / f"{name}.jpg"
    write_bytes(path, content.tobytes())
    height, width = image.shape[:2]
    return PictureFile(title=title, note=note, file=path.name, sha256=sha256(path), width=width, height=height)
