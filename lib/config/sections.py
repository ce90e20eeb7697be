"""The experiment file: one YAML whose sections stand in the order in which the stages use them.

Each section is a class, each key a field with a type, a range and a line that says what it means. A stage hands a
section to the function that needs it, and ``lib/run/graph.py`` hashes the sections that a result depends on: a change
of any other section leaves the result valid.
"""

import re
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from lib.config.reference import Reference
from lib.scenes.view import View
from lib.settings import Limits, Section, did_you_mean
from lib.tasks import Task

Precision = Literal["float32", "float16", "bfloat16"]
Views = Literal["none", "hflip", "flips", "d4"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
UnitKind = Literal["folds", "train", "predict", "ensemble", "submission"]
BOUNDARY = "boundary_bce"
"""The loss term of every kind that trains a boundary head."""
QUERY = ("query_class", "query_bce", "query_dice")
"""The loss terms that train a maskformer."""
NAME = 100
"""Most bytes of a name: with what the stages put around it, it stays a file name on every system."""


def experiment_name(name: str) -> str:
    """Return the name of an experiment, which is a folder of the workdir. Raises ValueError for any other text."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or len(name) > NAME:
        raise ValueError(
            f"expected the name of an experiment, a folder of the same workdir: a letter or digit, then letters, "
            f"digits, '_', '-' and '.', at most {NAME}, and no path"
        )
    return name


def model_name(name: str) -> str:
    """Return the name of a model, which becomes a folder. Raises ValueError where it cannot."""
    if not re.sub(r"[_.-]", "", name).isalnum() or len(name.encode()) > NAME:
        raise ValueError(f"a model's name becomes a folder; use letters, digits, '-', '_', '.', at most {NAME} of them")
    return name


ExperimentName = Annotated[
    str,
    AfterValidator(experiment_name),
    Field(json_schema_extra={"pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$", "maxLength": NAME}),
]
ModelName = Annotated[str, AfterValidator(model_name)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What numpy, torch and scikit-learn all take."""
Weight = Annotated[float, Field(ge=0)]


class Synthetic(Section):
    """The embedded demo set, written to ``data.root`` before anything reads it."""

    scenes: int = Field(12, ge=4, le=100_000)
    """Labelled scenes, over all tiers."""
    test_scenes: int = Field(4, ge=0, le=100_000)
    """Scenes without labels."""
    size: int = Field(1024, ge=64, le=16_384)
    """Side of a scene in pixels (the official xView2 scorer takes 1024 only)."""
    seed: Seed = 7
    """Same seed, same bytes."""


class Data(Section):
    """Where the competition's files are."""

    root: Path
    """Folder of the competition as it was unpacked."""
    options: dict[str, Any] = {}
    """The competition's own settings (xview2: ``unclassified: ignore | no-damage``)."""
    synthetic: Synthetic | None = None
    """Write the embedded demo set at ``root`` when it is not there yet."""
    limits: Limits = Limits()
    """The most that a file may hold; one that holds more is named and not read."""
    workers: int | None = Field(None, ge=1, le=1000)
    """Processes that share the scenes in stages 01 and 05, each on a core of its own; none: one per core that this
    process may use, but one for each 32 scenes at most. Their number changes no result."""


class Folds(Section):
    """How scenes are split into folds."""

    scheme: Literal["scene", "event", "block", "group"] = "scene"
    """What stays together: each scene alone (as in 2020), whole events or domains, neighbouring tiles, or the
    competition's groups (videos, persons, patients)."""
    n: int = Field(4, ge=2, le=1000)
    """Number of folds."""
    seed: Seed = 0
    """Seed of the split."""
    block_km: float = Field(2.0, gt=0)
    """Scheme ``block``: side of a spatial block in kilometres."""
    file: Path | None = None
    """Take this folds.csv instead (columns id, fold, and the class flags)."""
    too_good: float | None = 0.98
    """A validation score above this runs the audit of the folds again and prints it; none: never."""
    embed: bool = True
    """The audit compares scenes by a network's features too, 30 ms an image; false: by hashes alone."""
    cluster: bool | Annotated[float, Field(ge=0.5, le=1)] = False
    """Scenes that look alike stay together too, whatever the scheme: near-duplicates, and scenes whose features have at
    least this cosine; true: the audit's own bound, 0.85."""

    @model_validator(mode="after")
    def _clusters_can_be_found(self):
        if self.cluster is not False and self.file is not None:
            raise ValueError("cluster: folds are taken from file and not divided here; remove one of them")
        if self.cluster is not False and not self.embed:
            raise ValueError("cluster: needs embed, the features by which scenes look alike")
        return self


class Network(Section):
    """What the network is; passed as it stands to ``lib.models.build`` and stored in the checkpoint."""

    architecture: str
    """A name of ``lib/models/__init__.py``: ``segmentation`` (images stacked as channels), ``siamese`` (one shared
    encoder per image), ``unet`` or ``attention_unet`` (from scratch, encoder ``none``), ``hybrid``, ``maskformer``,
    ``classifier`` (one label per frame)."""
    images: tuple[str, ...] = Field(min_length=1)
    """Names of the scene's images it sees, e.g. [pre, post]."""
    encoder: str
    """Any segmentation-models-pytorch encoder, or ``tu-<timm name>``."""
    encoder_weights: str = "none"
    """none | hub | bundled | a file or folder with the weights."""
    options: dict[str, Any] = {}
    """Further arguments of the architecture: decoder, decoder_channels, fusion, bottleneck, dropout, norm ..."""

    def arguments(self, classes: int) -> dict[str, Any]:
        """Return the arguments of ``lib.models.build`` for so many channels of logits, without pretrained weights."""
        return {"architecture": self.architecture, "classes": classes, "images": len(self.images),
                "encoder": self.encoder, **self.options}  # fmt: skip


class Loss(Section):
    """The weighted sum of loss terms."""

    terms: dict[str, float]
    """Term name -> weight; binary and multilabel: dice, focal, bce, jaccard, tversky, lovasz; multiclass: ce instead
    of bce, and more, see ``lib/training/losses.py``; for networks with a boundary head, boundary_bce; for a maskformer
    query_class, query_bce and query_dice. A term of weight 0 is reported and not trained."""
    class_weights: tuple[float, ...] | Literal["auto"] | None = None
    """Weight of each class in the pixel terms (2020: 1, 1, 5, 3, 3); auto: from their frequency in training."""
    focal_gamma: float = Field(2.0, ge=0)
    """Exponent of the focal terms: 0, or 1 and more."""
    focal_alpha: float | tuple[float, ...] | None = None
    """Balance of the focal terms, see ``focal_mode``; none: no balance."""
    focal_mode: Literal["softmax", "per_class", "one_vs_rest"] = "softmax"
    """What ``focal_alpha`` weighs: everything alike (only a larger step), the true class, or positives of each class
    against negatives."""
    focal_clamp: float = Field(0.0, ge=0, lt=0.5)
    """Binary focal terms: probability and truth are kept this far from 0 and 1, so that a pixel beyond has no gradient
    (2020: 1e-5); 0: they are not."""
    boundary_width: int = Field(1, ge=1, le=1000)
    """Pixels from a boundary that the term boundary_bce calls boundary."""
    aux_weight: float = Field(0.4, ge=0)
    """Weight of the same terms on a network's auxiliary head."""
    deep_weight: float = Field(0.5, ge=0)
    """Deep supervision: weight of the same terms on the decoder's step at half the image's size; at a quarter it is the
    square of it, at an eighth the cube. nnU-Net has one half."""
    smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Label smoothing of ce and bce; at one half, neither of two classes would be true."""
    smoothing_form: Literal["paper", "torch"] = "paper"
    """The share of the other classes: smoothing / (K - 1) each, or smoothing / K for all classes alike."""
    ohem: float | None = Field(None, gt=0, le=1)
    """Online hard example mining: only this share of the pixels, the hardest, counts in ce and bce."""
    ohem_min: int = Field(1, ge=1)
    """The fewest pixels that ``ohem`` keeps."""
    tversky_alpha: float = Field(0.3, gt=0)
    """Weight of false positives in the tversky term."""
    tversky_beta: float = Field(0.7, gt=0)
    """Weight of false negatives in the tversky term."""
    query_points: int = Field(12544, ge=4)
    """Points of a crop at which query_bce and query_dice compare masks, drawn anew at every step."""

    @model_validator(mode="after")
    def _options_have_their_term(self):
        weights = [weight for name, weight in self.terms.items() if name != BOUNDARY]
        if not all(0 <= weight < inf for weight in self.terms.values()) or not any(weights):
            raise ValueError(
                f"terms: expected weights of at least 0, one of them positive and not {BOUNDARY}'s, got {self.terms}"
            )
        if 0 < self.focal_gamma < 1:
            raise ValueError(f"focal_gamma: expected 0, or 1 and more, got {self.focal_gamma}")
        if "focal" not in self.terms and (self.focal_alpha is not None or self.focal_mode != "softmax"):
            raise ValueError("focal_alpha and focal_mode belong to the term focal, and there is none")
        if self.focal_clamp and "focal" not in self.terms:
            raise ValueError("focal_clamp belongs to the term focal, and there is none")
        if self.focal_mode == "per_class" and self.focal_alpha is None:
            raise ValueError("focal_mode: per_class needs focal_alpha, one number or one per class")
        if (self.smoothing or self.ohem is not None) and not self.terms.keys() & {"ce", "bce"}:
            raise ValueError("smoothing and ohem belong to the terms ce and bce, and there is neither")
        return self


class Auxiliary(Section):
    """A further task that the encoder learns beside the network's own."""

    loss: Loss
    """Its weighted loss terms."""
    weight: float = Field(1.0, gt=0)
    """Weight of this loss beside the network's own."""
    branch: Literal["head", "decoder"] = "head"
    """What the task has for itself: a head on the decoder of both, or a decoder with its head."""


class Optimizer(Section):
    """Who moves the weights."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """sgd is Nesterov with momentum 0.9."""
    lr: float | None = Field(None, gt=0, le=1000)
    """Peak learning rate (piecewise schedules state their own)."""
    lr_base: float | None = Field(None, gt=0, le=1000)
    """Instead of ``lr``: the learning rate for a batch of ``lr_base_batch``, scaled linearly to ``batch_size``."""
    lr_base_batch: int = Field(256, ge=1)
    """The batch that ``lr_base`` is for."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of weights (decoupled for adamw)."""
    no_bias_decay: bool = True
    """Norms and biases do not decay; false: all weights do."""
    encoder_lr_scale: float = Field(1.0, gt=0)
    """The encoder's learning rate as a share of the rest's."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Each layer of the encoder learns at this share of the rate of the one above it."""

    @model_validator(mode="after")
    def _one_learning_rate(self):
        if (self.lr is None) == (self.lr_base is None):
            raise ValueError("give one of lr and lr_base")
        return self


class Schedule(Section):
    """Learning rate as a function of the step."""

    kind: Literal[
        "constant", "cosine", "exponential", "multistep", "one_cycle", "piecewise", "plateau", "poly", "step"
    ] = "cosine"
    """``constant``; ``piecewise``: learning rates of ``table``; ``multistep``: shares of the peak, ``factors``;
    ``step``: times ``factor`` after every ``every`` epochs; ``exponential``: times ``factor`` after every epoch;
    ``cosine``: half a cosine down to ``min_lr``; ``poly``: (1 - t / T) to the ``power``, down to ``min_lr``;
    ``one_cycle``: a cosine up and one down (Smith and Topin 2017); ``plateau``: times ``factor`` when the score has not
    risen for ``patience`` validations. The steps of cosine and poly are counted after the warmup, the epochs of the
    others from the beginning."""
    factors: dict[int, float] | None = None
    """Multistep: epoch -> share of the peak learning rate from there on."""
    table: dict[int, float] | None = None
    """Piecewise: first epoch -> learning rate (the 2020 tables)."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Linear ramp per step: step s has (s + 1) / warmup steps of what follows."""
    power: float = 0.9
    """Exponent of ``poly``."""
    period: int | None = Field(None, ge=1)
    """Poly: steps after which it begins again at the peak (2020: 100,000); none: one fall over all steps."""
    factor: float | None = Field(None, gt=0, lt=1)
    """Step, exponential, plateau: what the learning rate is multiplied by."""
    every: int = Field(1, ge=1)
    """Step: epochs between two reductions."""
    min_lr: float = Field(0.0, ge=0)
    """Where cosine and poly end."""
    peak_at: float = Field(0.3, gt=0, lt=1)
    """One-cycle: share of the steps at which the learning rate peaks."""
    div: float = Field(25.0, ge=1)
    """One-cycle: peak over start."""
    final_div: float = Field(1.0e4, ge=1)
    """One-cycle: start over end."""
    patience: int | None = Field(None, ge=1)
    """Plateau: validations without a new best before a reduction."""

    @model_validator(mode="after")
    def _table_belongs_to_piecewise(self):
        if (self.kind == "piecewise") != (self.table is not None):
            raise ValueError("kind: piecewise needs a table, and only piecewise takes one")
        if self.table is not None and 0 not in self.table:
            raise ValueError("table: expected an entry for epoch 0")
        if self.factors is not None and (min(self.factors, default=0) < 1 or min(self.factors.values()) < 0):
            raise ValueError(f"factors: expected epoch -> share of the learning rate, from epoch 1 on and at least 0, "
                             f"got {self.factors}")  # fmt: skip
        if self.kind == "one_cycle" and self.warmup_epochs:
            raise ValueError("kind: one_cycle rises by itself; leave warmup_epochs out and use peak_at")
        if (self.kind == "multistep") != (self.factors is not None):
            raise ValueError("kind: multistep needs factors, and only multistep takes them")
        if (self.kind in ("step", "exponential", "plateau")) != (self.factor is not None):
            raise ValueError("kind: step, exponential and plateau need a factor, and only these take one")
        if self.period is not None and self.kind != "poly":
            raise ValueError("period: only kind poly takes one")
        if (self.kind == "plateau") != (self.patience is not None):
            raise ValueError("kind: plateau needs a patience, and only plateau takes one")
        return self


class Mix(Section):
    """Mixing of the samples of a batch; with both alphas a batch is mixed one way or the other."""

    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup (Zhang et al. 2018; the bag of tricks takes 0.2); 0: none."""
    cutmix: float = Field(0.0, ge=0)
    """Alpha of CutMix (Yun et al. 2019); 0: none."""
    probability: float = Field(1.0, ge=0, le=1)
    """Share of batches that are mixed."""


class Distill(Section):
    """Knowledge distillation (Hinton et al. 2015): learn what the networks of another experiment say of the training
    scenes; for fold k those that were trained without fold k too."""

    experiment: ExperimentName
    """Name of the teaching experiment in the same workdir and of the same folds, finished up to stage 04 with
    ``predict.logits: true``."""
    models: tuple[ModelName, ...] | None = Field(None, min_length=1)
    """Its models, whose logits are averaged; none: all of this task that have logits there."""
    weight: float = Field(1.0, gt=0)
    """Weight of the term beside the others."""
    temperature: float = Field(20.0, gt=0)
    """Softens both distributions; the term is multiplied by its square."""


class Pseudo(Section):
    """Pseudo-labels: the unlabelled scenes, as an earlier experiment of the same workdir and folds sees them."""

    experiment: ExperimentName
    """Name of the earlier experiment, finished up to stage 04."""
    models: tuple[ModelName, ...] = Field(min_length=1)
    """Its models; for fold k, their networks of fold k are averaged."""
    ratio: float = Field(2.0, gt=1)
    """A pixel counts where the best class is this many times as probable as the next."""
    share: float = Field(0.3, gt=0, lt=1)
    """Share of the samples that come from these scenes."""


class Start(Section):
    """Start from a network of another experiment in the same workdir, such as one that knows other events."""

    experiment: ExperimentName
    """Name of the other experiment, whose network is trained."""
    model: ModelName
    """Its model."""
    fold: int | None = Field(None, ge=0)
    """The fold of its network; none: the fold that is trained here. A network that was trained on a validation scene
    of this experiment's fold is refused."""

    def fold_for(self, fold: int) -> int:
        """Return the fold of the network from which the training of a fold starts."""
        return fold if self.fold is None else self.fold


class Sampling(Section):
    """Which scenes and which places a network sees."""

    repeat: tuple[str, ...] = ()
    """Scenes with these flags enter the list once more each (2020: minor, major, destroyed)."""
    multiplier: int = Field(1, ge=1, le=100_000)
    """The whole list this many times per epoch (2020: data_multiplier)."""
    samples: int | None = Field(None, ge=1, le=100_000_000)
    """Crops per epoch instead of one per list entry."""
    focus: dict[str, Weight] = {}
    """Class name -> weight: crops show a random component of a class drawn by these weights."""
    focus_first: Literal["scene", "class"] = "scene"
    """Take the next scene and then a class it holds, or draw the class first and then a scene that holds it."""
    focus_probability: float = Field(0.0, ge=0, le=1)
    """Share of crops that show such a component; the others lie anywhere."""
    sources: dict[str, Weight] = {}
    """Data source of scenes (or their domain) -> how often each of its scenes comes, 1 for sources that are not named;
    the length of an epoch stays as it is. 0: never."""
    balance: bool = False
    """Labels: draw the class first, so that every class comes equally often."""
    scale: tuple[float, float] | None = None
    """The window's side as a multiple of ``crop`` before it is resized to ``crop``; none: as the preset says."""

    @model_validator(mode="after")
    def _scale_grows(self):
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: expected two numbers above 0, the smaller first, got {list(self.scale)}")
        if self.focus and not any(self.focus.values()):
            raise ValueError("focus: expected a weight above 0")
        return self


class Train(Section):
    """How one network is trained on one fold."""

    epochs: int = Field(ge=1, le=100_000)
    """Passes over the list of crops."""
    batch_size: int = Field(ge=1, le=100_000)
    """Crops per step over all processes together."""
    accumulate: int = Field(1, ge=1)
    """Each step is computed in this many equal parts."""
    crop: int = Field(ge=32, le=16_384)
    """Side of a training crop in pixels."""
    augment: str = "light"
    """Preset of ``lib/scenes/augment.py``."""
    colour: Literal["shared", "per_image"] | None = None
    """Same colour jitter for all images of a scene, or one each; none: as the preset says."""
    sampling: Sampling = Sampling()
    """Repetition and placement of crops."""
    mix: Mix = Mix()
    """Mixup and CutMix."""
    distill: Distill | None = None
    """Learn from another experiment's networks too."""
    pseudo: Pseudo | None = None
    """Learn from unlabelled scenes too."""
    loss: Loss
    """The weighted loss terms."""
    auxiliary: dict[str, Auxiliary] = {}
    """Further tasks of the competition, by name, that the same encoder learns; none is predicted."""
    optimizer: Optimizer
    """Who moves the weights."""
    schedule: Schedule = Schedule()
    """How the learning rate goes."""
    freeze_encoder_epochs: int = Field(0, ge=0)
    """The encoder stands still for the first epochs."""
    freeze_norms: bool = True
    """So do its norm statistics; false: they move with what a frozen encoder sees, as in 2020."""
    clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of the exponential moving average; validation and the checkpoint use the average."""
    swa_from: int | None = Field(None, ge=0)
    """Stochastic weight averaging: the equal mean of the weights at the ends of the epochs after this one, its norm
    statistics estimated anew; validation and the checkpoint use it."""
    swa_batches: int = Field(50, ge=1)
    """Batches for these statistics."""
    init: Literal["default", "xavier"] = "default"
    """Start without pretrained weights: as the library has it, or Xavier uniform."""
    zero_gamma: bool | None = None
    """Start the last norm of every residual block at zero, so that the block passes its input on; false: at one; none:
    as the library has it. Without pretrained weights only."""
    precision: Precision = "float32"
    """Arithmetic of the forward pass; float16 scales the loss."""
    cpu_precision: Precision = "bfloat16"
    """What ``precision: float16`` becomes on a CPU, where true float16 is very slow."""
    max_skipped_steps: int = Field(30, ge=1, le=100_000)
    """Steps in a row that float16 may skip because a loss or a gradient is not finite; then the run stops. The scale of
    the loss is halved at each, so a scale that was only too large is right long before."""
    tf32: bool = False
    """Allow TF32 matrix products on CUDA under float32."""
    channels_last: bool = True
    """Memory format of images and weights."""
    deterministic: bool = True
    """On a GPU: the same algorithms every time, so the same inputs give the same results; false: cuDNN times its
    algorithms and takes the fastest."""
    compile: bool = False
    """Train what torch.compile makes of the network: minutes at the start, faster steps on a GPU from there on."""
    validate_every: int = Field(1, ge=1)
    """Epochs between validations; the last epoch is always validated."""
    select: Literal["score", "dice2020", "argmax", "last"] = "score"
    """Which epoch is kept: best by the stage's own score; by the mean of each image's Dice, as in 2020, or the score
    with a perfect answer to the other tasks; by the score of its argmax alone, where the foreground it calls is the
    answer to the other tasks, as in 2020; or the last."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many validations without a new best."""
    init_from: str | Start | None = None
    """Start from this model's checkpoint of the same fold (1st place: damage nets start from localization), or from a
    network of another experiment."""
    localization: str | None = None
    """Damage nets: the localization model whose out-of-fold masks enter the selection score; none: oracle masks."""
    workers: int = Field(0, ge=0, le=1000)
    """Loader processes."""
    cache: Literal["memory", "disk", "none"] = "memory"
    """Keep decoded training scenes in memory or, at the size that the network sees, in files of the workdir of which a
    crop reads its window; or read the images again for every crop."""
    save_minutes: float = Field(10.0, gt=0)
    """Longest time between two saves of the resumable state."""


class Model(Section):
    """A named network: what it is, how it is trained, what it counts for in the ensemble."""

    task: str
    """Role in the competition: loc (stage 02) or cls (stage 03)."""
    network: Network
    """What the network is."""
    view: View = View()
    """At which size it sees a scene."""
    train: Train
    """How it is trained."""
    folds: tuple[int, ...] | None = None
    """Folds it is trained on; none: all. []: it is left out."""
    seed: Seed | None = None
    """Seed of its training; none: the experiment's."""
    pad: int = Field(0, ge=0, le=1024)
    """Pixels that a scene is mirrored outward on each side before stage 04 predicts it (2020: 16 for the DPN)."""
    precision: Precision | None = None
    """Arithmetic of its predictions, in validation and in stage 04; none: float32 where the competition says that the
    task must be predicted in float32, else ``predict.precision``."""
    weight: float = Field(1.0, gt=0, le=1_000_000)
    """Weight in the average over models of its task."""


class Predict(Section):
    """How checkpoints look at scenes in stage 04."""

    precision: Precision = "bfloat16"
    """Arithmetic of all models that state no ``precision`` of their own, but for tasks that must be predicted in
    float32; float16 becomes bfloat16 on a CPU."""
    tf32: bool = False
    """Allow TF32 matrix products and convolutions on CUDA under float32."""
    compile: bool = False
    """Compile networks with ``torch.compile`` in stage 04: slow to begin, faster from then on, and answers that differ
    from the plain ones in the last digits. It needs a C++ compiler; a kernel leaves it off."""
    tta: Views | tuple[Views, ...] = "flips"
    """Views that are predicted, undone and averaged as probabilities: one set, or several, from the smallest to the
    largest, of which stage 05 chooses out of fold (all are predicted in one go, at the price of the largest)."""
    tile: int = Field(1024, ge=32, le=16_384)
    """Largest window a network sees at once."""
    overlap: float = Field(0.25, ge=0, lt=1)
    """Share of a window that its neighbour sees too."""
    scales: tuple[Annotated[float, Field(gt=0, le=16)], ...] = Field((1.0,), min_length=1)
    """Multiples of the view's size whose probabilities are averaged."""
    truncate: bool = False
    """Cut probabilities to uint8 as the 2020 code did, instead of rounding."""
    logits: bool = False
    """Keep what each network says of the scenes that it was trained on too, for students (``train.distill``): float16,
    about 1.3 bytes per class and pixel."""
    fallback: float | None = Field(None, ge=0, le=1)
    """Probability that every class gets for a scene that cannot be read or predicted; none: the stage stops (in a
    kernel, where nothing may stop the rest, it is 0)."""
    workers: int | None = Field(None, ge=1, le=1000)
    """Processes that share the scenes, each with as many threads as one alone has; none: one per GPU, or one on the
    CPU. More than GPUs let one read scenes while another predicts."""
    budget_minutes: float | None = Field(None, gt=0)
    """Time that a kernel has from its start to its end; it leaves out views, models and folds to keep to it."""

    @model_validator(mode="after")
    def _sets_of_views_grow(self):
        order = ["none", "hflip", "flips", "d4"]
        if list(self.tta_sets) != [name for name in order if name in self.tta_sets] or not self.tta_sets:
            raise ValueError(f"tta: expected one or several of {', '.join(order)}, in this order")
        return self

    @property
    def tta_sets(self) -> tuple[str, ...]:
        """Return the sets of views, the largest last."""
        return (self.tta,) if isinstance(self.tta, str) else self.tta


class Blend(Section):
    """How models and folds are averaged in stage 05."""

    scenes: Literal["equal", "common"] = "equal"
    """Which out-of-fold scenes count: all, which every model must have predicted; or those that every model has, where
    models are trained on different folds."""
    truncate: bool = False
    """Cut the average to uint8 as the 2020 code did, instead of rounding."""
    fit: float | None = Field(None, gt=0, le=0.5)
    """Fit the models' weights on out-of-fold scenes, jointly with the search, in steps of this share; none: as given.
    Fuses patch and full-image networks, or any others."""
    select: Literal["greedy"] | None = None
    """Choose the models' weights by greedy selection with replacement (Caruana et al. 2004), for many models."""
    rounds: int = Field(10, ge=1, le=10_000)
    """Rounds of the greedy selection."""
    calibrate: bool = False
    """Give each model the temperature that fits the out-of-fold truth best before it is averaged."""
    crf: dict[str, int | float] | None = None
    """Refine averages by a dense CRF on the scene's first image: options of ``lib/ensemble/crf.py``, {} for its own
    values."""
    choose_crf: bool = False
    """Use the CRF only where out-of-fold scenes score higher with it and no class gets worse."""

    @model_validator(mode="after")
    def _one_choice_of_weights(self):
        if self.fit is not None and self.select is not None:
            raise ValueError("blend: give one of fit and select")
        if self.choose_crf and self.crf is None:
            raise ValueError("blend.choose_crf: needs crf, its options ({} for its own values)")
        if self.choose_crf and self.select is not None:
            raise ValueError("blend: greedy selection goes with a CRF that is on or off, not with choose_crf")
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether averages depend on what decode.json chose."""
        return self.fit is not None or self.select is not None or self.calibrate or self.choose_crf


class Search(Section):
    """The joint search of decode settings on out-of-fold probabilities."""

    axes: dict[str, tuple[float, ...]]
    """Decode setting -> values to try; all combinations are scored."""
    plateau: float = Field(0.002, ge=0)
    """Scores this close to the best count as equal; the point with the flattest surroundings wins."""
    postprocess: tuple[tuple[dict[str, Any], ...], ...] = ()
    """Chains of post-processing steps to try; each is kept only where the score rises and no class gets worse."""
    per_domain: bool = False
    """Choose the settings for each domain (organ, source) apart where that is expected to be better."""
    choose: Literal["plateau", "median"] = "plateau"
    """What is used of the best points: the flattest, or, axis by axis, the median of what wins on scenes drawn anew."""
    unseen: dict[str, Any] = {}
    """Settings for domains that no labelled scene shows, such as {threshold: otsu}; kept only where domains that are
    held out score higher with them."""

    @model_validator(mode="after")
    def _medians_are_of_all_domains(self):
        if self.choose == "median" and self.per_domain:
            raise ValueError("search.choose: median goes with one setting for all domains")
        return self


class Asks(Section):
    """What a unit needs of the machine that it runs on; Dask workers offer it as ``--resources "GPU=1 MEMORY=64"``."""

    gpus: int = Field(0, ge=0)
    """GPUs (``GPU``); at 0 a unit runs wherever a worker is free, on whatever that worker sees."""
    memory: float = Field(0.0, ge=0)
    """Memory of the host in GiB (``MEMORY``)."""


class Cluster(Section):
    """How ``python -m lib.cluster`` runs the units of the stages. No result depends on it."""

    asks: dict[UnitKind, Asks] = {}
    """What the units of stage 01, of stages 02 and 03, and of stages 04, 05 and 06 ask for; none: nothing."""
    retries: int = Field(3, ge=0)
    """How often a unit is started again that ended by no fault of its user: a node that was lost, a process killed."""
    part: int = Field(64, ge=0)
    """A free worker helps with a prediction that has at least so many scenes left for each that works on it; 0: none
    helps, nor counts scenes for stage 05."""
    threads: int | None = Field(None, ge=1)
    """Threads that each unit computes with; none: as many as a stage that is started by hand where lib.cluster runs.
    Sums of convolutions on a CPU depend on it in their last digits."""


class Experiment(Section):
    """One experiment: everything that decides its results."""

    name: ExperimentName
    """Folder of the experiment in the workdir."""
    seed: Seed = 0
    """Seed of every random choice but the split."""
    competition: str
    """File of ``lib/competitions/``."""
    data: Data
    """Where the files are."""
    folds: Folds = Folds()
    """How scenes are split."""
    models: dict[ModelName, Model]
    """The networks, by name."""
    predict: Predict = Predict()
    """How checkpoints look at scenes."""
    blend: Blend = Blend()
    """How probabilities are averaged."""
    decode: dict[str, Any] = {}
    """Decode settings that are fixed, instead of the competition's defaults."""
    search: Search | None = None
    """Search the decode settings on out-of-fold scenes; none: use the fixed ones."""
    reference: Reference | None = None
    """Scores that the source of this experiment reports; printed beside ours, used nowhere."""
    cluster: Cluster = Cluster()
    """How many machines share the work."""
    track: tuple[TrackerName, ...] = ()
    """What shows trainings beside their log, each an optional package (requirements-track.txt): tensorboard, wandb
    (kept offline unless WANDB_MODE says otherwise), mlflow. No result depends on it."""

    def predict_of(self, model: Model, tasks: Mapping[str, Task]) -> Predict:
        """Return how the networks of a model look at scenes: ``predict`` with the precision of this model.

        The model's own ``precision`` if it states one, else float32 for a task that is promised it, else that of
        ``predict``. tasks: role -> task, those of the competition.
        """
        promised = model.task in tasks and tasks[model.task].float32
        precision = model.precision or ("float32" if promised else self.predict.precision)
        return self.predict.model_copy(update={"precision": precision})

    @property
    def averages_are_fitted(self) -> bool:
        """Whether the averages of stage 05 depend on what decode.json chose."""
        return self.blend.is_fitted or len(self.predict.tta_sets) > 1

    @field_validator("models")
    @classmethod
    def _without_those_left_out(cls, models: dict[str, Model]) -> dict[str, Model]:
        return {name: model for name, model in models.items() if model.folds != ()}

    def seed_of(self, model: Model) -> int:
        """Return the seed with which ``model`` is trained."""
        return self.seed if model.seed is None else model.seed

    def folds_of(self, model: Model) -> tuple[int, ...]:
        """Return the folds ``model`` is trained on."""
        return tuple(range(self.folds.n)) if model.folds is None else model.folds

    def contradictions(self) -> list[str]:
        """Return one sentence per fault that no section can see alone; empty where the file itself is in order.

        Such are references from model to model, and settings of different sections that do not go together.
        """
        faults = [] if self.models else ["models: expected at least one network, got none"]
        if self.blend.select is not None and len(self.predict.tta_sets) > 1:
            faults.append("blend.select: greedy selection goes with one set of views in predict.tta")
        for name, model in self.models.items():
            for field in ("distill", "pseudo", "init_from"):
                asked = getattr(model.train, field)
                if isinstance(asked, Distill | Pseudo | Start) and asked.experiment == self.name:
                    faults.append(
                        f"models.{name}.train.{field}.experiment: expected another experiment than this one, got "
                        f"{self.name!r}"
                    )
            faults += [f"models.{name}{fault}" for fault in (*self._bad_references(name, model), *_at_odds(model))]
            if bad := [k for k in self.folds_of(model) if not 0 <= k < self.folds.n]:
                faults.append(f"models.{name}.folds: expected folds of 0..{self.folds.n - 1}, got {bad}")
        return faults

    def _bad_references(self, name: str, model: Model) -> Iterator[str]:
        for field, task in (("init_from", None), ("localization", "loc")):
            other = getattr(model.train, field)
            if other is None or isinstance(other, Start):
                continue
            if other not in self.models or other == name:
                near = did_you_mean(other, self.models.keys() - {name})
                yield f".train.{field}: no other model is called {other!r}{near}"
            elif task and self.models[other].task != task:
                yield f".train.{field}: {other!r} is not a {task} model"
            elif not set(self.folds_of(model)) & set(range(self.folds.n)) <= set(self.folds_of(self.models[other])):
                yield f".train.{field}: {other!r} is not trained on every fold of {name!r}"


def _at_odds(model: Model) -> Iterator[str]:
    """Yield which settings of one model do not go together."""
    options, train = model.network.options, model.train
    if bool(options.get("boundary")) != bool(train.loss.terms.get(BOUNDARY)):
        yield f": network.options.boundary and the loss term {BOUNDARY} go together"
    yield from _query_faults(model)
    if options.get("aux_head") and not train.loss.aux_weight:
        yield ".train.loss.aux_weight: network.options.aux_head learns nothing at 0"
    if options.get("deep_supervision") and not train.loss.deep_weight:
        yield ".train.loss.deep_weight: the heads of network.options.deep_supervision learn nothing at 0"
    if "auxiliary" in options:
        yield ".network.options.auxiliary: follows from train.auxiliary; set it there"
    if train.auxiliary and train.pseudo:
        yield ".train: choose one of auxiliary and pseudo: pseudo-labels are of one task"
    started = train.init != "default" or train.zero_gamma is not None
    if started and (model.network.encoder_weights != "none" or train.init_from):
        yield ".train: init and zero_gamma are for networks without pretrained weights"
    if train.distill and train.pseudo:
        yield ".train: choose one of distill and pseudo: no teacher knows unlabelled scenes"
    if train.swa_from is not None and train.ema:
        yield ".train: choose one of ema and swa_from"
    if train.batch_size % train.accumulate:
        yield f".train.batch_size: expected a multiple of accumulate, got {train.batch_size} and {train.accumulate}"
    folds = list(model.folds or ())
    if len(set(folds)) < len(folds):
        yield f".folds: expected each fold once, got {folds}"


def _query_faults(model: Model) -> Iterator[str]:
    """Yield what of the loss does not fit a network with queries, or one without."""
    terms = model.train.loss.terms
    if model.network.architecture != "maskformer":
        if wrong := [name for name in QUERY if name in terms]:
            yield f".train.loss.terms: {', '.join(wrong)} match the queries of architecture maskformer; leave them out"
    elif not (set(QUERY) <= terms.keys() and terms["query_class"] and (terms["query_bce"] or terms["query_dice"])):
        yield (
            ".train.loss.terms: architecture maskformer learns by query_class and query_bce or query_dice, all three "
            f"named (its paper: query_class 2, query_bce 5, query_dice 5), got {terms}"
        )


def plain(section: BaseModel) -> dict[str, Any]:
    """Return what a section sets, as JSON-ready values for fingerprints: only values other than the default.

    So a field that a later version adds makes nothing stale. A default is never changed: a new meaning is a new field.
    """
    return section.model_dump(mode="json", exclude_defaults=True)
