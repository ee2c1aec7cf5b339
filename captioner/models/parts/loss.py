"""What every decoder here learns by."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def token_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy over all labels but -100, in float32 whatever the model computes in.

    Logits `[B, T, vocabulary]` stand beside the labels `[B, T]` that they predict: the caller shifts them.
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=smoothing)
