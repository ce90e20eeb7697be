"""area.json: which rasters a finished area has and what their numbers mean. It is written and read here alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lib.errors import ArtifactError
from lib.files import read_json, write_json
from lib.maps.grid import Grid

AREA = "area.json"


@dataclass(frozen=True)
class Area:
    """The rasters of one area, all on one grid, in the folder in which area.json lies.

    The raster of the answer (``answer``) is (H, W) uint8: 0 = nothing, 1, 2, ... = ``classes`` in their order, 255 = no
    data, which its nodata tag says too. The rasters of levels are (H, W) uint8, level / 255 = probability, averaged
    over all networks as for a submission; 255 is a probability there, so that what has no data is told by the file's
    mask band (``rasterio``'s ``dataset_mask()``) and is 0. The raster of the disagreement has such a mask, too: of each
    class it takes the largest level that a network gives it less the smallest that another one does, and of these
    differences the largest.
    """

    grid: Grid
    classes: Sequence[str]
    """Names of the class numbers from 1."""
    colours: Mapping[str, str]
    """Class name -> "#rrggbb"."""
    levels: Mapping[str, str]
    """Name of a class of a network -> file of its levels; a name that two tasks have is "<task> <class>" of the second
    one."""
    answer: str
    """File of the class numbers; its stem says what they tell."""
    disagreement: str | None
    """File of the disagreement; None where there is one network for each task."""
    event: str = ""
    """What the user calls the area."""
    model: str = ""
    """Experiment and fingerprint of its decision: what the area was made with."""
    images: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name of an image, as "pre" and "post" -> the files that show it, as they were given."""
    shift: tuple[float, float] = (0.0, 0.0)
    """By how many metres (to the east, to the north) the last of the images was moved so as to lie on the first."""
    notes: Sequence[str] = ()
    """Sentences on what was left out, read differently or could not be known."""

    def write(self, folder: Path) -> None:
        """Write area.json into a folder."""
        held: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        write_json(folder / AREA, held | {"grid": self.grid.to_json()})

    @classmethod
    def read(cls, folder: Path) -> "Area":
        """Read area.json of a folder. Raises ArtifactError where it is missing or holds something else."""
        path = folder / AREA
        try:
            held = read_json(path)
            grid = Grid.from_json(held["grid"])
            return cls(**{**held, "grid": grid, "shift": tuple(held["shift"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: expected what `python -m lib.maps` writes beside the rasters of an area, got "
                                f"{error!r}; make the area anew") from error  # fmt: skip
