"""What competitions share whose truth and answers are masks written as runs: HuBMAP, nuclei, salt, scans, steel."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from lib.competitions import layout
from lib.competitions.contract import Competition
from lib.competitions.listing import Expression
from lib.competitions.scene import Finding, Scene
from lib.errors import DataError
from lib.scenes import raster, rle
from lib.scenes.view import resize
from lib.settings import Section


class RunsOptions(Section):
    """Options that competitions on images with runs share; "" means that the usual names are looked for."""

    train: str = ""
    """Folder of the labelled images."""
    test: str | None = ""
    """Folder of the test images; null: there is no test set."""
    group: Expression = ""
    """What must stay together in a fold: a column, or else a regular expression searched in the id."""
    slices: int = Field(1, ge=1)
    """So many images per scene, itself and its neighbours in the stack of its ``group``; odd."""
    order: Literal["auto", "column", "row"] = "auto"
    """How runs count pixels; auto: told from the training runs."""
    origin: Literal["auto", 0, 1] = "auto"
    """Number of the first pixel; auto: told from the training runs."""
    sample: str | None = ""
    """Sample submission, which says what scenes are answered, in what order and under what header; "": one of the
    usual name. null: none is used."""

    @field_validator("slices")
    @classmethod
    def _slices_are_of_a_stack(cls, slices: int, info: ValidationInfo) -> int:
        if slices % 2 == 0 or (slices > 1 and not info.data.get("group")):
            raise ValueError("expected an odd number, and a group that says which images are one stack")
        return slices


class RunsCompetition(Competition):
    """Images, or slices of a stack, with masks as runs."""

    own_images = ("image",)

    def __init__(self, root: Path, options: Any, memo: Path | None = None):
        super().__init__(root, options, memo)
        self.images = layout.slice_names(options.slices)

    def read(self, scene: Scene, image: str) -> np.ndarray:
        """Read an image, or its neighbour in the stack ("image+1"), as (H, W, 3) uint8 RGB of the image's own size."""
        pixels = super().read(scene, image)
        return pixels if image == "image" else resize(pixels, raster.image_size(scene.files["image"]))

    def places(self, split: str) -> list[str]:
        stated = getattr(self.options, split)
        return [] if stated is None else [stated] if stated else list(layout.FOLDERS[split])

    def usual_folders(self, split: str) -> Sequence[str]:
        return layout.FOLDERS[split]

    @abstractmethod
    def labelled_runs(self) -> Iterable[tuple[Scene, str]]:
        """Return each text of runs in the training table with its scene, sorted by id."""

    def open_rules(self) -> list[tuple[rle.Order, int]]:
        """Return the (order, origin) that the options leave open."""
        order, origin = self.options.order, self.options.origin
        return [rule for rule in rle.RULES if order in ("auto", rule[0]) and origin in ("auto", rule[1])]

    @property
    def rule(self) -> rle.Rule:
        """How runs count pixels, as ``tell_rule`` says; told once. Raises DataError where it cannot be told."""
        if isinstance(self._told, DataError):
            raise DataError(str(self._told))
        return self._told

    @cached_property
    def _told(self) -> rle.Rule | DataError:
        try:
            return self.tell_rule()
        except DataError as error:
            return error

    def tell_rule(self) -> rle.Rule:
        """Tell how runs count pixels: as stated, or by the training runs, or Kaggle's rule where there are none.

        Raises DataError where the runs fit several rules.
        """
        rules = self.open_rules()
        if len(rules) == 1:
            return rle.Rule(*rules[0], "stated")
        filled = [(scene, text) for scene, text in self.labelled_runs() if text]
        sizes = {scene.id: raster.stated_size(scene.files["image"]) for scene, _ in filled}
        pairs = [(scene, text) for scene, text in filled if sizes[scene.id] != (None, None)]
        if not pairs:
            return rle.Rule(*rules[0], "no training runs, so Kaggle's rule")
        order, origin = (None if stated == "auto" else stated for stated in (self.options.order, self.options.origin))
        texts = [text for _, text in pairs]
        shapes = [cast(tuple[int, int], sizes[scene.id]) for scene, _ in pairs]
        try:
            return rle.detect(texts, shapes, lambda i: self._picture(pairs[i][0]), order, origin)
        except DataError as error:
            raise DataError(f"{self.root}: {error} (data.options.order and origin)") from error

    def _picture(self, scene: Scene) -> np.ndarray | None:
        try:
            return self.read(scene, "image")
        except DataError:  # the data doctor names it
            return None

    def inspect(self) -> list[Finding]:
        """Inspect as the contract says; where it is unknown how runs count pixels, say that once and not of each."""
        findings = super().inspect()
        if not isinstance(self._told, DataError):
            return findings
        unknown = str(self._told)
        findings = [finding for finding in findings if unknown not in finding.detail]
        return [*findings, Finding("RLE order unknown", "train", unknown)]

    def remarks(self) -> list[str]:
        """Return how runs count pixels, where that was told from the data."""
        rule = self._told
        if isinstance(rule, DataError) or rule.why == "stated":  # the data doctor says so
            return []
        how = "assumed" if rule.why.startswith("no training runs") else "detected"
        return [f"RLE order {how}: {rule.order} order from {rule.origin}, {rule.why} "
                "(state data.options.order and origin to end this remark)"]  # fmt: skip

    def encode(self, mask: np.ndarray) -> str:
        """Write a mask (H, W) as runs."""
        return rle.encode(mask, self.rule.order, self.rule.origin)

    def draw(self, runs: str, shape: tuple[int, int], where: str = "") -> np.ndarray:
        """Draw runs into a new mask: (H, W) uint8 in {0, 1}. Raises DataError; ``where`` the runs stand, for it."""
        rule = self.rule
        try:
            return rle.decode(runs, shape, rule.order, rule.origin)
        except DataError as error:
            raise DataError(f"{where}: {error}" if where else str(error)) from error
