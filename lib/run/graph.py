"""What is rerun when: the units of an experiment and the facts each depends on, stated here alone.

Facts are config sections, fold numbers and scene ids. What a unit reads of the data is stated beside them as digests
of today's files (``Unit.data``), so that the data of an earlier version's units need not be known. What a unit reads of
other units follows their bytes: one that is built anew to the same bytes makes nothing stale. Code is recorded in
manifests and never makes a unit stale: after an edit, ``--force``.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.config.sections import Experiment, Model, Start, plain
from lib.errors import ArtifactError
from lib.files import digest
from lib.run import manifest
from lib.run.artifacts import Unit
from lib.run.index import INDEX, DataState
from lib.run.manifest import MANIFEST
from lib.tasks import Task

STAGE_OF_TASK = {"loc": ("02_loc", "02_train_loc.py"), "cls": ("03_cls", "03_train_cls.py")}
"""Role of a task -> folder of its checkpoints and the script that trains them."""

SPLITS = ("oof", "test")

FOLDS = "01_folds"
TRAINING, TEST = "training scenes", "test scenes"
"""What units read of the data, as messages name it."""

LOGITS = "logits"
"""What stage 04 keeps of a checkpoint's training scenes, beside the splits of probabilities."""


def teacher_folders(workdir: Path, model: Model, fold: int) -> list[Path]:
    """Return where a teaching experiment's logits of the training scenes of a fold lie, from networks without the fold.

    [] where the model has no teacher, or the teacher has no logits.
    """
    if (distill := model.train.distill) is None:
        return []
    root = workdir / distill.experiment / "04_probs" / model.task
    names = distill.models or sorted(path.parents[1].name for path in root.glob(f"*/fold{fold}/{LOGITS}"))
    return [root / name / f"fold{fold}" / LOGITS for name in names]


def pseudo_folders(workdir: Path, model: Model, fold: int) -> list[Path]:
    """Return where an earlier experiment's probabilities of unlabelled scenes lie, from networks without the fold.

    [] where the model does not learn from such.
    """
    if (pseudo := model.train.pseudo) is None:
        return []
    root = workdir / pseudo.experiment / "04_probs" / model.task
    return [root / name / f"fold{fold}" / "test" for name in pseudo.models]


def start_folder(workdir: Path, model: Model, fold: int) -> Path | None:
    """Return where the network of another experiment lies that a model starts from, None where it starts otherwise.

    Where no such network is there, the folder is that of its model in stage 02.
    """
    if not isinstance(start := model.train.init_from, Start):
        return None
    place = f"{start.model}/fold{start.fold_for(fold)}"
    places = [workdir / start.experiment / stage / place for stage, _ in STAGE_OF_TASK.values()]
    return next((place for place in places if (place / MANIFEST).exists()), places[0])


def lessons(config: Experiment) -> list[str]:
    """Return the units of other experiments that an experiment learns from, as paths below the workdir.

    A ``*`` in place of a model means all models that have such a unit.
    """
    found = []
    for model in config.models.values():
        distill = model.train.distill
        for fold in config.folds_of(model):
            found += [folder.as_posix() for folder in pseudo_folders(Path(), model, fold)]
            if isinstance(start := model.train.init_from, Start):
                found += [f"{start.experiment}/*/{start.model}/fold{start.fold_for(fold)}"]
            if distill is not None:
                found += [f"{distill.experiment}/04_probs/{model.task}/{name}/fold{fold}/{LOGITS}"
                          for name in distill.models or "*"]  # fmt: skip
    return found


def teachers(config: Experiment, workdir: Path, coming: Collection[str] = ()) -> dict[str, str | None]:
    """Return the fingerprints of all that an experiment learns from: teacher, pseudo-labels or first weights, and fold.

    ArtifactError where such an experiment has not come so far, or its logits are older than its networks; of one among
    ``coming``, which the same run is to make, nothing is returned then.
    """
    return {key: digest([one["fingerprint"] for one in found]) for key, found in _learnt(config, workdir, coming)}


def taught(config: Experiment, workdir: Path, coming: Collection[str] = ()) -> dict[str, str]:
    """Return digests of the bytes of all that an experiment learns from, under the keys of ``teachers``."""
    return {key: digest([manifest.content(one) for one in found]) for key, found in _learnt(config, workdir, coming)}


def _learnt(config: Experiment, workdir: Path,
            coming: Collection[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:  # fmt: skip
    """Yield key and manifests of what each model learns from, fold by fold; errors as of ``teachers``."""
    for model in config.models.values():
        for source, key_of, read in ((model.train.pseudo, _pseudo_key, _pseudo_labels),
                                     (model.train.distill, _teacher_key, _teacher_logits),
                                     (model.train.init_from, _start_key, _first_weights)):  # fmt: skip
            source = None if isinstance(source, str) else source  # a model of the same experiment is upstream
            for fold in config.folds_of(model) if source is not None else ():
                try:
                    found = read(workdir, model, fold)
                except ArtifactError:
                    if source is not None and source.experiment in coming:
                        continue
                    raise
                yield key_of(model, fold), found


def _pseudo_labels(workdir: Path, model: Model, fold: int) -> list[dict[str, Any]]:
    """Return the manifests of ``pseudo_folders``."""
    folders = pseudo_folders(workdir, model, fold)
    if missing := [folder for folder in folders if not (folder / MANIFEST).exists()]:
        raise ArtifactError(f"{missing[0]}: no probabilities for pseudo-labels; run stage 04 there first")
    return [manifest.read(folder) for folder in folders]


def _teacher_logits(workdir: Path, model: Model, fold: int) -> list[dict[str, Any]]:
    """Return the manifests of ``teacher_folders``."""
    folders, distill = teacher_folders(workdir, model, fold), model.train.distill
    if distill is not None and not folders:
        raise ArtifactError(f"{workdir / distill.experiment}: the teacher has no logits of the scenes of fold {fold} "
                            f"for {model.task}; run its stages up to 04 with predict.logits: true first")  # fmt: skip
    return [_logits_of_today(workdir, folder) for folder in folders]


def _logits_of_today(workdir: Path, folder: Path) -> dict[str, Any]:
    """Return the manifest of a teacher's logits, which must be those of the checkpoint that lies there today."""
    if not (folder / MANIFEST).exists():
        raise ArtifactError(f"{folder}: the teacher has no such logits; run its stages up to 04 with predict.logits: "
                            "true first, or correct train.distill.models")  # fmt: skip
    made = manifest.read(folder)
    experiment = folder.relative_to(workdir).parts[0]
    for key, fingerprint in made["upstream"].items():
        today = manifest.made(workdir / experiment / key)
        if today and (today["fingerprint"] != fingerprint or not manifest.reads(made, key, today)):
            raise ArtifactError(f"{folder}: these logits are not those of today's {key}; run the teacher's stage 04 "
                                "with predict.logits: true again")  # fmt: skip
    return made


def _first_weights(workdir: Path, model: Model, fold: int) -> list[dict[str, Any]]:
    """Return the manifest of the network of another experiment that a model starts from."""
    folder, start = start_folder(workdir, model, fold), model.train.init_from
    assert folder is not None and isinstance(start, Start), "only models that start so have first weights"
    if not (folder / MANIFEST).exists():
        raise ArtifactError(f"{workdir / start.experiment}: has no trained network {start.model} of {folder.name}, "
                            "from which train.init_from starts; train it there first, or name another "
                            "train.init_from.fold")  # fmt: skip
    return [manifest.read(folder)]


def _start_key(model: Model, fold: int) -> str:
    start = model.train.init_from
    assert isinstance(start, Start), "only models that start from another experiment have a key"
    return f"{start.experiment}/{start.model}/{start.fold}/{fold}"


def _teacher_key(model: Model, fold: int) -> str:
    distill = model.train.distill
    assert distill is not None, "only students have a key"
    return f"{distill.experiment}/{model.task}/{','.join(distill.models or '*')}/{fold}"


def _pseudo_key(model: Model, fold: int) -> str:
    pseudo = model.train.pseudo
    assert pseudo is not None, "only models with pseudo-labels have a key"
    return f"{pseudo.experiment}/{model.task}/{','.join(pseudo.models)}/{fold}"


class Graph:
    """The units of one experiment. ``flags`` is the common part of every command, e.g. ``--config configs/x.yaml``."""

    def __init__(self, config: Experiment, train_ids: Sequence[str], test_ids: Sequence[str], flags: str = "",
                 teachers: Mapping[str, str | None] | None = None,
                 tasks: Mapping[str, Task] | None = None):  # fmt: skip
        """``teachers``: what ``teachers`` returns, fingerprints of what students learn from. ``tasks``: role -> task of
        the competition, which says what is predicted in float32."""
        self.config, self.train_ids, self.test_ids, self.flags = config, tuple(train_ids), tuple(test_ids), flags
        self.teachers, self.tasks = teachers or {}, tasks or {}
        self.data: DataState | None = None
        """What the files of the scenes hold today; None where stage 01 has not made an index of them."""
        self.taught: Mapping[str, str] = {}
        """What ``taught`` returns, digests of the bytes of what students learn from."""

    def _command(self, script: str, extra: str = "") -> str:
        return " ".join(part for part in ("python", script, self.flags, extra) if part)

    def models(self, task: str | None = None, only: str | None = None) -> dict[str, Model]:
        """Return the experiment's models, of one task and one name where asked."""
        return {
            name: model
            for name, model in self.config.models.items()
            if task in (None, model.task) and only in (None, name)
        }

    def folds(self) -> Unit:
        """Stage 01: folds.csv and its audit."""
        config = self.config
        facts = {
            "competition": config.competition,
            "options": config.data.options,
            "folds": {key: value for key, value in plain(config.folds).items() if key not in ("too_good", "embed")},
            "train": self.train_ids,
        }
        beside = (INDEX, "audit.json", "findings.csv", "places.json")
        data = self._data("train")
        seen = {**data.everything, **_bytes("folds.file", config.folds.file)} if data else {}
        return Unit(FOLDS, facts, self._command("01_prepare_folds.py"), data=seen, beside=beside)

    def _data(self, split: str) -> DataState | None:
        """Return what is known of the data, None where that holds no scenes of a split."""
        return self.data if self.data is not None and self.data.scenes[split] else None

    def _images(self, name: str) -> tuple[str, ...]:
        return self.config.models[name].network.images

    def _trained_on(self, name: str, fold: int) -> dict[str, str]:
        """Training reads the images of its network, and of the network that selects with it, and all labels.

        Validation scenes are among them, for they decide which epoch is kept.
        """
        if (data := self._data("train")) is None:
            return {}
        model = self.config.models[name]
        others = [model.train.localization] if model.train.localization else []
        images = {image for one in (name, *others) for image in self._images(one)}
        found = {TRAINING: data.whole("train", images), **_bytes("encoder_weights", model.network.encoder_weights)}
        if model.train.distill:
            found["the teacher's logits"] = self.taught.get(_teacher_key(model, fold), "")
        if isinstance(model.train.init_from, Start):
            found["the weights it starts from"] = self.taught.get(_start_key(model, fold), "")
        if model.train.pseudo:
            found |= {TEST: data.whole("test", images, labels=False),
                      "pseudo-labels": self.taught.get(_pseudo_key(model, fold), "")}  # fmt: skip
        return found

    def _seen_by(self, name: str, split: str) -> dict[str, str]:
        """Prediction reads the images of its network: those of test scenes one by one, of which one that changed is
        predicted again alone; of out-of-fold scenes all, since a checkpoint follows the images of its validation
        scenes only as far as they decide which epoch is kept."""
        if split == "test":
            return dict(data.by_scene("test", self._images(name), labels=False)) if (data := self._data("test")) else {}
        data = self._data("train")
        return {f"images of {TRAINING}": data.whole("train", self._images(name), labels=False)} if data else {}

    def checkpoint(self, name: str, fold: int) -> Unit:
        """Stages 02 and 03: one model trained on one fold."""
        model = self.config.models[name]
        folder, script = STAGE_OF_TASK[model.task]
        others = dict.fromkeys((model.train.init_from, model.train.localization))
        upstream = (self.folds(), *(self.checkpoint(other, fold) for other in others if isinstance(other, str)))
        facts = {
            "task": model.task,
            "fold": fold,
            "seed": self.config.seed_of(model),
            "network": plain(model.network),
            "view": plain(model.view),
            "train": {k: v for k, v in plain(model.train).items() if k not in ("workers", "cache", "save_minutes")},
        }
        if model.train.distill:
            facts["teacher"] = self.teachers.get(_teacher_key(model, fold))
        if model.train.pseudo:
            facts["pseudo"] = self.teachers.get(_pseudo_key(model, fold))
        if isinstance(model.train.init_from, Start):
            facts["start"] = self.teachers.get(_start_key(model, fold))
        if model.train.select != "last" or model.train.patience:  # how validation decodes decides what is kept
            # the precision that the file states: a network that was chosen in another one is worth no new training
            predict, stated = self.config.predict, model.precision or self.config.predict.precision
            facts["judged"] = {"precision": stated, "tile": predict.tile, "overlap": predict.overlap,
                               "decode": self.config.decode}  # fmt: skip
        command = self._command(script, f"--only {name} --fold {fold}")
        return Unit(f"{folder}/{name}/fold{fold}", facts, command, upstream, data=self._trained_on(name, fold),
                    beside=("log.jsonl",))  # fmt: skip

    def probs(self, name: str, fold: int, split: str) -> Unit:
        """Stage 04: probabilities of one checkpoint, on its own validation scenes (oof) or on the test scenes.

        The fallback is no fact: scenes that have it are tried again whenever stage 04 is run, and get today's.
        """
        predict = self._looks(name, "logits", "fallback")
        facts: dict[str, Any] = {"predict": predict, "split": split}
        if split == "test":
            facts["scenes"] = self.test_ids
        task, pad = self.config.models[name].task, self.config.models[name].pad
        if pad:
            facts["pad"] = pad
        command = self._command("04_predict_tta.py", f"--only {name} --fold {fold} --split {split}")
        upstream = (self.checkpoint(name, fold),)
        return Unit(f"04_probs/{task}/{name}/fold{fold}/{split}", facts, command, upstream, portable=split == "oof",
                    data=self._seen_by(name, split), per_scene=True)  # fmt: skip

    def _looks(self, name: str, *apart: str) -> dict[str, Any]:
        """Return how the networks of a model look at scenes, as facts, without what is ``apart``."""
        asked = plain(self.config.predict_of(self.config.models[name], self.tasks))
        return {k: v for k, v in asked.items() if k not in ("workers", "budget_minutes", *apart)}

    def logits(self, name: str, fold: int) -> Unit:
        """Stage 04: the logits of one checkpoint on the scenes that it was trained on, for students of another one."""
        predict = self._looks(name, "logits", "fallback", "truncate")
        command = self._command("04_predict_tta.py", f"--only {name} --fold {fold} --set predict.logits=true")
        key = f"04_probs/{self.config.models[name].task}/{name}/fold{fold}/{LOGITS}"
        upstream = (self.checkpoint(name, fold), self.folds())
        return Unit(key, {"predict": predict}, command, upstream, portable=False, data=self._seen_by(name, LOGITS),
                    per_scene=True)  # fmt: skip

    def blend(self, split: str) -> Unit:
        """Stage 05: the average over models, folds and views."""
        upstream = self._members(split)
        if self.config.averages_are_fitted:  # decode.json holds weights, temperatures, views
            upstream = (*upstream, self.decode())
        command = self._command("05_ensemble.py", f"--split {split}")
        return Unit(f"05_ensemble/{split}", self._blend_facts(), command, upstream, portable=split == "oof",
                    data=self._refined(split), per_scene=True)  # fmt: skip

    def _refined(self, split: str) -> dict[str, str]:
        """Averages read no data, but for the images that a CRF refines them on."""
        scenes, name = ("test", TEST) if split == "test" else ("train", TRAINING)
        if (data := self._data(scenes)) is None or self.config.blend.crf is None:
            return {}
        return {f"images of {name}": data.whole(scenes, data.images, labels=False)}

    def decode(self) -> Unit:
        """Stage 05: decode.json, what is chosen on out-of-fold scenes (settings, weights) and what to expect of it.

        figures.json beside it is for reports alone.
        """
        config = self.config
        facts = {"decode": config.decode, "search": plain(config.search) if config.search else None}
        upstream = (*self._members("oof"), self.folds())
        command = self._command("05_ensemble.py", "--split oof")
        return Unit("05_ensemble/decode", facts | self._blend_facts(), command, upstream,
                    data=self._labels() | self._refined("oof"), beside=("figures.json",))  # fmt: skip

    def _labels(self) -> dict[str, str]:
        """Choosing, and scoring what was written, read the truth of the labelled scenes."""
        data = self._data("train")
        return {f"labels of {TRAINING}": data.whole("train", ())} if data else {}

    def _members(self, split: str) -> tuple[Unit, ...]:
        """Return the probabilities that are averaged."""
        models = self.config.models.items()
        return tuple(self.probs(name, fold, split) for name, model in models for fold in self.config.folds_of(model))

    def _blend_facts(self) -> dict[str, Any]:
        weights = {name: model.weight for name, model in self.config.models.items()}
        return {"blend": plain(self.config.blend), "weights": weights}

    def submission(self, split: str) -> Unit:
        """Stage 06: the files to hand in, or the same files for the out-of-fold scenes."""
        upstream = (self.blend(split), self.decode())
        command = self._command("06_make_submission.py", f"--split {split}")
        known = self._data("test") if split == "test" else None
        data = {TEST: known.whole("test", ())} if known else {}
        if known and known.sample:
            data["the sample submission"] = known.sample
        data = self._labels() if split == "oof" else data
        return Unit(f"06_submission/{split}", {"split": split}, command, upstream, portable=False, data=data)


def _bytes(setting: str, path: str | Path | None) -> dict[str, str]:
    """Return a setting that names a file with the sum of its bytes, "" for one that is gone; {} for other words."""
    if path is None or not os.path.isabs(path) and not os.path.exists(path):
        return {}
    return {setting: manifest.sum_of(Path(path)) if os.path.isfile(path) else ""}


def check_only(graph: Graph, task: str | None, only: str | None, fold: int | None) -> None:
    """Refuse ``--only`` and ``--fold`` that name nothing."""
    known = graph.models(task)
    if only is not None and only not in known:
        raise ArtifactError(f"--only {only}: expected one of {', '.join(known) or '(no model of this task)'}")
    if fold is not None and not any(fold in graph.config.folds_of(m) for m in graph.models(task, only).values()):
        raise ArtifactError(f"--fold {fold}: no such fold among the chosen models")
