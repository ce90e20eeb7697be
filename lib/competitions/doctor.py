"""The data doctor: what is missing, broken or suspicious in the data of a competition, and how it was understood."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from lib.competitions import passed, records
from lib.competitions.dataset import Dataset
from lib.competitions.scene import SPLITS, Finding, Scene, told
from lib.errors import DataError
from lib.scenes import raster
from lib.scenes.blemishes import blemishes


class Doctor(Dataset):
    """What stage 01 says of the data."""

    # What of the contract it goes by; contract.py says what each means.
    other_folders: tuple[str, ...]

    def inspect(self) -> list[Finding]:
        """Read everything once, with a bar of progress, and report what is missing, broken or suspicious."""
        findings: list[Finding] = []
        for split in SPLITS:
            self._list(split)
            findings += self._listed[split][1]
        findings += self.owing()
        findings += self.beside()
        findings += self.passed_over(findings)
        for role in ("group", "domain", "source"):
            names = {getattr(scene, role) for scene in self._list("train")}
            findings += [Finding(f"{role}s that may be one, told apart", several[0], ", ".join(several))
                         for several in records.alike(names)]  # fmt: skip
        with ThreadPoolExecutor(max_workers=2) as pool:
            scenes = self.to_inspect()
            inspected = pool.map(lambda pair: self._inspected(*pair), scenes)
            for found in tqdm(inspected, "data check", total=len(scenes), leave=False, disable=None):
                findings += found
        return findings

    def to_inspect(self) -> list[tuple[Scene, str]]:
        """Return every listed scene that has any file, with its split."""
        return [(scene, split) for split in SPLITS for scene in self._list(split) if scene.files]

    def _inspected(self, scene: Scene, split: str) -> list[Finding]:
        known = self.findings.get((split, self.key(scene)))
        return self.inspect_scene(scene, split) if known is None else known

    def owing(self) -> list[Finding]:
        """Report where the sample submission and the test files do not fit: scenes, then rows."""
        if self.sampled is None or self.owed is None:
            return []
        path = str(self.sampled.path)
        found = [Finding("the sample names it, there is no file of it", key, path) for key in self.owed.without_file]
        found += [Finding("test file that the sample does not name", key, path) for key in self.owed.not_named]
        ours = dict.fromkeys(name for scene in self.scenes("test") for name in self.row_names(scene))
        theirs = self.sampled.names(len(next(iter(ours))))
        known = set(theirs)
        times = Counter(row[: len(next(iter(ours)))] for row in self.sampled.rows)
        if not self.answers_repeat:
            found += [Finding("row of the sample that is there more than once", ",".join(n), path)
                      for n, count in times.items() if count > 1]  # fmt: skip
        found += [Finding("row of the sample that no answer has", ",".join(n), path) for n in theirs if n not in ours]
        return found + [Finding("row that the sample has not", ",".join(n), path) for n in ours if n not in known]

    def beside(self) -> list[Finding]:
        """Report archives that were not unpacked, and what looks like a sample submission and is not read."""
        if not self.root.is_dir():
            return []
        places = {part.lower() for split in SPLITS for place in (*self.places(split), *self.usual_folders(split))
                  for part in Path(place).parts if re.fullmatch(r"[\w-]{3,}", part)}  # fmt: skip
        found = [Finding("archive that is not unpacked", name) for name in passed.archives(self.root, places)]
        if getattr(self.options, "sample", None) is None or (self.sample and "sample" in self.options.model_fields_set):
            return found
        like = sorted(path for path in self.root.glob("*.csv") if re.search("sample.*sub", path.name.lower()))
        return found + [Finding("file like a sample submission that is not used", path.name,
                                "data.options.sample names the one that is") for path in like
                        if path != self.sample]  # fmt: skip

    def passed_over(self, findings: Iterable[Finding] = ()) -> list[Finding]:
        """Report the pictures, videos and files beside them below ``root`` that are in no scene and in no finding."""
        listed = [scene for split in SPLITS for scene in self._list(split)]
        used = [*self.read_files(), *(path for scene in listed for path in scene.files.values())]
        used += [mask for path in used for mask in raster.with_image(path)]
        said = {word for f in findings for word in re.split(r"[\s,;()]+", f"{f.scene} {f.detail}")}
        found = [Finding(*found) for found in passed.passed_over(self.root, used, self.other_folders)]
        times = Counter(Path(f.scene).name for f in found)
        return [f for f in found if str(self.root / f.scene) not in said
                and not (times[Path(f.scene).name] == 1 and Path(f.scene).name in said)]  # fmt: skip

    def inspect_scene(self, scene: Scene, split: str) -> list[Finding]:
        """Report what is wrong with one scene: images that are missing, broken or black, labels that cannot be used."""
        findings, whole = [], True
        for image in self.own_images:
            size, found = self.inspect_image(scene, image)
            findings += found
            whole &= size is not None
        if split == "train" and not self.labelled(scene):
            findings.append(Finding("image without label", scene.id, ", ".join(map(str, scene.files.values()))))
        elif split == "train" and whole and (fault := self.facts(scene).error):
            findings.append(Finding("label cannot be used", scene.id, fault))
        return findings

    def inspect_image(self, scene: Scene, image: str) -> tuple[tuple[int, int] | None, list[Finding]]:
        """Read an image; return its (height, width), None where it cannot be read, and what is strange about it."""
        try:
            picture = self.picture(scene, image)
        except DataError as error:
            return None, [Finding("unreadable image", scene.id, str(error))]
        path = scene.files.get(image, "")
        remarks = [*picture.remarks, *blemishes(picture)]
        found = [Finding(kind, scene.id, f"{path}: {detail}" if detail else str(path)) for kind, detail in remarks]
        return picture.valid.shape, found

    def summary(self) -> list[str]:
        """Return how many scenes there are of each split, where they were looked for, and what the sample binds."""
        train, test = self._list("train"), self.scenes("test")
        lines = [f"{len(train)} training scenes listed"]
        if not test:
            places = ", ".join(self.places("test"))
            lines[0] += f"; 0 test scenes found; looked in {places}" if places else "; no test set, as asked for"
        else:
            lines[0] += f"; {len(test)} test scenes"
        if self.sampled is not None:
            named = len({self.id_in(name) for name in self.sampled.names(1)})
            header, order = ",".join(self.sampled.header)[:200], " and its order of rows" if named else ""
            lines.append(
                f"{self.sampled.path.name} names {named} scenes; the submission has its header {header}{order}"
            )
        faults = {scene.id: fault for scene in test if (fault := self.incomplete(scene))}
        if faults:
            lines.append(f"{len(faults)} of {len(test)} test scenes cannot be predicted: they take predict.fallback, "
                         f"or stop stage 04 where there is none: {told(faults)}")  # fmt: skip
        return lines

    def remarks(self) -> list[str]:
        """Return what was told from the data rather than stated, in sentences; stage 01 prints them."""
        return []

    def caveats(self, scenes: Sequence[Scene]) -> list[str]:
        """Return what of these scenes is read or written otherwise than was asked for, in sentences.

        Stage 06 and a kernel print them.
        """
        return []

    # ---- where files are looked for -------------------------------------------------------------------------
    def read_files(self) -> list[Path]:
        """Return the files and folders that are read, or left alone as asked for, besides those of scenes."""
        denied = getattr(self.options, "test", "") is None
        return [
            *self.carried.values(),
            *([self.sample] if self.sample else []),
            *(self.root / folder for folder in self.usual_folders("test") if denied),
        ]

    def usual_folders(self, split: str) -> Sequence[str]:
        """Return the folders below ``root`` in which a split is looked for where no option says so."""
        return ()

    def places(self, split: str) -> list[str]:
        """Return where the scenes of a split are looked for, as folders or patterns below ``root``."""
        return [str(self.root)]
