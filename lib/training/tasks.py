"""The loss of a network that learns several tasks at once, each on a branch of its own."""

from collections.abc import Mapping

from torch import Tensor

from lib.config.sections import Train
from lib.models.layers import Outputs
from lib.tasks import Task
from lib.training.losses import Criterion
from lib.training.terms import Reduce


class TasksCriterion:
    """The sum of the losses of all tasks: the network's own, and ``weight`` times that of each auxiliary one.

    ``auxiliary``: task -> its criterion and its weight, in the order of the targets.
    """

    def __init__(self, own: Criterion, auxiliary: Mapping[str, tuple[Criterion, float]]):
        self.own, self.auxiliary = own, auxiliary

    def __call__(
        self,
        outputs: Outputs,
        target: Tensor,
        other: Tensor | None = None,
        lam: float = 1.0,
        teacher: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and, detached, each raw value of the network's own loss and the loss of each other task.

        outputs: with ``tasks``. target, other: (B, 1 + auxiliary, H, W) uint8, the first of the network's own task.
        Otherwise as ``Criterion``.
        """
        columns = zip(target.unbind(1), [None] * target.shape[1] if other is None else other.unbind(1), strict=True)
        total, values = self.own(outputs, *next(columns), lam, teacher)
        for (task, (criterion, weight)), (y, second) in zip(self.auxiliary.items(), columns, strict=True):
            loss, _ = criterion(outputs["tasks"][task], y, second, lam)
            total = total + weight * loss
            values[task] = loss.detach()
        return total, values

    @property
    def weights(self) -> dict[str, float]:
        """Return what each value that a call reports counts in the total, by name."""
        return self.own.weights | {task: weight for task, (_, weight) in self.auxiliary.items()}


def build_criterion(
    task: Task, auxiliary: Mapping[str, Task], train: Train, reduce: Reduce | None
) -> Criterion | TasksCriterion:
    """Build the loss of a training; ``auxiliary`` are the tasks of ``train.auxiliary``."""
    own = Criterion(task.kind, train.loss, train.distill, reduce)
    if not train.auxiliary:
        return own
    return TasksCriterion(own, {
        name: (Criterion(auxiliary[name].kind, asked.loss, None, reduce), asked.weight)
        for name, asked in train.auxiliary.items()
    })  # fmt: skip
