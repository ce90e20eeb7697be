"""What is rerun when: the units of an experiment and the facts each depends on, stated here alone.

Facts are config sections, fold numbers and scene ids. Code is recorded in manifests and never makes a unit stale:
after an edit, ``--force``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.config.sections import Experiment, Model, plain
from lib.errors import ArtifactError
from lib.files import digest
from lib.run.artifacts import MANIFEST, Unit, read_manifest, read_object
from lib.tasks import Task

STAGE_OF_TASK = {"loc": ("02_loc", "02_train_loc.py"), "cls": ("03_cls", "03_train_cls.py")}
"""Role of a task -> folder of its checkpoints and the script that trains them."""

SPLITS = ("oof", "test")


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


def teachers(config: Experiment, workdir: Path) -> dict[str, str | None]:
    """Return the fingerprints of all that an experiment learns from: teacher or pseudo-labels, and fold.

    ArtifactError where such an experiment has not come so far, or its logits are older than its networks.
    """
    found: dict[str, str | None] = {}
    for model in config.models.values():
        for fold in config.folds_of(model) if model.train.pseudo else ():
            paths = [folder / MANIFEST for folder in pseudo_folders(workdir, model, fold)]
            if missing := [path.parent for path in paths if not path.exists()]:
                raise ArtifactError(f"{missing[0]}: no probabilities for pseudo-labels; run stage 04 there first")
            found[_pseudo_key(model, fold)] = digest([read_manifest(path.parent)["fingerprint"] for path in paths])
        distill = model.train.distill
        for fold in config.folds_of(model) if distill is not None else ():
            folders = teacher_folders(workdir, model, fold)
            if distill is not None and not folders:
                raise ArtifactError(
                    f"{workdir / distill.experiment}: the teacher has no logits of the scenes of fold {fold} for "
                    f"{model.task}; run its stages up to 04 with predict.logits: true first"
                )
            found[_teacher_key(model, fold)] = digest([_logits_fingerprint(workdir, folder) for folder in folders])
    return found


def _logits_fingerprint(workdir: Path, folder: Path) -> str:
    """Return the fingerprint of a teacher's logits, which must be those of the checkpoint that lies there today."""
    if not (folder / MANIFEST).exists():
        raise ArtifactError(f"{folder}: the teacher has no such logits; run its stages up to 04 with predict.logits: "
                            "true first, or correct train.distill.models")  # fmt: skip
    manifest = read_object(folder / MANIFEST, fingerprint=str, upstream=dict)
    experiment = folder.relative_to(workdir).parts[0]
    for key, fingerprint in manifest["upstream"].items():
        today = workdir / experiment / key / MANIFEST
        if today.exists() and read_manifest(today.parent)["fingerprint"] != fingerprint:
            raise ArtifactError(f"{folder}: these logits are not those of today's {key}; run the teacher's stage 04 "
                                "with predict.logits: true again")  # fmt: skip
    return manifest["fingerprint"]


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
        return Unit("01_folds", facts, self._command("01_prepare_folds.py"))

    def checkpoint(self, name: str, fold: int) -> Unit:
        """Stages 02 and 03: one model trained on one fold."""
        model = self.config.models[name]
        folder, script = STAGE_OF_TASK[model.task]
        others = dict.fromkeys((model.train.init_from, model.train.localization))
        upstream = (self.folds(), *(self.checkpoint(other, fold) for other in others if other is not None))
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
        if model.train.select != "last" or model.train.patience:  # how validation decodes decides what is kept
            # the precision that the file states: a network that was chosen in another one is worth no new training
            predict, stated = self.config.predict, model.precision or self.config.predict.precision
            facts["judged"] = {"precision": stated, "tile": predict.tile, "overlap": predict.overlap,
                               "decode": self.config.decode}  # fmt: skip
        command = self._command(script, f"--only {name} --fold {fold}")
        return Unit(f"{folder}/{name}/fold{fold}", facts, command, upstream)

    def probs(self, name: str, fold: int, split: str) -> Unit:
        """Stage 04: probabilities of one checkpoint, on its own validation scenes (oof) or on the test scenes."""
        predict = self._looks(name, "logits")
        facts: dict[str, Any] = {"predict": predict, "split": split}
        if split == "test":
            facts["scenes"] = self.test_ids
        task, pad = self.config.models[name].task, self.config.models[name].pad
        if pad:
            facts["pad"] = pad
        command = self._command("04_predict_tta.py", f"--only {name} --fold {fold} --split {split}")
        upstream = (self.checkpoint(name, fold),)
        return Unit(f"04_probs/{task}/{name}/fold{fold}/{split}", facts, command, upstream, portable=split == "oof")

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
        return Unit(key, {"predict": predict}, command, upstream, portable=False)

    def blend(self, split: str) -> Unit:
        """Stage 05: the average over models, folds and views."""
        upstream = self._members(split)
        if self.config.averages_are_fitted:  # decode.json holds weights, temperatures, views
            upstream = (*upstream, self.decode())
        command = self._command("05_ensemble.py", f"--split {split}")
        return Unit(f"05_ensemble/{split}", self._blend_facts(), command, upstream, portable=split == "oof")

    def decode(self) -> Unit:
        """Stage 05: decode.json, what is chosen on out-of-fold scenes (settings, weights) and what to expect of it."""
        config = self.config
        facts = {"decode": config.decode, "search": plain(config.search) if config.search else None}
        upstream = (*self._members("oof"), self.folds())
        command = self._command("05_ensemble.py", "--split oof")
        return Unit("05_ensemble/decode", facts | self._blend_facts(), command, upstream)

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
        return Unit(f"06_submission/{split}", {"split": split}, command, upstream, portable=False)


def check_only(graph: Graph, task: str | None, only: str | None, fold: int | None) -> None:
    """Refuse ``--only`` and ``--fold`` that name nothing."""
    known = graph.models(task)
    if only is not None and only not in known:
        raise ArtifactError(f"--only {only}: expected one of {', '.join(known) or '(no model of this task)'}")
    if fold is not None and not any(fold in graph.config.folds_of(m) for m in graph.models(task, only).values()):
        raise ArtifactError(f"--fold {fold}: no such fold among the chosen models")
