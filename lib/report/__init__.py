"""What a person reads at the end: the score table, the history of training, pictures of out-of-fold scenes.

``python -m lib.report OLD NEW`` compares two experiment folders of a workdir.
"""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lib.choose import plans
from lib.choose.evidence import DECODE, blended
from lib.competitions.contract import APART, Competition, Scene, settings_for
from lib.files import whole_file, write_bytes
from lib.run.artifacts import read_json
from lib.run.cli import Run

PICTURES = 4
"""Out-of-fold scenes shown, the ones with most in them first."""


def decode_table(run: Run) -> str:
    """Return decode.json as a table: settings, scores, what to expect on unseen scenes."""
    found = read_json(run.store.require(run.graph.decode()) / DECODE)
    lines = ["", f"out-of-fold scores ({found['coverage']})"]
    theirs = run.config.reference
    for name, value in found["scores"].items():
        lines.append(f"  {name:32s} {value:.4f}" + (f"  (source: {theirs[name]:g})" if name in theirs else ""))
    low, high = found["interval95"]
    lines.append(f"  {'95 % interval over scenes':32s} {low:.4f} .. {high:.4f}")
    if "score_without_search" in found:
        lines.append(f"  {'score without the search':32s} {found['score_without_search']:.4f}")
        expected = found["expected_score"]
        shown = "unknown (one fold only)" if expected is None else f"{expected:.4f}"
        lines.append(f"  {'expected on unseen scenes':32s} {shown}  (nested cross-validation)")
    apart = found["params"].get("per_domain", {})
    common = {name: value for name, value in found["params"].items() if name not in APART}
    lines.append("  settings: " + ", ".join(f"{name} {value}" for name, value in common.items()))
    apart = apart | ({"unseen domains": found["params"]["unseen"]} if "unseen" in found["params"] else {})
    lines += [f"  {domain}: " + ", ".join(f"{n} {v}" for n, v in own.items()) for domain, own in apart.items()]
    lines.append("  weights: " + ", ".join(f"{name} {value:g}" for name, value in found["weights"].items()))
    if "tta" in found:
        lines.append(f"  views: {found['tta']}" + (", refined by a CRF" if found["crf"] else ""))
    if found.get("plans"):
        lines += plans.table(found["plans"], list(run.config.models))
    if len(found["per_domain"]) > 1:
        lines += _by_table(found["per_domain"], "domain")
    lines += _by_table(found["per_fold"], "fold")
    for name, table in found["tables"].items():
        lines += _matrix(name, table)
    return "\n".join([*lines, ""])


def _matrix(name: str, table: Mapping[str, Any]) -> list[str]:
    """Return a named list of scores as one line, or a matrix as one line per row."""
    rows = {key: row for key, row in table.items() if isinstance(row, Mapping)}
    if not rows:
        return [f"  {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in table.items())]
    columns = list(next(iter(rows.values())))
    width = max(len(name), *map(len, rows))
    lines = [f"  {name:{width}s}  " + "  ".join(f"{column:>12s}" for column in columns) + "   (rows: truth)"]
    return lines + [f"  {key:{width}s}  " + "  ".join(f"{row[c]:12d}" for c in columns) for key, row in rows.items()]


def _by_table(rows: Mapping[str, Mapping[str, Any]], title: str) -> list[str]:
    """Return one line per domain or fold, with its scene count and scores; parts of a score are named by their end."""
    short: dict[str, str] = {}
    for name in next(iter(rows.values())):
        parent = max((p for p in short if name.startswith(f"{p}_")), key=len, default="")
        short[name] = name.removeprefix(f"{parent}_")
    names = [name for name in short if name != "scenes" and list(short.values()).count(short[name]) == 1]
    width = max(len(title), *map(len, rows))
    lines = [f"  {title:{width}s} scenes  " + "  ".join(f"{short[name]:>7s}" for name in names)]
    for key, row in rows.items():
        cells = "  ".join(f"{row[name]:{max(7, len(short[name]))}.4f}" for name in names)
        lines.append(f"  {key:{width}s} {row['scenes']:6d}  {cells}")
    return lines


def milestones(run: Run) -> list[str]:
    """Return a line per epoch that was a new best, checkpoint by checkpoint, as the training logs have them."""
    lines = []
    for name, model in run.config.models.items():
        for fold in run.config.folds_of(model):
            log = run.store.folder(run.graph.checkpoint(name, fold)) / "log.jsonl"
            rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            best = [row for row in rows if row.get("new_best")]
            shown = [f"{row['epoch']}: {row['scores']['select']:.4f}" for row in best]
            if shown:
                lines.append(f"  {name} fold {fold}, epoch: validation score of each new best: {', '.join(shown)}")
    return lines


def compare(old: Path, new: Path) -> str:
    """Return a table of two experiments' out-of-fold scores: old, new, gain in percent of the old."""
    found = [read_json(folder / "05_ensemble" / "decode" / DECODE) for folder in (old, new)]
    before, after = (
        {**row["scores"], "expected on unseen scenes": row.get("expected_score") or float("nan")} for row in found
    )
    lines = [f"{'':32s} {old.name:>12s} {new.name:>12s}      gain"]
    for name in [name for name in before if name in after]:
        gain = f"{100 * (after[name] / before[name] - 1):+8.1f} %" if before[name] else "        -"
        lines.append(f"{name:32s} {before[name]:12.4f} {after[name]:12.4f} {gain}")
    return "\n".join(lines)


def write(run: Run) -> str:
    """Write report/ (an HTML page and pictures of out-of-fold scenes); returns the closing lines for the terminal."""
    folder = run.store.root / "report"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [decode_table(run)]
    history = "\n".join(milestones(run))
    there = run.store.status(run.graph.blend("oof")) in ("done", "frozen")  # not with checkpoints from --inputs alone
    pictures = draw(run, folder) if there else []
    page = ["<!doctype html><meta charset='utf-8'>", f"<title>{html.escape(run.config.name)}</title>",
            f"<h1>{html.escape(run.config.name)}</h1><pre>{html.escape(lines[0])}</pre>",
            f"<h2>training</h2><pre>{html.escape(history)}</pre>"]  # fmt: skip
    page += [f"<h2>{html.escape(p.stem)}</h2><img src='{html.escape(p.name)}' style='width:100%'>" for p in pictures]
    write_bytes(folder / "report.html", ("\n".join(page) + "\n").encode())
    submission = run.graph.submission("test")
    if run.store.status(submission) == "done":
        lines.append(f"submission: {run.store.folder(submission)} (linted)")
    lines.append(f"report:     {folder / 'report.html'}")
    if pictures:
        lines.append(f"picture:    {pictures[0]}")
    return "\n".join(lines)


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw the out-of-fold scenes with most in them, side by side: images, truth, prediction."""
    chosen = read_json(run.store.require(run.graph.decode()) / DECODE)["params"]
    fullness = {s.id: sum(run.competition.strata(s).values()) for s in run.scenes("train")}
    wanted = sorted(fullness, key=lambda i: (-fullness[i], i))[:PICTURES]
    drawn = {}
    for scene, levels in blended(run, "oof"):
        if scene.id in wanted:
            answer = run.competition.decode(levels, settings_for(scene, chosen))
            drawn[scene.id] = picture(run.competition, scene, answer, folder)
    return [drawn[i] for i in wanted if i in drawn]


def picture(competition: Competition, scene: Scene, answer: Any, folder: Path) -> Path:
    """Write one scene's panels side by side as a PNG; returns its path."""
    panels = competition.panels(scene, answer)
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5.4), squeeze=False)
    for axis, (title, image) in zip(axes[0], panels, strict=True):
        axis.imshow(image)
        axis.set_title(title)
        axis.axis("off")
    figure.suptitle(scene.id)
    figure.tight_layout()
    path = folder / f"{scene.id}.png"
    with whole_file(path, "wb") as file:
        figure.savefig(file, dpi=80, format="png")
    plt.close(figure)
    return path
