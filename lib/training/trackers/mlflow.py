"""MLflow: a store of files in the experiment's folder, or the server that ``MLFLOW_TRACKING_URI`` names."""

import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.scenes.raster import write_png
from lib.training.trackers import TrackedRun, Tracker, leaves

LONGEST = 500
"""Characters of a setting that are shown; all of them stand in settings.json of the run's artifacts."""
AT_ONCE = 100
"""Settings in one call."""


def open_run(subject: TrackedRun) -> Tracker:
    """Open the run of a subject, the one that it had before where it goes on."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions want to be asked for it
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    store = subject.folder / "mlflow"
    address = os.environ.get("MLFLOW_TRACKING_URI") or store.resolve().as_uri()
    client = MlflowClient(tracking_uri=address)
    known = client.get_experiment_by_name(subject.experiment)
    experiment = known.experiment_id if known else client.create_experiment(subject.experiment)
    found = client.search_runs([experiment], f"tags.run_of_unit = '{subject.id}'") if subject.goes_on else []
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return MLflow(client, found[0].info.run_id)
    tags = {"run_of_unit": subject.id, "unit": subject.unit}
    return MLflow(client, client.create_run(experiment, run_name=subject.unit, tags=tags).info.run_id)


class MLflow:
    """A run of an experiment of the store."""

    def __init__(self, client: Any, run: str):
        self.client, self.run, self.last = client, run, 0

    def settings(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_dict(self.run, dict(settings), "settings.json")
        shown = [Param(_name(name), str(value)[:LONGEST]) for name, value in leaves(settings).items()]
        for start in range(0, len(shown), AT_ONCE):
            self.client.log_batch(self.run, params=shown[start : start + AT_ONCE])

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self.last = epoch
        self._log(values, epoch)

    def scores(self, scores: Mapping[str, float]) -> None:
        self._log({f"final/{name}": value for name, value in scores.items()}, self.last)

    def picture(self, name: str, image: np.ndarray) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{_name(name).replace('/', '_')}.png"
            write_png(path, image)
            self.client.log_artifact(self.run, str(path), "pictures")

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run, metrics=[Metric(_name(n), value, now, step) for n, value in values.items()])


def _name(name: str) -> str:
    """Return a name of letters, digits and the signs that MLflow takes."""
    return re.sub(r"[^\w./ -]", "_", name)
