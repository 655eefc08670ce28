"""Which epoch of a training is kept: the one that does best on validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.metrics import balanced_accuracy, confusion_matrix
from histomae.learn.probe import log_loss

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = np.ndarray[Any, Any]


class BestEpoch:
    """Keeps the weights of the best epoch so far.

    The higher balanced accuracy wins; of two that reach the same, the lower log loss;
    of two of the same loss the earlier one.

    Parameters
    ----------
    labels
        int (M,), of what is validated on; empty: the last epoch is kept.
    """

    def __init__(self, labels: Array) -> None:
        self._labels = labels
        self._best: tuple[float, float] | None = None
        self._weights: dict[str, Tensor] = {}
        self.epoch = 0

    def look(self, model: nn.Module, logits: Array, epoch: int) -> bool:
        """Keep the weights if no epoch did better; tell whether it did so.

        ``logits`` (M, K) are those of the model on validation after ``epoch``.
        """
        if not len(self._labels):
            self.epoch = epoch
            return True
        kinds = logits.shape[1]
        confusion = confusion_matrix(self._labels, logits.argmax(1), num_classes=kinds)
        loss = log_loss(np.asarray(logits, float), self._labels)
        reached = float(balanced_accuracy(confusion)), -loss
        if self._best is not None and not reached > self._best:
            return False
        self._best, self.epoch = reached, epoch
        self._weights = {
            name: tensor.detach().cpu().clone()
            for name, tensor in model.state_dict().items()
        }
        return True

    def restore(self, model: nn.Module) -> None:
        """Give a model the weights that were kept."""
        if self._weights:
            model.load_state_dict(self._weights)
