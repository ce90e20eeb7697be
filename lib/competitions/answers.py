"""Answers of a competition: from probabilities by decode settings, counted, scored and painted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lib.competitions import decoding
from lib.competitions.dataset import Dataset
from lib.competitions.decoding import Setting
from lib.competitions.scene import Answer, Axes, Chain, Levels, Params, Scene
from lib.ensemble import search
from lib.ensemble.search import Lattice
from lib.errors import ConfigError
from lib.tasks import IGNORE, Task

COLOURS = np.array([[250, 200, 40], [60, 220, 90], [70, 150, 250], [240, 80, 80], [200, 90, 240], [60, 220, 220]])
"""RGB of the first classes in pictures."""


def hex_of(colour: Sequence[int] | np.ndarray) -> str:
    """Return a colour (3,) of 0..255 as "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


MISSED, FALSE_ALARM, OTHER_CLASS = "missed", "false alarm", "other class"
"""Kinds of errors in pictures: truth without an answer, an answer without truth, both of different classes."""

_AROUND_STEPS = "decode.postprocess: cannot be searched around; remove it, or leave out search"


class Answers(Dataset):
    """How answers are made and what they score."""

    # What of the contract it goes by; contract.py says what each means.
    name: ClassVar[str]
    tasks: Mapping[str, Task]
    settings: Mapping[str, Setting]
    steps: Mapping[str, Callable]
    steps_in_search: bool
    max_points: int
    answer: Callable[[Levels, Params], Answer]
    tally: Callable[[Answer, Answer], np.ndarray]
    score: Callable[[np.ndarray], np.ndarray]

    # ---- decode settings ------------------------------------------------------------------------------------
    def defaults(self) -> dict[str, Any]:
        """Return the decode settings used where no search has run, but for those that are ``quiet``."""
        return {name: value for name, value in self.complete({}).items() if not self.settings[name].quiet}

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return decode settings with the default of every one that is not given."""
        known = {name: setting.default for name, setting in self.settings.items() if setting.default is not None}
        return known | dict(given)

    def faults(self, decode: Params, axes: Axes, chains: Sequence[Chain] = (), unseen: Mapping = {}) -> list[str]:
        """Return what is wrong with what an experiment asks of ``decode``, in sentences; reads no data.

        ``decode``: stated settings. ``axes``: searched ones. ``chains``: the chains of steps to try. ``unseen``:
        settings for new domains.
        """
        stated = {name: value for name, value in decode.items() if name != "postprocess"}
        found = decoding.value_faults("decode", self.settings, stated)
        found += decoding.axis_faults(self.settings, axes, self.max_points)
        for where, chain in (
            ("decode.postprocess", decode.get("postprocess", ())),
            *((f"search.postprocess.{number}", chain) for number, chain in enumerate(chains)),
        ):
            found += decoding.chain_faults(where, self.steps, chain)
        if axes and decode.get("postprocess") and not self.steps_in_search:
            found.append(_AROUND_STEPS)
        return found + decoding.value_faults("search.unseen", self.settings, unseen)

    def grid(self, axes: Axes, fixed: Params) -> Lattice:
        """Return the lattice of decode settings spanned by the named ``axes``; all others are as in ``fixed``."""
        if fixed.get("postprocess") and not self.steps_in_search:
            raise ConfigError(_AROUND_STEPS)
        decoding.refuse(decoding.axis_faults(self.settings, axes, self.max_points))
        return search.lattice(axes, self.defaults() | dict(fixed))

    # ---- answers --------------------------------------------------------------------------------------------
    def decode(self, levels: Levels, params: Params) -> Answer:
        """Turn one scene's blended probabilities into its answer, and clean it.

        Missing settings are as in ``defaults``. Raises ConfigError for others than the competition has.
        """
        given = dict(params)
        steps = given.pop("postprocess", ())
        decoding.refuse(decoding.value_faults("decode", self.settings, given))
        return self.clean(self.answer(levels, self.complete(given)), steps, levels)

    def clean(self, answer: Answer, steps: Chain, levels: Levels) -> Answer:
        """Run post-processing steps in their order; by default each maps the answer alone to an answer."""
        for step in steps:
            answer = decoding.step_of(step, self.steps)(answer)
        return answer

    # ---- rasters --------------------------------------------------------------------------------------------
    raster_name: str = "classes"
    """What the classes of ``class_raster`` tell, as the name of a file."""

    def raster_classes(self) -> dict[str, str]:
        """Return class name -> colour ("#rrggbb") of the numbers in ``class_raster`` from 1 on, in their order.

        By default the classes of the first task, without the background of exclusive ones. Raises ConfigError for a
        competition whose answers are not of pixels.
        """
        task = next(iter(self.tasks.values()))
        if not task.dense:
            raise ConfigError(f"competition {self.name}: expected answers that give every pixel a class, got one label "
                              "for each image, which no map shows")  # fmt: skip
        names = task.classes[task.kind == "multiclass" :]
        return {name: hex_of(COLOURS[number % len(COLOURS)]) for number, name in enumerate(names)}

    def class_raster(self, answer: Answer) -> np.ndarray:
        """Return an answer as numbers of classes, (H, W) uint8, 0 = nothing; ``raster_classes`` says which they are.

        By default the answer is (H, W) class indices, or (C, H, W) masks of classes, of which the last one is taken
        where they overlap.
        """
        if answer.ndim == 2:
            return answer.astype(np.uint8)
        numbers = np.zeros(answer.shape[1:], np.uint8)
        for number, mask in enumerate(answer, 1):
            numbers[mask > 0] = number
        return numbers

    def each_pixel_alone(self, params: Params) -> bool:
        """Tell whether the answer at a pixel depends on the levels of that pixel alone, with these decode settings.

        Where it may not, an area that is decoded in blocks is decoded with what lies around them; False by default.
        """
        return False

    # ---- scores ---------------------------------------------------------------------------------------------
    def count(self, levels: Levels, truth: Answer, grid: Lattice) -> np.ndarray:
        """Count one scene for every point of the grid: (P, K) int64. Counts of scenes are added before scoring.

        By default every point is decoded and tallied; a metric that can be had faster overrides this.
        """
        return np.stack([self.tally(self.decode(levels, point), truth) for point in grid])

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the per-part scores that no post-processing may make worse: (..., K) -> (..., S) float64."""
        return self.score(counts)[..., None]

    def scores(self, counts: np.ndarray) -> dict[str, float]:
        """Return every named score of summed counts (K,): ``score``, then ``named_scores``."""
        return {
            name: float(value) for name, value in {"score": self.score(counts), **self.named_scores(counts)}.items()
        }

    @property
    def counted(self) -> int | None:
        """How many numbers a tally has; None where that is not known before data are read."""
        return None

    def score_names(self) -> tuple[str, ...]:
        """Return the names of ``scores`` without any data; () where ``counted`` is not known."""
        return () if self.counted is None else tuple(self.scores(np.zeros(self.counted, np.int64)))

    def named_scores(self, counts: np.ndarray) -> Mapping[str, Any]:
        """Return what is to be told beside the score, by name, the official scores under their official keys."""
        return {}

    def detail(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count what further tables need, one scene: (M,) int64, added over scenes; none by default."""
        return np.zeros(0, np.int64)

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return named further results of summed details (M,): scores, or matrices as {row: {column: count}}."""
        return {}

    # ---- pictures -------------------------------------------------------------------------------------------
    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return titled (H, W, 3) uint8 pictures for the report: the images, the truth where known, the answer."""
        shown = [(name, self.read(scene, name)) for name in self.own_images]
        image = shown[-1][1]
        if self.labelled(scene):
            shown.append(("truth", self.paint(image, self.truth(scene))))
        return [*shown, ("prediction", self.paint(image, answer))]

    def paint(self, image: np.ndarray, answer: Answer) -> np.ndarray:
        """Paint an answer over an image (H, W, 3) uint8.

        By default the answer is (H, W) class indices, 0 being nothing, or (C, H, W) masks of classes that may overlap.
        """
        masks = answer if answer.ndim == 3 else [answer == index for index in range(1, int(answer.max(initial=0)) + 1)]
        painted = image.copy()
        for index, mask in enumerate(masks):
            inside = np.asarray(mask) > 0
            painted[inside] = (painted[inside] // 2 + COLOURS[index % len(COLOURS)] // 2).astype(np.uint8)
        return painted

    def legend(self) -> dict[str, str]:
        """Return what the colours in ``panels`` mean, class -> "#rrggbb"; {} where they need no words.

        By default those of ``raster_classes``, which ``paint`` lays half-transparent over an image.
        """
        return self.raster_classes() if next(iter(self.tasks.values())).dense else {}

    def errors(self, answer: Answer, truth: Answer) -> dict[str, np.ndarray]:
        """Return where an answer is wrong, by kind: MISSED, FALSE_ALARM and OTHER_CLASS -> (H, W) bool.

        By default for (H, W) class indices, 0 being nothing and 255 of the truth ignored, and for (C, H, W) masks of
        classes that may overlap; {} for answers of another form, such as labels.
        """
        if not isinstance(answer, np.ndarray) or np.shape(truth) != answer.shape or answer.ndim not in (2, 3):
            return {}
        counted = truth != IGNORE
        ours, theirs = answer * counted, truth * counted
        if answer.ndim == 3:
            return {MISSED: ((theirs > 0) & (ours == 0)).any(0), FALSE_ALARM: ((ours > 0) & (theirs == 0)).any(0)}
        return {MISSED: (theirs > 0) & (ours == 0), FALSE_ALARM: (ours > 0) & (theirs == 0),
                OTHER_CLASS: (ours > 0) & (theirs > 0) & (ours != theirs)}  # fmt: skip
