"""Serve training samples: which scene comes when, where its crop lies, and the batch of every rank.

A dataset is an endless stream of samples, ``dataset[0], dataset[1], ...``. Sample i is a function of (seed, i) alone,
so the stream is the same for any number of workers and ranks, and after a resume. Each round through ``order`` is a
new permutation. An epoch is a stretch of the stream, and ``BatchSampler`` deals it out.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from lib.competitions.contract import Scene
from lib.config.sections import Sampling
from lib.errors import ConfigError, DataError
from lib.run import cores, runtime
from lib.scenes.augment import MASK, Augment, Focus
from lib.tasks import WIDE_IGNORE as NOTHING
from lib.tasks import Task, known

GIB = 1 << 30
ORDER, SAMPLE, BALANCE = 0, 1, 2
"""Names of the random streams: one draws the permutations, one the crops, one the classes and their scenes."""

Images = dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainingSet:
    """What samples are made of; loader processes must be able to pickle its functions."""

    task: Task
    scenes: Sequence[Scene]
    images: Sequence[str]
    """Names of the n images of a sample, stacked in this order."""
    read: Callable[[Scene, str], np.ndarray]
    """(scene, image name) -> (H, W, 3) uint8; of a label's scene, frames (F, H, W, 3) uint8."""
    target: Callable[[Scene], np.ndarray]
    """scene -> (H, W) in the form of the task (``Task.as_target``); a label's is (1, 1)."""
    order: Sequence[int] | None = None
    """Scene indices of one round, with repetitions (``repeat_scenes``); none: each once."""
    weights: Sequence[float] | None = None
    """How often each scene comes compared with others (``source_weights``); none: all alike."""
    teacher: Callable[[Scene], np.ndarray] | None = None
    """scene -> logits (C, H, W) float16 of another network, at the size of its target; of a label (C, 1, F)."""
    auxiliary: Mapping[str, tuple[Task, Callable[[Scene], np.ndarray]]] = field(default_factory=dict)
    """Further tasks by name, each with scene -> its target, (H, W) uint8 like the other."""
    spots: Callable[[Scene], np.ndarray] | None = None
    """scene -> its ``spots_of`` all values that a focus may have; none: they are found in the target."""


def repeat_scenes(strata: Sequence[Mapping[str, bool]], repeat: Sequence[str] = (), multiplier: int = 1) -> list[int]:
    """List scene indices, each once and once more per flag of ``repeat`` that it has, all ``multiplier`` times.

    With repeat = minor, major, destroyed this is the training list of the xView2 2nd place. Raises ConfigError for a
    flag that the scenes do not know.
    """
    order = list(range(len(strata)))
    for flag in repeat:
        if strata and flag not in strata[0]:
            raise ConfigError(f"repeat: expected flags among {', '.join(strata[0])}, got {flag!r}")
        order += [index for index, flags in enumerate(strata) if flags[flag]]
    return order * multiplier


def source_weights(scenes: Sequence[Scene], weights: Mapping[str, float], order: Sequence[int]) -> list[float] | None:
    """Return how often each scene comes by the weight of its data source; over ``order`` their mean is 1.

    So scenes that are added to the round (pseudo-labelled ones, of weight 1) keep their share of it. None where no
    weight is stated. DataError where no scene of ``order`` has a weight above 0.
    """
    if not weights:
        return None
    found = np.array([weights.get(scene.data_source, 1.0) for scene in scenes])
    mean = found[np.asarray(order)].mean()
    if not mean > 0:
        raise DataError("sampling.sources: expected training scenes with a weight above 0, got none; check the folds")
    return (found / mean).tolist()


def focus_values(task: Task, focus: Mapping[str, float]) -> dict[int, float]:
    """Turn class name -> weight into target value -> weight (multilabel: where the class is alone).

    Raises ConfigError for a class the task does not have.
    """
    unknown = [name for name in focus if name not in task.classes]
    if unknown:
        raise ConfigError(f"focus: expected classes among {', '.join(task.classes)}, got {', '.join(unknown)}")
    value_of = {"binary": lambda i: i + 1, "multiclass": lambda i: i, "multilabel": lambda i: 1 << i}[task.kind]
    return {value_of(task.classes.index(name)): float(weight) for name, weight in focus.items()}


def components(mask: np.ndarray, value: int) -> list[Focus]:
    """Find the connected components (8 neighbours) of ``mask == value``: box and a pixel that is truly in it."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        (mask == value).view(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    found = []
    for label in range(1, count):
        left, top, width, height, _ = stats[label].tolist()
        row = top + height // 2  # a connected component crosses every row of its box
        columns = np.flatnonzero(labels[row, left : left + width] == label)
        found.append(Focus((top, left, top + height, left + width), (row, left + int(columns[len(columns) // 2]))))
    return found


def spots_of(mask: np.ndarray, values: Iterable[int]) -> np.ndarray:
    """List the components of each value: (N, 7) int32, the value and what ``Focus`` holds, box and point."""
    rows = [(value, *spot.box, *spot.point) for value in values for spot in components(mask, value)]
    return np.array(rows, np.int32).reshape(-1, 7)


class SampleStream(Dataset):
    """An endless stream of samples {"image", "target", "id", "seconds"}: which scene comes when.

    seconds: (2,) float64, what reading and augmenting the sample took.

    ``sampling.samples`` is the length of an epoch where it is not one round. With weights, a scene comes as often as
    its weight says: in each round the whole part of what that is in a round, and the rest with its probability.
    cache: "memory" decodes all scenes at once, before workers are forked, which then share them; otherwise they are
    asked for each time (``lib.training.cache`` keeps them on disk). A teacher adds {"teacher": logits float16},
    (C, h, w) cut like the target, of a label (C, 1, 1). A subclass says what ``decode`` and ``sample`` are.
    OpenCV is set to one thread: samples are made in parallel, not their pixels.
    """

    def __init__(self, data: TrainingSet, augment: Augment, sampling: Sampling, seed: int, cache: str = "none"):
        if not data.scenes:
            raise DataError("training scenes: expected at least one, got none; check the folds")
        cv2.setNumThreads(1)  # here and not in a forked worker, which would wait forever for threads it did not inherit
        self.data, self.augment, self.sampling, self.seed = data, augment, sampling, seed
        self.scenes, self.images = data.scenes, tuple(data.images)
        self.order = np.arange(len(self.scenes)) if data.order is None else np.asarray(data.order)
        self.weights = None if data.weights is None else np.asarray(data.weights, np.float64)
        if self.weights is not None:
            self.order = self.order[self.weights[self.order] > 0]
        self.decoded = self.decode_all() if cache == "memory" else None
        self.rounds: dict[tuple[int, ...], tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.sampling.samples or len(self.order)

    def decode(self, scene: Scene) -> tuple[Images, np.ndarray]:
        """Read images and target of a scene."""
        raise NotImplementedError

    def decode_all(self) -> list[tuple[Images, np.ndarray]]:
        """Read images and targets of all scenes. ConfigError as soon as it is plain that memory has no room for them.

        Each process of torchrun on this machine keeps its own.
        """
        kept, size, processes = [], 0, runtime.local_processes()
        for number, scene in enumerate(self.scenes, 1):
            images, target = self.decode(scene)
            kept.append((images, target))
            size += target.nbytes + sum(image.nbytes for image in images.values())
            if number & (number - 1) == 0:  # 1, 2, 4, 8, ...: scenes may differ in size
                left, free = size / number * (len(self.scenes) - number), cores.free_memory() / processes
                if left > free:
                    needed, each = size / number * len(self.scenes) / GIB, " for each process" * (processes > 1)
                    raise ConfigError(
                        f"train.cache: memory needs about {needed:.2f} GiB{each} for {len(self.scenes)} scenes, and "
                        f"{free / GIB:.2f} GiB are free{each}; set train.cache: disk"
                    )
        return kept

    def images_of(self, index: int) -> tuple[Images, np.ndarray]:
        """Return images and target of the scene at ``index``, from memory or from disk."""
        return self.decoded[index] if self.decoded else self.decode(self.scenes[index])

    def scene_of(self, sample: int) -> int:
        """Return the index of the scene that a sample of the stream is cut from."""
        return self.deal((ORDER,), self.order, sample)

    def deal(self, stream: tuple[int, ...], entries: Sequence[int] | np.ndarray, number: int) -> int:
        """Return entry ``number`` of endless rounds through ``entries``, each round newly drawn."""
        round_, position = divmod(number, len(entries))
        if self.rounds.get(stream, (-1,))[0] != round_:
            self.rounds[stream] = round_, self.draw_round(np.random.default_rng((self.seed, *stream, round_)), entries)
        return int(self.rounds[stream][1][position])

    def draw_round(self, rng: np.random.Generator, entries: Sequence[int] | np.ndarray) -> np.ndarray:
        """Shuffle entries; with weights, first draw as many by systematic sampling (Madow 1949) from the shuffled."""
        shuffled = rng.permutation(entries)
        if self.weights is None:
            return shuffled
        ends = np.cumsum(self.weights[shuffled])
        places = (np.arange(len(shuffled)) + rng.random()) * ends[-1] / len(shuffled)
        drawn = np.searchsorted(ends, places, side="right").clip(max=len(shuffled) - 1)  # rounding at the very end
        return rng.permutation(shuffled[drawn])

    def stack(self, images: Mapping[str, np.ndarray], names: Sequence[str]) -> torch.Tensor:
        """Stack named images (h, w, 3) or planes (h, w) as one tensor (channels of all, h, w) of their type."""
        first = images[names[0]]
        channels = first.shape[2] if first.ndim == 3 else 1
        stacked = np.empty((len(names) * channels, *first.shape[:2]), first.dtype)
        for number, name in enumerate(names):
            cv2.split(images[name], list(stacked[number * channels : (number + 1) * channels]))
        return torch.from_numpy(stacked)

    @staticmethod
    def seconds(*times: float) -> torch.Tensor:
        """Return the seconds between successive times of ``time.perf_counter``."""
        return torch.from_numpy(np.diff(times))

    def teach(self, scene: Scene, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """Return the teacher's logits of a scene, a plane (H, W) per channel. DataError where they are not of shape."""
        if self.data.teacher is None:
            return {}
        logits = self.data.teacher(scene)
        if logits.ndim != 3 or logits.shape[1:] != shape or logits.dtype != np.float16:
            raise DataError(
                f"scene {scene.id}, teacher: expected logits float16 (C, {shape[0]}, {shape[1]}), got "
                f"{logits.dtype} {logits.shape}"
            )
        return {f"teacher {channel}": plane for channel, plane in enumerate(logits)}


class FrameDataset(SampleStream):
    """Serve augmented frames with their label: {"image": (3n, h, w) uint8, "target": (1, 1) uint8 or int32, "id": str}.

    A sample is one frame, each equally likely. ``sampling.balance``: draw the class first and then a scene of it, so
    that every class comes equally often: each once in every round of as many samples as there are classes, its scenes
    in turn as ``order`` has them, newly shuffled each time through; scenes without a label never come.
    """

    def __init__(self, data: TrainingSet, augment: Augment, sampling: Sampling, seed: int, cache: str = "none"):
        super().__init__(data, augment, sampling, seed, cache)
        self.members = self.find_members() if sampling.balance else {}

    def __getitem__(self, sample: int) -> dict[str, torch.Tensor | str]:
        """Return sample 0, 1, 2, ... of the stream; it does not end at ``len``."""
        began = time.perf_counter()
        rng = np.random.default_rng((self.seed, SAMPLE, sample))
        index = self.scene_of(sample)
        frames, target = self.images_of(index)
        read = time.perf_counter()
        k = int(rng.integers(len(frames[self.images[0]])))
        images = {name: frames[name][k] for name in self.images}
        nothing = np.zeros(images[self.images[0]].shape[:2], np.uint8)
        images, _ = self.augment(images, nothing, int(rng.integers(2**63)))
        item: dict[str, torch.Tensor | str] = {
            "image": self.stack(images, self.images),
            "target": torch.from_numpy(target.copy()),
            "id": self.scenes[index].id,
            "seconds": self.seconds(began, read, time.perf_counter()),
        }
        planes = [frames[name][:, k : k + 1] for name in frames if name not in self.images]
        return item | ({"teacher": torch.from_numpy(np.stack(planes))} if planes else {})  # (C, 1, 1)

    def find_members(self) -> dict[int, np.ndarray]:
        """List the entries of ``order`` of each class that occurs."""
        labels = [target for _, target in self.decoded] if self.decoded else map(self.data.target, self.scenes)
        found = np.array([label.item() if known(label).all() else NOTHING for label in labels])[self.order]
        members = {int(value): self.order[found == value] for value in np.unique(found) if value != NOTHING}
        if not members:
            raise DataError("balance: expected training scenes with a label, got none; check the labels")
        return members

    def scene_of(self, sample: int) -> int:
        if not self.members:
            return super().scene_of(sample)
        value = self.deal((BALANCE, 0), list(self.members), sample)
        return self.deal((BALANCE, 1 + value), self.members[value], sample // len(self.members))

    def decode(self, scene: Scene) -> tuple[Images, np.ndarray]:
        frames, target = {name: self.data.read(scene, name) for name in self.images}, self.data.target(scene)
        for name, array in frames.items():
            if array.ndim != 4 or not len(array) or array.shape[-1] != 3 or array.dtype != np.uint8:
                raise DataError(
                    f"scene {scene.id}, image {name}: expected frames (F, H, W, 3) uint8, got "
                    f"{array.dtype} {array.shape}"
                )
        return frames | self.teach(scene, (1, len(frames[self.images[0]]))), target


class CropDataset(SampleStream):
    """Serve augmented crops: {"image": (3n, h, w) uint8, "target": (h, w) uint8, "id": str}.

    With auxiliary tasks the target is (1 + tasks, h, w), the first of the network's own.

    With ``sampling.focus_probability`` a crop shows a component of a class of ``sampling.focus``: the class is drawn by
    weight, and every component of it in the scene is equally likely. ``focus_first: scene`` takes the scene that is
    next in ``order`` and draws among the classes it holds; a scene that holds none gives a random crop. ``class`` draws
    among all classes and then a scene that holds it, by the square root of its number of components, so that rare
    classes come as often as asked.
    Raises DataError, naming the scene, where image and target do not fit together.
    """

    def __init__(self, data: TrainingSet, augment: Augment, sampling: Sampling, seed: int, cache: str = "none"):
        if sampling.balance:
            raise ConfigError("sampling.balance: for labels; masks are balanced by sampling.focus")
        self.focus = focus_values(data.task, sampling.focus)
        self.masks = {f"{MASK}{name}": target for name, (_, target) in data.auxiliary.items()}
        self.spots: dict[int, dict[int, np.ndarray]] = {}
        super().__init__(data, augment, sampling, seed, cache)
        for index, (_, mask) in enumerate(self.decoded or ()):
            self.find_spots(index, mask)
        self.holders = self.find_holders() if sampling.focus_first == "class" else {}

    def __getitem__(self, sample: int) -> dict[str, torch.Tensor | str]:
        """Return sample 0, 1, 2, ... of the stream; it does not end at ``len``."""
        began = time.perf_counter()
        rng = np.random.default_rng((self.seed, SAMPLE, sample))
        focus: Focus | None
        if self.holders and rng.random() < self.sampling.focus_probability:
            index, focus = self.draw_class(rng)
            images, mask = self.images_of(index)
        else:
            index = self.scene_of(sample)
            images, mask = self.images_of(index)
            focus = None if self.holders else self.choose_focus(rng, index, mask)
        read = time.perf_counter()
        planes = [name for name in images if name not in (*self.images, *self.masks)]
        if planes:  # OpenCV moves no half floats
            images = images | {name: images[name].astype(np.float32) for name in planes}
        images, mask = self.augment(images, mask, int(rng.integers(2**63)), focus)
        item: dict[str, torch.Tensor | str] = {
            "image": self.stack(images, self.images),
            "target": torch.from_numpy(mask if not self.masks else np.stack([mask, *(images[n] for n in self.masks)])),
            "id": self.scenes[index].id,
            "seconds": self.seconds(began, read, time.perf_counter()),
        }
        return item | ({"teacher": self.stack(images, planes).half()} if planes else {})

    def find_holders(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """List, for each focus class that occurs at all, the scenes that hold it and how likely each is drawn."""
        counted = []
        for index, scene in enumerate(self.scenes):
            found = self.find_spots(index, self.decoded[index][1] if self.decoded else self.data.target(scene))
            counted.append({value: len(spots) for value, spots in found.items()})
        holders = {}
        for value, weight in self.focus.items():
            counts = np.array([found.get(value, 0) for found in counted], np.float64)
            if self.weights is not None:
                counts *= self.weights**2  # its root is how often a scene comes
            if weight > 0 and counts.any():
                holders[value] = np.flatnonzero(counts), np.sqrt(counts[counts > 0]) / np.sqrt(counts).sum()
        return holders

    def draw_class(self, rng: np.random.Generator) -> tuple[int, Focus]:
        """Draw a class, a scene that holds it and one of its components there."""
        weights = np.array([self.focus[value] for value in self.holders])
        value = int(rng.choice(list(self.holders), p=weights / weights.sum()))
        scenes, chances = self.holders[value]
        index = int(rng.choice(scenes, p=chances))
        spots = (self.spots.get(index) or self.find_spots(index, self.data.target(self.scenes[index])))[value]
        return index, _focus(spots[rng.integers(len(spots))])

    def decode(self, scene: Scene) -> tuple[Images, np.ndarray]:
        images, mask = {name: self.data.read(scene, name) for name in self.images}, self.data.target(scene)
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise DataError(f"scene {scene.id}, target: expected uint8 (H, W), got {mask.dtype} {mask.shape}")
        for name, image in images.items():
            if image.shape != (*mask.shape, 3) or image.dtype != np.uint8:
                raise DataError(
                    f"scene {scene.id}, image {name}: expected uint8 {(*mask.shape, 3)} like its target, "
                    f"got {image.dtype} {image.shape}"
                )
        masks = {name: target(scene) for name, target in self.masks.items()}
        for name, further in masks.items():
            if further.shape != mask.shape or further.dtype != np.uint8:
                raise DataError(
                    f"scene {scene.id}, {name}: expected uint8 {mask.shape} like its target, "
                    f"got {further.dtype} {further.shape}"
                )
        return images | self.teach(scene, mask.shape) | masks, mask

    def find_spots(self, index: int, mask: np.ndarray) -> dict[int, np.ndarray]:
        """Return the components of each focus class that the scene holds, (N, 6) int32, box and point.

        Where no one keeps them they are found in its target ``mask``, once per scene and process.
        """
        if index in self.spots:
            return self.spots[index]
        wanted = [value for value, weight in self.focus.items() if weight > 0]
        table = spots_of(mask, wanted) if self.data.spots is None else self.data.spots(self.scenes[index])
        found = {value: table[table[:, 0] == value, 1:] for value in wanted}
        found = {value: spots for value, spots in found.items() if len(spots)}
        if self.data.spots is None:
            self.spots[index] = found
        return found

    def choose_focus(self, rng: np.random.Generator, index: int, mask: np.ndarray) -> Focus | None:
        """Draw what the crop must show, None for anything."""
        if not self.focus or rng.random() >= self.sampling.focus_probability:
            return None
        spots = self.find_spots(index, mask)
        if not spots:
            return None
        weights = np.array([self.focus[value] for value in spots])
        value = int(rng.choice(list(spots), p=weights / weights.sum()))
        return _focus(spots[value][rng.integers(len(spots[value]))])


def _focus(spot: np.ndarray) -> Focus:
    top, left, bottom, right, row, column = spot.tolist()
    return Focus((top, left, bottom, right), (row, column))


class BatchSampler:
    """Deal the stream of a dataset into batches of sample numbers; call ``set_epoch`` before each epoch.

    An epoch is max(length // batch_size, 1) steps. Nothing is dropped or dealt twice: the next epoch goes on where this
    one ended. batch_size counts all ranks: rank r takes the r-th part of each batch, so the ranks together see what one
    process would. Raises ConfigError when the ranks cannot share a batch evenly.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world: int = 1):
        if batch_size < 1 or batch_size % world:
            raise ConfigError(f"batch size: expected a positive multiple of {world} processes, got {batch_size}")
        self.steps = max(length // batch_size, 1)
        self.batch_size, self.rank, self.share = batch_size, rank, batch_size // world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration deals out."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        return self.stretch(self.epoch, self.epoch + 1)

    def stretch(self, first: int, end: int, done: int = 0) -> Iterator[list[int]]:
        """Deal out the epochs ``first`` .. ``end - 1``, without the ``done`` first batches of the first one."""
        for step in range(first * self.steps + done, end * self.steps):
            number = step * self.batch_size + self.rank * self.share
            yield list(range(number, number + self.share))
