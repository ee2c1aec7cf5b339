"""Image embedding → mapper → prefix → GPT-2: the ClipCap family, and `mini`.

The image embedding is CLIP's, or, where the checkpoint has a head for it, the prompt's MiniLM embedding predicted from
the picture: then a decoder that learnt from text alone can write from it, and the candidate nearest to it can be
chosen. The prefix runs through GPT-2 once per image; beams share its keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from captioner.contracts import LoadOptions
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.towers import Backbone
from captioner.models.parts.checkpoint import check_ids, folder_with, load_pretrained, reading
from captioner.models.parts.loss import token_loss
from captioner.models.parts.narrow import narrowed
from captioner.models.prefix.layers import (
    JointHead,
    LinearMapper,
    MlpMapper,
    PrefixDecoder,
    PrefixProcessor,
    PrefixSpeaker,
    TransformerMapper,
)


class ClipPrefixConfig(PreTrainedConfig):
    """All sizes of a `ClipPrefix`."""

    model_type = "clip-prefix"

    def __init__(
        self,
        backbone: dict | None = None,
        joint_dim: int = 512,
        normalize: bool = False,
        head: dict | None = None,
        gist: bool = False,
        mapper: str = "transformer",
        prefix_length: int = 10,
        clip_length: int = 10,
        mapper_layers: int = 8,
        mapper_heads: int = 8,
        gpt2: dict | None = None,
        eos_ids: Sequence[int] = (13,),
        pad_id: int = 50256,
        **kwargs,
    ) -> None:
        """
        Args:
            backbone: as `Backbone.config` gives it.
            joint_dim: length of the image embedding that the mapper reads.
            normalize: the mapper reads image embeddings of length 1.
            head: settings of a `JointHead` after the backbone; None: the backbone's pooled vector is the embedding.
            gist: a table tells what each token adds to a text's embedding.
            mapper: "transformer", "mlp" or "linear".
            clip_length: positions that the transformer mapper spreads the embedding over.
            gpt2: settings of transformers' GPT2Config.
            eos_ids: ids that end a text; ClipCap stops at ".".
        """
        self.backbone = backbone or backbones.blank("clip").config
        self.joint_dim = joint_dim
        self.normalize = normalize
        self.head = head
        self.gist = gist
        self.mapper = mapper
        self.prefix_length = prefix_length
        self.clip_length = clip_length
        self.mapper_layers = mapper_layers
        self.mapper_heads = mapper_heads
        self.gpt2 = gpt2 or {}
        self.eos_ids = list(eos_ids)
        self.pad_id = pad_id
        super().__init__(**kwargs)


class ClipPrefix(PrefixDecoder, PreTrainedModel):
    """Backbone (and head), mapper, GPT-2 (and gist): modules of their own, so that each can be frozen by itself."""

    backbone: Backbone
    config_class = ClipPrefixConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"gpt.lm_head.weight": "gpt.transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config: ClipPrefixConfig) -> None:
        super().__init__(config)
        self.backbone = backbones.from_config(config.backbone)
        self.head = JointHead(self.backbone.width, config.joint_dim, **config.head) if config.head else None
        self.normalize = config.normalize
        gpt2 = GPT2Config(**config.gpt2)
        if config.mapper in ("mlp", "linear"):
            make = MlpMapper if config.mapper == "mlp" else LinearMapper
            self.mapper = make(config.joint_dim, config.prefix_length, gpt2.n_embd)
        elif config.mapper != "transformer":
            raise ValueError(f"there is no mapper {config.mapper!r}")
        else:
            self.mapper = TransformerMapper(
                config.joint_dim,
                config.prefix_length,
                config.clip_length,
                gpt2.n_embd,
                config.mapper_layers,
                config.mapper_heads,
            )
        self.gpt = GPT2LMHeadModel(gpt2)
        self.gist = nn.Embedding(gpt2.vocab_size, config.joint_dim) if config.gist else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.gpt.transformer.wte

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: every part has initialised itself."""

    def forward(
        self,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput:
        """Training: cross-entropy of every labelled token, the first one too (the prefix predicts it)."""
        prefix = self.prefix(self.encode(narrowed(pixel_values, Tensor)) if features is None else features)
        embedded = torch.cat((prefix, self.gpt.transformer.wte(input_ids)), dim=1)
        if attention_mask is not None:
            seen = attention_mask.new_ones(prefix.shape[:2])
            attention_mask = torch.cat((seen, attention_mask), dim=1)
        hidden = self.gpt.transformer(inputs_embeds=embedded, attention_mask=attention_mask, use_cache=False)[0]
        hidden = hidden[:, prefix.shape[1] - 1 :]  # from the last prefix position on
        if labels is None:
            return CausalLMOutput(logits=self.gpt.lm_head(hidden[:, 1:]))
        logits = self.gpt.lm_head(hidden)  # [n, 1 + T, vocabulary]
        loss = token_loss(logits[:, :-1], labels)
        return CausalLMOutput(loss=loss, logits=logits[:, 1:])


def load(folder: Path, options: LoadOptions) -> PrefixSpeaker:
    """A checkpoint folder → a speaker."""
    model = load_pretrained(ClipPrefix, folder, options)
    model.fixed = True
    processor, gpt2 = load_processor(folder, model), model.gpt.config
    vocabulary = processor.tokenizer.get_vocab().values()
    check_ids(folder, gpt2.vocab_size, (*processor.eos_ids, processor.pad_id, max(vocabulary, default=None)))
    return PrefixSpeaker(model, processor, gpt2.n_positions - model.config.prefix_length)


def load_processor(folder: Path, model: ClipPrefix) -> PrefixProcessor:
    """The processor that lies beside the weights."""
    with reading(folder):
        tokenizer = Tokenizer.from_str((folder_with(folder, "tokenizer.json") / "tokenizer.json").read_text("utf-8"))
    return PrefixProcessor(model.backbone.preprocess, tokenizer, model.config)
