"""What competitions share whose submission has a row of runs for each class of a scene, named by id and class."""

from lib.competitions.contract import Competition
from lib.competitions.scene import Row
from lib.competitions.tables import Form

COLUMNS = ("ImageId_ClassId", "EncodedPixels")


class ClassRows(Competition):
    """Rows that are named by a scene's id, ``_`` and the number of a class."""

    @property
    def form(self) -> Form:  # type: ignore[override]
        """Runs by id and number of the class, under the sample's header where there is one."""
        return Form(self.header_of(("an id with _ and the number of a class", "its runs")) or COLUMNS)

    def id_in(self, row: Row) -> str:
        """Return a scene's id as the submission writes it, which the number of the class follows."""
        return row[0].rpartition("_")[0]
