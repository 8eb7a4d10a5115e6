"""What an epoch gave, and what follows from all of them: which was best, and whether to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xray_opt.metrics import Scores


@dataclass(frozen=True)
class Epoch:
    """One pass over the training films.

    Attributes:
        number: counted from 1.
        train_loss: mean focal loss of the augmented training films, as the weights changed.
        val_loss, val: mean focal loss and scores at 0.5 of the validation films, in fp32 after the pass.
        learning_rate: used in this epoch.
        seconds: wall time of training and validation.
        is_best: best epoch so far.
        images_per_second: training films a second, validation not counted.
    """

    number: int
    train_loss: float
    val_loss: float
    val: Scores
    learning_rate: float
    seconds: float
    is_best: bool
    images_per_second: float

    def plain(self) -> dict[str, Any]:
        """Nested dict of numbers, for a checkpoint; :meth:`from_plain` reads it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Epoch:
        """The epoch that :meth:`plain` wrote."""
        return cls(**values | {"val": Scores(**values["val"])})


def beats(val_f1: float, val_loss: float, epochs: Sequence[Epoch]) -> bool:
    """Whether an epoch with these values is the best after ``epochs``: higher F1, or equal F1 and lower loss."""
    return all((val_f1, -val_loss) > (past.val.f1, -past.val_loss) for past in epochs)


def stale(epochs: Sequence[Epoch]) -> int:
    """Epochs since validation F1 last rose; a lower loss at equal F1 does not count, here and for the plateau."""
    highest = max((epoch.val.f1 for epoch in epochs), default=0.0)
    first = next((epoch.number for epoch in epochs if epoch.val.f1 == highest), 0)
    return len(epochs) - first
