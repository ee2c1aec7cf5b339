"""The decoder in bf16 where the processor has it: stages `language` and `reward` learn in about half the time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.models.prefix.clip_prefix import ClipPrefix


class Quick:
    """A copy of the decoder in bf16, where the processor has it: it computes, the model itself is updated."""

    def __init__(self, model: ClipPrefix) -> None:
        self.model = copy.deepcopy(model)
        if torch.cpu._is_avx512_bf16_supported():
            self.model.bfloat16()
        self.pairs = [
            both
            for mine, its in ((model.mapper, self.model.mapper), (model.gpt, self.model.gpt))
            for both in zip(mine.parameters(), its.parameters(), strict=True)
        ]

    def give_gradients(self) -> None:
        """From the copy to the model."""
        for mine, its in self.pairs:
            mine.grad = None if its.grad is None else its.grad.float()
            its.grad = None

    @torch.no_grad()
    def take_weights(self) -> None:
        """From the model to the copy."""
        torch._foreach_copy_([its for _, its in self.pairs], [mine for mine, _ in self.pairs])


def surprise(model: ClipPrefix, given: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """The negative log-likelihood of each token, 0 where there is none. [n, length]"""
    prefix = model.prefix(given.to(model.dtype))
    hidden = torch.cat((prefix, model.gpt.transformer.wte(tokens[:, :-1].clamp(min=0))), dim=1)
    hidden = hidden + model.gpt.transformer.wpe.weight[: hidden.shape[1]]
    for block in model.gpt.transformer.h:
        heads = block.attn.c_attn(block.ln_1(hidden)).unflatten(2, (3, model.gpt.config.n_head, -1))
        # In float32: torch's backward pass of attention is ten times as slow in bf16.
        query, key, value = heads.permute(2, 0, 3, 1, 4).float()
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + block.attn.c_proj(mixed.to(hidden.dtype).transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.ln_2(hidden))
    there = tokens >= 0
    predicting = model.gpt.transformer.ln_f(hidden[:, prefix.shape[1] - 1 :][there])
    logits = model.gpt.lm_head(predicting).float()
    logits = logits if temperature == 1 else logits / temperature
    of_tokens = F.cross_entropy(logits, tokens[there], reduction="none")
    return of_tokens.new_zeros(tokens.shape).masked_scatter(there, of_tokens)
