"""OFA: one sequence-to-sequence model, asked a question about a picture. Wang et al. 2022, arXiv:2202.03052.

The encoder reads picture and question together, so the question is part of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import Seq2SeqLMOutput

from captioner.models.ofa.config import OFAConfig
from captioner.models.ofa.decoder import Decoder, Memory
from captioner.models.ofa.encoder import Encoder
from captioner.models.parts.attention import TextCache
from captioner.models.parts.loss import token_loss
from captioner.models.parts.narrow import narrowed


class OFA(PreTrainedModel):
    """The published weights under their published names."""

    config: OFAConfig
    config_class = OFAConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {  # noqa: RUF012
        "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
        "decoder.output_projection.weight": "encoder.embed_tokens.weight",
    }
    _keys_to_ignore_on_load_unexpected = [r"_rp_bucket$", r"image_position_idx$"]  # noqa: RUF012  (constants)

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.question = [narrowed(config.bos_token_id, int), narrowed(config.eos_token_id, int)]
        """What is asked where nothing else is: token ids, start and end among them. `processor_for` sets them."""
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def encode(self, pixels: Tensor, question: Sequence[int] | None = None) -> Tensor:
        """Pixels → the encoder's states of picture and question `[n, regions + words, width]`."""
        ids = torch.tensor([list(question or self.question)], device=pixels.device).expand(len(pixels), -1)
        return self.encoder(pixels, ids)

    def remember(self, features: Tensor, question: Sequence[int] | None = None) -> Memory:
        """Keys and values for the decoder."""
        words = len(question or self.question)
        side = math.isqrt(features.shape[1] - words)
        positions = self.encoder.positions((side, side), words)
        return self.decoder.remember(features.to(positions.dtype), positions)

    def read(self, pixels: Tensor, question: Sequence[int] | None = None) -> Memory:
        """Pixels → memory."""
        return self.remember(self.encode(pixels, question), question)

    def step(self, tokens: Tensor, memory: Memory, past: TextCache | None) -> tuple[Tensor, TextCache]:
        """Read more text: logits after the last token `[rows, vocabulary]`, and the text's keys and values."""
        past = past or self.decoder.begin(len(tokens))
        states = self.decoder(tokens, memory, past)
        return self.decoder.output_projection(states[:, -1]), past

    def forward(
        self,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Seq2SeqLMOutput:
        """Teacher forcing. Padding stands at the end, so that the labels alone mask it."""
        memory = self.read(narrowed(pixel_values, Tensor)) if features is None else self.remember(features)
        states = self.decoder(input_ids, memory)
        logits = self.decoder.output_projection(states)  # [B, T, vocabulary]
        loss = None if labels is None else token_loss(logits[:, :-1], labels[:, 1:])
        return Seq2SeqLMOutput(loss=loss, logits=logits)

    @torch.inference_mode()
    def look(self, pixels: Tensor, ids: Sequence[int], question: Sequence[int] | None = None) -> Tensor:
        """Where in one picture `[1, 3, h, w]` the model looks to write what follows each id: `[ids, rows, columns]`.
        Cross-attention averaged over layers and heads; the question's share is left out."""
        memory = self.read(pixels, question)
        watched: list[Tensor] = []
        self.decoder(torch.tensor([list(ids)], device=self.device), memory, watched=watched)
        of_regions = torch.stack(watched).mean((0, 1, 2))[:, : -len(question or self.question)]  # [ids, regions]
        return of_regions.unflatten(1, (math.isqrt(of_regions.shape[1]), -1))
