"""What is said of an exported file: the metadata inside it, and the model card beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.choose.choice import Decision
from lib.config.sections import Experiment, Start, plain
from lib.models import licences
from lib.tasks import Task
from lib.tools.export_graph import INPUT, OUTPUT, Asked, GraphMember, stride_of


@dataclass(frozen=True)
class Card:
    """What was exported."""

    config: Experiment
    role: str
    task: Task
    images: tuple[str, ...]
    """Images of a scene, in the order of the input's channels, three each."""
    members: Sequence[GraphMember]
    asked: Asked
    decision: Decision | None
    notes: Sequence[str]
    """In what the files differ from the stages."""
    licence: str
    resolution: float | None
    """Centimetres per pixel."""

    @property
    def models(self) -> list[str]:
        """Names of the experiment's models in it."""
        return list(dict.fromkeys(member.name.rpartition("/")[0] for member in self.members))


def metadata(card: Card, tile: int, overlap: float) -> dict[str, Any]:
    """Return what an ONNX file says of itself, by key.

    The first eight keys are those that the QGIS plugin Deepness reads (``ModelBase`` in its ``model_base.py``); its
    documentation says ``tiles_size``, its code reads ``tile_size``, so both are there. It shows a single channel as two
    classes, of which the first is the background. Values of 0..1 are what it gives to a model, so no standardization is
    stated.
    """
    task = card.task
    names = ["background", *task.classes] if task.channels == 1 and task.dense else list(task.classes)
    found: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {number: name for number, name in enumerate(names)},
        "tile_size": card.asked.size or tile,
        "tiles_size": card.asked.size or tile,
        "tiles_overlap": round(100 * overlap),
        "seg_thresh": 0.0 if task.kind == "multiclass" else 0.5,
        "seg_small_segment": 0,
    }
    if not task.dense:
        found = {"class_names": found["class_names"]}
    if card.resolution is not None:
        found["resolution"] = card.resolution
    first = card.config.models[card.models[0]]
    return found | {
        "experiment_name": card.config.name,
        "task": card.role,
        "classes": list(task.classes),
        "classes_are": {"multiclass": "exclusive", "multilabel": "overlapping"}.get(task.kind, "yes or no"),
        "images": list(card.images),
        "input_range": [0, card.asked.largest],
        "stride": stride_of(card.members),
        "view": plain(first.view),
        "views_averaged": card.asked.views,
        "networks": {member.name: member.share for member in card.members},
    }


def rows(card: Card) -> list[dict[str, Any]]:
    """Return a row for each network: its share, temperature, encoder and the licence of the encoder's weights."""
    found = []
    for member in card.members:
        network = card.config.models[member.name.rpartition("/")[0]].network
        found.append({"network": member.name, "share": round(member.share, 6), "temperature": member.temperature,
                      "architecture": network.architecture, "encoder": network.encoder,
                      "began with": began_with(card, member.name.rpartition("/")[0]),
                      "licence of the encoder's weights": licences.licence(network.encoder) or "unknown"})  # fmt: skip
    return found


def began_with(card: Card, model: str) -> str:
    """Return the pretrained weights with which a model's training began, by way of the models that it started from:
    ``encoder_weights`` of the first of them, "none", or the experiment that the first one is of."""
    models, seen = card.config.models, set()
    while model not in seen:
        seen.add(model)
        start = models[model].train.init_from
        if isinstance(start, Start):
            return f"experiment {start.experiment}"
        if start is None:
            break
        model = start
    return models[model].network.encoder_weights


def text(card: Card, checked: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the model card in Markdown, with the fields that the Hugging Face hub reads before it."""
    config, task = card.config, card.task
    average = f"the average of {len(card.members)} networks" if len(card.members) > 1 else "one network"
    side = (f"squares of {card.asked.size} pixels" if card.asked.size else
            f"any batch, sides in multiples of {stride_of(card.members)}, two at least")  # fmt: skip
    parts = [
        _head(card),
        f"# {config.name}, task {card.role}",
        f"Probabilities of {', '.join(task.classes)} for {'each pixel' if task.dense else 'a whole image'}: {average}.",
        "## Input and output",
        f"`{INPUT}`: float32 (batch, {3 * len(card.images)}, height, width), {side}; values 0..{card.asked.largest} "
        f"({'bytes / 255' if card.asked.largest == 1 else 'bytes'}), normalised inside. Channels: "
        f"{', '.join(f'{image} {colour}' for image in card.images for colour in ('red', 'green', 'blue'))}. An image "
        "of one band is given three times.",
        f"`{OUTPUT}`: float32 (batch, {task.channels}, {'height, width' if task.dense else '1, 1'}), 0..1, one channel "
        f"per class; classes are {_relation(task)}.",
        "```python\n" + snippet(card) + "```",
        *_files(checked, task.dense, len(card.images)),
        *_notes(card),
        *_scores(card),
        "## Networks and licences",
        _table(rows(card)),
        *_warnings(card),
        f"Licence of these files: {card.licence}. The data that the networks were trained on have a licence of their "
        f"own (competition `{config.competition}`), and so have pretrained encoders; look at both before use.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def snippet(card: Card) -> str:
    """Return lines of Python that run model.onnx on two random bytes images."""
    height = card.asked.size or 2 * stride_of(card.members)
    width = card.asked.size or 3 * stride_of(card.members)
    divided = " / 255" if card.asked.largest == 1 else ""
    return (
        "import numpy as np\nimport onnxruntime\n\n"
        f"images = np.random.randint(0, 256, (2, {3 * len(card.images)}, {height}, {width}), np.uint8)  # RGB bytes\n"
        'model = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])\n'
        f'(probabilities,) = model.run(None, {{"{INPUT}": images.astype(np.float32){divided}}})\n'
        "levels = np.rint(probabilities * 255).astype(np.uint8)\n"
    )


def _head(card: Card) -> str:
    tag = "image-segmentation" if card.task.dense else "image-classification"
    return f"---\nlicense: {card.licence}\npipeline_tag: {tag}\nlibrary_name: onnx\ntags:\n- onnx\n- {tag}\n---"


def _relation(task: Task) -> str:
    if task.channels == 1:
        return "one, yes or no"
    return "exclusive, they add up to 1" if task.kind == "multiclass" else "independent of each other and may overlap"


def _files(checked: Mapping[str, Mapping[str, Any]], dense: bool, images: int) -> list[str]:
    told = {"model.onnx": "ONNX", "model.pt2": "`torch.export.load`",
            "qgis.onnx": "ONNX of one tile, for the QGIS plugin Deepness"}  # fmt: skip
    away = "levels away from the pipeline's own"
    lines = [{"file": f"`{name}`", "read by": told[name],
              away: f"at most {found['largest']} of 255, {found['share']:.3%} differ"}
             for name, found in checked.items()]  # fmt: skip
    found = ["## Files", _table(lines),
             "`networks/` holds the weights as the pipeline itself reads them (safetensors)."]  # fmt: skip
    if "qgis.onnx" in checked and images > 1:
        found.append("For QGIS, put the images into one raster of all bands in the order above: "
                     "`gdalbuildvrt -separate pair.vrt pre.tif post.tif` (GDAL 3.8 or newer), then assign bands to "
                     "channels in the plugin.")  # fmt: skip
    return found


def _notes(card: Card) -> list[str]:
    if not card.notes:
        return []
    return ["## In what these files differ from the pipeline", "\n".join(f"- {note}" for note in card.notes)]


def _scores(card: Card) -> list[str]:
    if card.decision is None or not card.decision.scenes:
        return ["## Scores", "Not measured: stage 05 has not been run."]
    decision = card.decision
    expected = f"expected on unseen scenes {decision.expected:.4f}, " if decision.expected is not None else ""
    interval = "" if decision.interval95 is None else " (95%: {:.4f} to {:.4f})".format(*decision.interval95)
    head = (f"Of the whole experiment, all tasks and decode settings together, on {decision.scenes} out-of-fold "
            f"scenes: {expected}score {decision.score:.4f}{interval}.")  # fmt: skip
    rows_ = [{"score": name, "value": round(value, 4)} for name, value in decision.scores.items()]
    return ["## Scores", head, _table(rows_)]


def _warnings(card: Card) -> list[str]:
    settings = {(card.config.models[name].network.encoder, began_with(card, name)) for name in card.models}
    return [f"**{line}**" for encoder, weights in sorted(settings) if (line := licences.warning(encoder, weights))]


def _table(rows_: Sequence[Mapping[str, Any]]) -> str:
    if not rows_:
        return ""
    head = list(rows_[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(row[name]) for name in head) + " |" for row in rows_])
