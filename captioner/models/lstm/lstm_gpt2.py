"""ResNet, pooled → linear → LSTM → GPT-2 as the language head.

The picture is one vector. It starts the LSTM, which reads the words' embeddings; its hidden states, not the embeddings
themselves, are what GPT-2 reads. So the picture acts on every position, and a step costs one token: the LSTM's state
and GPT-2's text cache both move on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutput

from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint
from captioner.models.parts import checkpoint
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.preprocess import Preprocess
from captioner.models.parts.backbones.towers import Backbone
from captioner.models.parts.loss import token_loss
from captioner.models.parts.narrow import narrowed
from captioner.models.parts.speaker import SearchedDecoder


class ResNetLSTMGPT2Config(PreTrainedConfig):
    """The backbone as `Backbone.config` gives it, and GPT-2's own configuration."""

    model_type = "resnet-lstm-gpt2"
    sub_configs = {"gpt2": GPT2Config}  # noqa: RUF012

    backbone: dict | None = None
    gpt2: dict | GPT2Config | None = None
    lstm_layers: int = 1
    dropout: float = 0.1

    def __post_init__(self, **kwargs) -> None:
        if not isinstance(self.gpt2, GPT2Config):
            self.gpt2 = GPT2Config(**(self.gpt2 or {}))
        super().__post_init__(**kwargs)


@dataclass
class PictureVectors:
    """The picture as one vector: `[images, width]`."""

    vectors: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def select(self, images: Tensor) -> PictureVectors:
        return PictureVectors(self.vectors[images])


@dataclass
class LSTMAndText:
    """One row per hypothesis: the LSTM's state `[layers, rows, width]` each, and GPT-2's keys and values."""

    state: tuple[Tensor, Tensor]
    text: DynamicCache

    def select(self, rows: Tensor) -> LSTMAndText:
        self.text.batch_select_indices(rows)
        hidden, cell = self.state
        return LSTMAndText((hidden[:, rows], cell[:, rows]), self.text)


class ResNetLSTMGPT2(PreTrainedModel):
    """An image backbone whose pooled vector starts an LSTM that feeds GPT-2."""

    config_class = ResNetLSTMGPT2Config
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"gpt2.lm_head.weight": "gpt2.transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config: ResNetLSTMGPT2Config) -> None:
        super().__init__(config)
        gpt2 = narrowed(config.gpt2, GPT2Config)
        width = gpt2.n_embd
        self.backbone = backbones.from_config(narrowed(config.backbone, dict))
        self.norm = nn.LayerNorm(self.backbone.width)
        self.project = nn.Linear(self.backbone.width, width)
        self.first_state = nn.Linear(width, 2 * config.lstm_layers * width)
        self.lstm = nn.LSTM(width, width, config.lstm_layers, batch_first=True)
        self.to_gpt2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.gpt2 = GPT2LMHeadModel(gpt2)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every part has initialised itself."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels → pooled vectors `[n, backbone width]`."""
        return self.backbone.pooled(pixels)

    def remember(self, features: Tensor) -> PictureVectors:
        """The vector in the width of GPT-2."""
        return PictureVectors(self.project(self.norm(features.to(self.norm.weight.dtype))))

    def read(self, pixels: Tensor) -> PictureVectors:
        """Pixels → memory."""
        return self.remember(self.encode(pixels))

    def step(self, tokens: Tensor, memory: PictureVectors, past: LSTMAndText | None) -> tuple[Tensor, LSTMAndText]:
        """Read more text: logits after the last token `[rows, vocabulary]`, and what both networks keep."""
        past = past or LSTMAndText(self._start(memory, len(tokens) // len(memory)), DynamicCache())
        embeddings, past.state = self._embed(tokens, past.state)
        # The cache is the second argument: since transformers 5.24 it has another name.
        output = self.gpt2(None, past.text, inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1], past

    def forward(
        self,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput:
        """Teacher forcing. Padding stands at the end, so that the labels alone mask it."""
        memory = self.read(narrowed(pixel_values, Tensor)) if features is None else self.remember(features)
        embeddings, _ = self._embed(narrowed(input_ids, Tensor), self._start(memory, 1))
        logits = self.gpt2(inputs_embeds=embeddings, use_cache=False).logits  # [B, T, vocabulary]
        loss = None if labels is None else token_loss(logits[:, :-1], labels[:, 1:])
        return CausalLMOutput(loss=loss, logits=logits)

    def _start(self, memory: PictureVectors, beams: int) -> tuple[Tensor, Tensor]:
        """Before any word, the LSTM's state comes from the picture."""
        vectors = memory.vectors.repeat_interleave(beams, 0)  # [rows, width]
        both = self.first_state(vectors).tanh().view(len(vectors), 2, self.config.lstm_layers, -1)
        hidden, cell = both.permute(1, 2, 0, 3).contiguous()  # [2, layers, rows, width]
        return hidden, cell

    def _embed(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Token ids `[rows, t]` → what GPT-2 reads `[rows, t, width]`, and the LSTM's new state."""
        words = self.dropout(self.gpt2.transformer.wte(tokens))
        # In the precision of the weights: oneDNN has no LSTM for bf16 autocast on CPUs without AVX-512.
        with torch.autocast(words.device.type, enabled=False):
            hidden, state = self.lstm(words, tuple(part.to(words.dtype) for part in state))
        return self.to_gpt2(self.dropout(hidden)), state


class GPT2Processor:
    """Pictures to pixels as the backbone wants them; text by GPT-2's tokenizer, whose one special token starts and
    ends a text."""

    def __init__(self, preprocess: Preprocess, tokenizer: PreTrainedTokenizerBase) -> None:
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.pad_id = tokenizer.eos_token_id
        self.start_ids = [tokenizer.eos_token_id]
        self.eos_ids: tuple[int, ...] = (tokenizer.eos_token_id,)

    def encode(self, text: str) -> list[int]:
        """Text → ids without any special token."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text, special tokens left out."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return narrowed(text, str).strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """The tokenizer's files; the preprocessing is part of the model's config."""
        self.tokenizer.save_pretrained(folder)


def new(
    backbone: Backbone, gpt2: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, **settings
) -> tuple[ResNetLSTMGPT2, GPT2Processor]:
    """An untrained LSTM between a (pretrained) backbone and a (pretrained) GPT-2."""
    model = ResNetLSTMGPT2(ResNetLSTMGPT2Config(backbone=backbone.config, gpt2=gpt2.config, **settings))
    model.backbone = backbone
    model.gpt2 = gpt2
    return model, GPT2Processor(backbone.preprocess, tokenizer)


def load(folder: Path, options: LoadOptions) -> SearchedDecoder:
    """A trained checkpoint, ready to speak."""
    model = checkpoint.load_pretrained(ResNetLSTMGPT2, folder, options)
    with checkpoint.reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.folder_with(folder, "tokenizer.json"), local_files_only=True
        )
    gpt2 = model.config.gpt2
    if len(tokenizer) > gpt2.vocab_size:
        raise BadCheckpoint(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, the model only {gpt2.vocab_size}. "
            "Copy the tokenizer that was saved with the model."
        )
    if tokenizer.eos_token_id is None:
        raise BadCheckpoint(
            f"The tokenizer in {folder} has no token that ends a text. Copy the one saved with the model."
        )
    checkpoint.check_ids(folder, gpt2.vocab_size, (tokenizer.eos_token_id, max(tokenizer.get_vocab().values())))
    return SearchedDecoder(model, GPT2Processor(model.backbone.preprocess, tokenizer), gpt2.n_positions)
