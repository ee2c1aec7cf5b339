"""BLIP: a vision transformer and a text decoder that looks at the image in every layer.

The weights, their names and training are transformers' own `BlipForConditionalGeneration`, so its checkpoints, PEFT
and Trainer work. Decoding is ours: the image's keys and values are computed once and shared by all beams, where
transformers copies them to every beam and moves the copies at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from torch.nn.functional import scaled_dot_product_attention as fused_attention
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig
from transformers.activations import GELUActivation
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.blip.modeling_blip import BlipAttention, BlipEncoderLayer, BlipMLP
from transformers.models.blip.modeling_blip_text import (
    BlipTextEmbeddings,
    BlipTextIntermediate,
    BlipTextLayer,
    BlipTextOutput,
    BlipTextPredictionHeadTransform,
    BlipTextSelfAttention,
    BlipTextSelfOutput,
)

from captioner import compute
from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint
from captioner.models.parts import checkpoint
from captioner.models.parts.attention import ImageMemory, TextCache, attend_image, attend_shared, attend_words, laid_out
from captioner.models.parts.backbones.preprocess import CLIP, Preprocess
from captioner.models.parts.loss import token_loss
from captioner.models.parts.narrow import all_of, narrowed
from captioner.models.parts.recording import Recordings
from captioner.models.parts.speaker import SearchedDecoder

GELU_AFTER = (
    (BlipMLP, "fc1", "activation_fn"),
    (BlipTextIntermediate, "dense", "intermediate_act_fn"),
    (BlipTextPredictionHeadTransform, "dense", "transform_act_fn"),
)
"""Where BLIP applies an activation to what a linear layer gives: the class, the layer, the activation."""


class Blip(BlipForConditionalGeneration):
    """transformers' BLIP as a decoder that reads an image once and then steps."""

    fixed = False
    """Its weights change no more: a step may be traced."""

    def encode(self, pixels: Tensor) -> Tensor:
        if self.fixed and len(pixels) == 1 and compute.pays_to_record(pixels):
            return self._encode_alone(pixels)
        if pixels.device.type != "cpu":
            return self._encode(pixels)
        # Picture by picture: the products are large enough, and the buffers small enough that malloc keeps their pages.
        # For a batch of 8 each would be mapped and cleared anew.
        return torch.cat(compute.each_alone(self._encode, pixels.split(1)))

    @cached_property
    def _encode_alone(self) -> compute.RecordedFunction:
        """`_encode` of one picture, whose kernels a GPU is done with sooner than Python launches them."""
        return compute.RecordedFunction(self._encode, 2)

    def _encode(self, pixels: Tensor) -> Tensor:
        """The vision transformer on its own weights; training goes through transformers' `vision_model`."""
        vision, heads = self.vision_model, vision_config(self.config).num_attention_heads
        attend = fused_attention if compute.fused_attention_pays(pixels) else _plain_attention
        x = vision.embeddings(pixels.contiguous())  # [n, 1 + patches, width]; laid out otherwise, bf16 rounds otherwise
        for layer in all_of(vision.encoder.layers, BlipEncoderLayer):
            projected = layer.self_attn.qkv(layer.layer_norm1(x)).unflatten(-1, (3, heads, -1))
            query, keys, values = projected.permute(2, 0, 3, 1, 4)  # each [n, heads, 1 + patches, head_dim]
            x = layer.self_attn.projection(_merged(attend(query, keys, values))).add_(x)
            x = layer.mlp(layer.layer_norm2(x)).add_(x)
        return vision.post_layernorm(x)

    def remember(self, features: Tensor) -> ImageMemory:
        heads = text_config(self.config).num_attention_heads

        def keys_and_values(layer: BlipTextLayer) -> tuple[Tensor, Tensor]:
            """As `attend_image` wants them."""
            attention = layer.crossattention.self
            keys, values = _heads(attention.key(features), heads), _heads(attention.value(features), heads)
            return laid_out(keys.transpose(-1, -2)), laid_out(values)

        if features.device.type != "cpu":
            return ImageMemory(map(keys_and_values, self.text_layers()))
        return ImageMemory(compute.each_alone(keys_and_values, self.text_layers()))

    def read(self, pixels: Tensor) -> ImageMemory:
        return self.remember(self.encode(pixels))

    def step(self, tokens: Tensor, memory: ImageMemory, past: TextCache | None) -> tuple[Tensor, TextCache]:
        past = past or self._begin(len(tokens))
        if tokens.shape[1] == 1 and self.fixed and compute.pays_to_record(tokens):
            return self._recordings.step(tokens, len(memory), memory.tensors(), past)
        states = self._read_on(tokens, memory, past)
        return self.text_decoder.cls(states[:, -1]), past

    @cached_property
    def _recordings(self) -> Recordings:
        return Recordings(self._write)

    def _write(
        self,
        tokens: Tensor,
        position: Tensor,
        words: Tensor,
        newest: Tensor,
        unseen: Tensor,
        memory: Sequence[Tensor],
    ) -> Tensor:
        """A step as `Recordings` records it."""
        embedded = self._embeddings(tokens, position[None])
        layers = len(self.text_layers())
        states = self._layers(embedded, words, newest, memory[:layers], memory[layers:], unseen=unseen)
        return self.text_decoder.cls(states[:, -1])

    def _begin(self, rows: int) -> TextCache:
        heads = text_config(self.config).num_attention_heads
        return TextCache.begin(rows, len(self.text_layers()), heads, self._embeddings.word_embeddings.weight)

    def _read_on(
        self, tokens: Tensor, memory: ImageMemory, past: TextCache, watched: list[Tensor] | None = None
    ) -> Tensor:
        """What the layers make of the next tokens `[rows, t]` → `[rows, t, width]`; `watched`: see `_layers`."""
        before, t = past.length, tokens.shape[1]
        embedded = self._embeddings(tokens, self._embeddings.position_ids[:, before : before + t])
        past.extend(t)
        image_keys, image_values = zip(*memory.layers, strict=True)
        if t == 1 and before and self.fixed and watched is None:
            return self._traced(embedded, past.words, past.places, image_keys, image_values)
        return self._layers(embedded, past.words, past.places, image_keys, image_values, watched)

    @cached_property
    def _traced(self) -> Callable[..., Tensor]:
        """`_layers` for one more token of every text."""
        past = self._begin(1)
        past.extend(2)
        layers, _, _, heads, dim = past.words.shape
        word = past.words.new_zeros(1, 1, heads * dim)
        images = [word.new_zeros(1, heads, dim, 2)] * layers, [word.new_zeros(1, heads, 2, dim)] * layers
        return compute.traced(self._layers, self.text_decoder, word, past.words, past.places, *images)

    def _layers(
        self,
        x: Tensor,
        words: Tensor,
        places: Tensor,
        image_keys: Sequence[Tensor],
        image_values: Sequence[Tensor],
        watched: list[Tensor] | None = None,
        unseen: Tensor | None = None,
    ) -> Tensor:
        """The text decoder over the last t positions `[rows, t, width]`.

        It calls the layers' products and norms, but not their modules: for a few rows those calls take a third of the
        time.

        Args:
            x: the embedded tokens `[rows, t, width]`.
            words, places: of a `TextCache` that was extended by t.
            image_keys, image_values: as `attend_image` wants them.
            watched: here each layer's attention to a single picture `[1, heads, t, regions]` is added.
            unseen: for `attend_shared`, whose words and places these are then.
        """
        rows, t, _ = x.shape
        heads, t = text_config(self.config).num_attention_heads, int(t)  # a constant also where this is traced
        attend = attend_words if unseen is None else partial(attend_shared, unseen=unseen)
        x = x.flatten(0, 1)  # [rows · t, width]
        of_layers = zip(self.text_layers(), words, image_keys, image_values, strict=True)
        for block, of_text, of_image, values_of_image in of_layers:
            projected = _projected(block.attention.self, x).view(rows, t, 3, heads, -1)
            mixed = attend(projected[:, :, 0].transpose(1, 2), projected[:, :, 1:], of_text, places)
            x = _added(block.attention.output, _merged(mixed).flatten(0, 1), x)
            query = block.crossattention.self.query(x).view(rows, t, heads, -1).transpose(1, 2)
            if watched is not None:
                watched.append((query * query.shape[-1] ** -0.5 @ of_image).softmax(-1))
            mixed = attend_image(query, of_image, values_of_image)
            x = _added(block.crossattention.output, _merged(mixed).flatten(0, 1), x)
            x = _added(block.output, block.intermediate(x), x)
        return x.view(rows, t, -1)

    @property
    def _embeddings(self) -> BlipTextEmbeddings:
        return self.text_decoder.bert.embeddings

    def text_layers(self) -> list[BlipTextLayer]:
        """The layers of the text decoder."""
        return all_of(self.text_decoder.bert.encoder.layer, BlipTextLayer)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput:
        """For training. The loss is the mean over all labels but -100, which are aligned with `input_ids`."""
        features = self.vision_model(pixel_values).last_hidden_state if features is None else features
        logits = self.text_decoder(input_ids, attention_mask, encoder_hidden_states=features, use_cache=False).logits
        smoothing = text_config(self.config).label_smoothing
        loss = None if labels is None else token_loss(logits[:, :-1], labels[:, 1:], smoothing)
        return CausalLMOutput(loss=loss, logits=logits)

    @torch.inference_mode()
    def look(self, pixels: Tensor, ids: Sequence[int]) -> Tensor:
        """Where the model looks when it writes what follows each id of a text: `[ids, rows, columns]`.

        Cross-attention to one picture, pixels `[1, 3, h, w]`, averaged over layers and heads, the class token left out.
        """
        watched: list[Tensor] = []
        self._read_on(torch.tensor([list(ids)], device=self.device), self.read(pixels), self._begin(1), watched)
        mean = torch.stack(watched).mean((0, 2))[0]  # [ids, 1 + patches]
        patch = narrowed(vision_config(self.config).patch_size, int)
        return mean[:, 1:].unflatten(1, (pixels.shape[2] // patch, pixels.shape[3] // patch))


class JoinedAttention(nn.Module):
    """Self-attention whose query, keys and values come from one product: of a few rows, three take twice as long."""

    def __init__(self, attention: BlipTextSelfAttention) -> None:
        super().__init__()
        parts = attention.query, attention.key, attention.value
        weight, bias = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
        self.projection = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        self.projection.load_state_dict({"weight": weight, "bias": bias}, assign=True)


class FusedVisionAttention(nn.Module):
    """transformers' attention to regions by torch's fused one, which keeps no scores for the way back."""

    def __init__(self, attention: BlipAttention) -> None:
        super().__init__()
        self.qkv, self.projection, self.heads = attention.qkv, attention.projection, attention.num_heads
        self.dropout = attention.dropout.p

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        projected = self.qkv(hidden_states).unflatten(-1, (3, self.heads, -1))  # [n, t, 3, heads, head_dim]
        query, keys, values = projected.permute(2, 0, 3, 1, 4)  # each [n, heads, t, head_dim]
        mixed = fused_attention(query, keys, values, dropout_p=self.dropout if self.training else 0.0)
        return self.projection(_merged(mixed)), None


class FusedTextAttention(nn.Module):
    """As `FusedVisionAttention`, of a text to itself or to the image."""

    def __init__(self, attention: BlipTextSelfAttention) -> None:
        super().__init__()
        self.query, self.key, self.value = attention.query, attention.key, attention.value
        self.heads, self.dropout = attention.num_attention_heads, attention.dropout.p

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        seen, mask = hidden_states, attention_mask
        if encoder_hidden_states is not None:
            seen, mask = encoder_hidden_states, None
        query, keys, values = (
            _heads(x, self.heads) for x in (self.query(hidden_states), self.key(seen), self.value(seen))
        )
        mask = None if mask is None else mask.to(query.dtype)
        mixed = fused_attention(query, keys, values, mask, dropout_p=self.dropout if self.training else 0.0)
        return _merged(mixed), None


def text_config(config: BlipConfig) -> BlipTextConfig:
    """transformers declares a part of a configuration as a dict or None, too."""
    return narrowed(config.text_config, BlipTextConfig)


def vision_config(config: BlipConfig) -> BlipVisionConfig:
    """As `text_config`."""
    return narrowed(config.vision_config, BlipVisionConfig)


def _plain_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return attend_image(query, keys.transpose(-1, -2), values)


def _projected(attention: BlipTextSelfAttention | JoinedAttention, x: Tensor) -> Tensor:
    """Query, keys and values of the text's self-attention side by side: [n, width] → [n, 3 · width]."""
    if isinstance(attention, JoinedAttention):
        return attention.projection(x)
    return torch.cat((attention.query(x), attention.key(x), attention.value(x)), dim=-1)


def _added(output: BlipTextSelfOutput | BlipTextOutput, x: Tensor, before: Tensor) -> Tensor:
    """The end of a part of a layer, but for its dropout: a product, added to what the part was given, and a norm."""
    norm = output.LayerNorm
    return layer_norm(output.dense(x).add_(before), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [n, t, width] → [n, heads, t, head_dim]


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # [n, heads, t, head_dim] → [n, t, width]


class BlipProcessor:
    """BERT's lower-case word pieces, and the picture squashed to a square."""

    def __init__(
        self,
        images: BlipImageProcessorPil,
        preprocess: Preprocess,
        tokenizer: BertTokenizer,
        start_ids: list[int],
        eos: int,
    ) -> None:
        self.images = images
        """What is saved: transformers' own, which takes longer for the same pixels."""
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.start_ids = start_ids
        self.eos_ids: tuple[int, ...] = (eos,)
        self.pad_id = tokenizer.pad_token_id

    @classmethod
    def from_folder(cls, folder: Path) -> BlipProcessor:
        """The processor of a checkpoint."""
        source = checkpoint.folder_with(
            folder, ("preprocessor_config.json", "processor_config.json"), ("tokenizer.json", "vocab.txt")
        )
        with checkpoint.reading(source):
            # The PIL form on purpose: the other needs torchvision, and resizes a little differently.
            images = BlipImageProcessorPil.from_pretrained(source)
            tokenizer = BertTokenizer.from_pretrained(source)
            config = BlipConfig.from_pretrained(checkpoint.base_folder(folder))
            settings = images.to_dict()
            preprocess = Preprocess.from_settings(settings, Preprocess(384, **CLIP), source)
        side, size = vision_config(config).image_size, dict(images.size)
        if size != {"height": side, "width": side}:
            raise BadCheckpoint(f"The processor of {folder} makes pictures of {size}, the model reads {side}×{side}.")
        if settings.get("do_center_crop") or settings.get("do_pad"):
            raise BadCheckpoint(f"The processor of {folder} cuts or pads its pictures, which BLIP's does not.")
        # BLIP begins with a decoder token that its tokenizer does not know, and ends with BERT's separator.
        text = text_config(config)
        start_ids, eos = [narrowed(text.bos_token_id, int)], narrowed(text.sep_token_id, int)
        return cls(images, preprocess, tokenizer, start_ids, eos)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        return narrowed(self.tokenizer.decode(list(ids), skip_special_tokens=True), str)

    def save_pretrained(self, folder: str | Path) -> None:
        self.images.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load(folder: Path, options: LoadOptions) -> SearchedDecoder:
    model = checkpoint.load_pretrained(Blip, folder, options, encoder="vision_model", before=join_projections)
    fuse_gelu(model)
    model.fixed = True
    processor, text = BlipProcessor.from_folder(folder), text_config(model.config)
    ids = (*processor.start_ids, *processor.eos_ids, processor.pad_id, max(processor.tokenizer.get_vocab().values()))
    checkpoint.check_ids(folder, text.vocab_size, ids)
    return SearchedDecoder(model, processor, text.max_position_embeddings)


def join_projections(model: Blip) -> None:
    """Let the text's self-attention use one product instead of three, in place. transformers' modules then lack them:
    the model is read by our steps alone."""
    for layer in model.text_layers():
        layer.attention.add_module("self", JoinedAttention(layer.attention.self))


def fuse_attention(model: Blip) -> None:
    """Let training attend by torch's fused attention, in place. Names of weights stay as they are."""
    for layer in all_of(model.vision_model.encoder.layers, BlipEncoderLayer):
        layer.add_module("self_attn", FusedVisionAttention(layer.self_attn))
    for block in model.text_layers():
        for attention in (block.attention, block.crossattention):
            attention.add_module("self", FusedTextAttention(attention.self))


def fuse_gelu(model: Blip) -> None:
    """Let packed layers apply the activation that follows them, in place."""
    for module in model.modules():
        for kind, layer, activation in GELU_AFTER:
            if isinstance(module, kind) and _is_gelu(getattr(module, activation)):
                compute.fuse_gelu(module, layer, activation)


def _is_gelu(activation: object) -> bool:
    """transformers' own module of the exact GELU; its approximations are other functions."""
    return type(activation) is GELUActivation and activation.act is torch.nn.functional.gelu
