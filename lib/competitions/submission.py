"""The submission of a competition: written from answers, linted, and read back."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lib.competitions import tables
from lib.competitions.dataset import Dataset
from lib.competitions.scene import Answer, Row, Scene
from lib.competitions.tables import SUBMISSION
from lib.errors import DataError
from lib.files import State, digest, file_state


class Submission(Dataset):
    """How answers are submitted: by default as rows of one CSV."""

    # What of the contract it goes by; contract.py says what each means.
    rows: Callable[[Scene, Answer], list[Row]]
    answer_from: Callable[[Scene, Sequence[Row]], Answer]

    _submitted: tuple[State | None, dict[str, list[Row]]] = None, {}
    """The rows of the CSV that was read last, by scene, with its state."""

    # ---- write ----------------------------------------------------------------------------------------------
    def submit(
        self, answers: Iterable[tuple[Scene, Answer]], folder: Path, owed: Sequence[Scene] | None = None
    ) -> list[str]:
        """Write a submission, read back what lies on the disk and return what is wrong with it; [] if nothing is.

        It must be valid, answer the scenes ``owed`` (by default those of ``answers``), and hold the answers that it was
        given: in the format that ``read_submission`` reads, with which ``lint`` compares the others. Answers are not
        kept while it is written, only digests of their rows.
        """
        folder, given = Path(folder), {}

        def passing() -> Iterator[tuple[Scene, Answer]]:
            for scene, answer in answers:
                given[scene] = _digest(self.written(scene, answer))
                yield scene, answer

        self.write_submission(passing(), folder)
        if faults := self.lint(folder, list(given) if owed is None else owed):
            return faults
        other = [scene.id for scene, rows in given.items()
                 if _digest(self.written(scene, self.read_submission(folder, scene))) != rows]  # fmt: skip
        kind = "holds another answer than was written"
        return [tables.sentence(folder, "scene", kind, other)] if other else []

    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write every format the competition takes into ``folder``, scene by scene; return the files.

        By default that is ``submission.csv``; an override must write it too.
        """
        return [self.write_table(answers, Path(folder) / SUBMISSION)]

    def write_table(self, answers: Iterable[tuple[Scene, Answer]], path: Path) -> Path:
        """Write a CSV of ``rows`` scene by scene, those of the test set in the order of the competition's sample."""
        with tables.write(path, self.form) as add:
            for scene, answer in answers:
                for row in self.rows(scene, answer):
                    add(*row)
        self.keep_order(path)
        return path

    def keep_order(self, path: Path) -> None:
        """Bring the rows of a written CSV into the order of the sample, unless it answers other scenes."""
        if self.sampled is not None and self.sampled.rows:
            names = self.sampled.names(self.form.names)
            tables.keep_order(path, names, self.form, self.scene_of)

    def written(self, scene: Scene, answer: Answer) -> list[Row]:
        """Return all rows that the files of a submission hold of a scene; by default those of ``submission.csv``."""
        return self.rows(scene, answer)

    # ---- lint -----------------------------------------------------------------------------------------------
    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Return what is wrong with a submission, a CSV or the folder it lies in; [] if it is valid.

        ``scenes``: the ones that must be answered, no others. ``sample``: a sample submission, whose header, names and
        order of rows the submission must have; by default the competition's own, where it has these names, as it has
        not for out-of-fold scenes. The answer of each of ``scenes`` is also read back. Without ``scenes`` and
        ``sample``, each scene that has a row must have all of its rows.
        """
        path = Path(path) / SUBMISSION if Path(path).is_dir() else Path(path)
        if not path.exists():
            return [f"{path}: expected a submission (a CSV, or the folder it lies in), found nothing there"]
        try:
            standard = self.read_sample(sample) if sample else self.sampled
        except DataError as error:
            return [str(error)]
        if sample is None and standard is not None and not tables.same_names(path, standard, self.form):
            standard = None
        asked = self._answered(path) if scenes is None else scenes
        sizes = None if asked is None else {name: self.size(s) for s in asked for name in self.row_names(s)}
        if faults := tables.lint(path, self.form, sizes, standard, self.row_fault):
            return faults
        together: dict[str, list[str]] = {}
        for scene_id, rows in self._rows_of(path).items():
            if kind := self.scene_fault(rows):
                together.setdefault(kind, []).append(scene_id)
        if together:
            return [tables.sentence(path, "scene", kind, names) for kind, names in together.items()]
        for scene in scenes or ():
            try:
                if self.size(scene) != (None, None):  # else there is no image to draw on
                    self._draw(path, scene)
            except DataError as error:
                faults.append(str(error))
        return faults

    def sameness(self, path: Path) -> str:
        """Say that all rows of a CSV, or of the one in a folder, hold the same answer, "" where they do not.

        That is no fault, but what a sample submission holds that nobody has filled in.
        """
        table = Path(path) / SUBMISSION if Path(path).is_dir() else Path(path)
        try:
            rows = tables.read(table, self.form)
        except DataError:
            return ""
        answers = {tuple(map(str.strip, row[self.form.names :])) for row in rows}
        if len(answers) != 1 or len({self.scene_of(row) for row in rows}) < 2:
            return ""
        shown = ",".join(answers.pop())[:40]
        return (f"{table}: each of its {len(rows)} rows holds the same answer ({shown!r}), as in a sample submission "
                "that nobody has filled in")  # fmt: skip

    def row_fault(self, row: Row) -> str:
        """Say what is wrong with the answer in a row that holds no runs, "" if nothing."""
        return ""

    def scene_fault(self, rows: Sequence[Row]) -> str:
        """Say what is wrong with the rows of one scene together, each of which is valid by itself, "" if nothing."""
        return ""

    def _answered(self, path: Path) -> list[Scene] | None:
        """Return the scenes that have a row in a CSV, without files; None where a row has no name but its scene's."""
        try:
            scenes = [Scene(i, {}) for i in dict.fromkeys(map(self.scene_of, tables.read(path, self.form))) if i]
        except DataError:
            return None  # the linter says what is wrong
        return scenes if any(self.form.names > 1 or len(self.row_names(scene)) > 1 for scene in scenes) else None

    # ---- read back ------------------------------------------------------------------------------------------
    def read_submission(self, folder: Path, scene: Scene) -> Answer:
        """Read one scene's answer back from what ``write_submission`` wrote. Raises DataError where there is none."""
        return self._read_back(Path(folder) / SUBMISSION, scene)

    def _read_back(self, path: Path, scene: Scene) -> Answer:
        """Read one scene's answer from a CSV. Raises DataError where there is none."""
        if fault := self.scene_fault(self._rows_of(path).get(scene.id, ())):
            raise DataError(f"{path}: scene {scene.id}: {fault}; write the submission again")
        return self._draw(path, scene)

    def _draw(self, path: Path, scene: Scene) -> Answer:
        """Return the answer that the rows of a scene hold, without a look at how they go together."""
        rows = self._rows_of(path).get(scene.id)
        if rows is None:
            raise DataError(f"{path}: expected a row for {scene.id!r}, found none; write the submission again")
        try:
            return self.answer_from(scene, rows)
        except DataError as error:
            raise DataError(f"{path}: scene {scene.id}: {error}") from error

    def _rows_of(self, path: Path) -> dict[str, list[Row]]:
        """Return the rows of each scene in a CSV, which is read once for all of them. Raises DataError."""
        if (state := file_state(path)) != self._submitted[0]:
            rows_of: dict[str, list[Row]] = {}
            for row in tables.read(path, self.form):
                rows_of.setdefault(self.scene_of(row), []).append(row)
            self._submitted = state, rows_of
        return self._submitted[1]


def _digest(rows: Iterable[Row]) -> str:
    """Hash the rows of a scene, whose order is the sample's to say."""
    return digest(sorted(map(list, rows)))
