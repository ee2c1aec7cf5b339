"""The loss that every decoder learns by."""

from __future__ import annotations

import torch

from captioner.models.parts.loss import token_loss


def test_the_mean_over_labels_that_count():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 4, -100], [0, -100, -100]])
    log_probs = logits.log_softmax(-1)
    expected = -(log_probs[0, 0, 1] + log_probs[0, 1, 4] + log_probs[1, 0, 0]) / 3
    torch.testing.assert_close(token_loss(logits, labels), expected)


def test_half_precision_is_summed_in_single():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([[1, 4, 2], [0, 3, -100]])
    loss = token_loss(logits, labels, smoothing=0.1)
    assert loss.dtype == torch.float32
    assert loss == token_loss(logits.float(), labels, smoothing=0.1)
    assert loss != token_loss(logits.float(), labels)
