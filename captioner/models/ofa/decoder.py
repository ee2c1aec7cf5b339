"""OFA's decoder: reads text and the encoder's states, and writes."""

from __future__ import annotations

from torch import Tensor, nn

from captioner.models.ofa.config import OFAConfig
from captioner.models.ofa.layers import (
    DecoderLayer,
    heads_apart,
    image_table_rows,
    relative_tables,
    scale_of,
    token_buckets,
)
from captioner.models.parts.attention import ImageMemory, TextCache
from captioner.models.parts.narrow import all_of


class Memory(ImageMemory):
    """Keys and values of the encoder's states, and the keys of their positions, which are the same for all images."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], positions: Tensor) -> None:
        super().__init__(layers)
        self.positions = positions  # [heads, source, head_dim]

    def select(self, images: Tensor) -> Memory:
        return Memory(super().select(images).layers, self.positions)


class Decoder(nn.Module):
    """Text so far and memory → states of the new positions."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        width, heads = config.d_model, config.decoder_attention_heads
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + 2, width)
        self.pos_ln = nn.LayerNorm(width)
        self.self_pos_q_linear = nn.Linear(width, width)
        self.self_pos_k_linear = nn.Linear(width, width)
        self.cross_pos_q_linear = nn.Linear(width, width)
        self.cross_pos_k_linear = nn.Linear(width, width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(width)
        self.token_rel_pos_table_list = relative_tables(config.decoder_layers, 2 * config.token_bucket_size - 1, heads)
        self.output_projection = nn.Linear(width, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        # For drawing pictures as codes. Captions never use these; they are here so that saving gives all of a
        # published checkpoint back.
        self.code_layernorm_embedding = nn.LayerNorm(width)
        self.embed_image_positions = nn.Embedding(config.image_bucket_size**2 + 1, width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.image_rel_pos_table_list = relative_tables(config.decoder_layers, image_table_rows(config), heads)

    def remember(self, states: Tensor, positions: Tensor) -> Memory:
        """The encoder's states [n, s, width] and position vectors [s, width] → memory."""
        layers = []
        for layer in all_of(self.layers, DecoderLayer):
            keys, values = layer.cross_attn.keys_and_values(states)
            layers.append((keys.transpose(-1, -2), values))  # as attend_image wants them
        keys = heads_apart(self.cross_pos_k_linear(positions), self.config.decoder_attention_heads)
        return Memory(layers, keys)

    def begin(self, rows: int) -> TextCache:
        """The past of texts without a word yet."""
        weight = self.embed_positions.weight
        return TextCache.begin(rows, len(self.layers), self.config.decoder_attention_heads, weight)

    def forward(
        self, tokens: Tensor, memory: Memory, past: TextCache | None = None, watched: list[Tensor] | None = None
    ) -> Tensor:
        """tokens [rows, t] → states [rows, t, width]; the past, if any, grows by t positions."""
        x = self.dropout(self.layernorm_embedding(self.embed_tokens(tokens)))
        start = past.length if past else 0
        length = start + tokens.shape[1]
        if past:
            past.extend(tokens.shape[1])
        positions = self.pos_ln(self.embed_positions.weight[:length])
        absolute = self._query(self.self_pos_q_linear, positions[start:]) @ self._keys(positions)
        cross_bias = self._query(self.cross_pos_q_linear, positions[start:]) @ memory.positions.transpose(-1, -2)
        buckets = token_buckets(length, self.config.token_bucket_size, x.device)[start:]
        for number, (layer, table) in enumerate(zip(self.layers, self.token_rel_pos_table_list, strict=True)):
            bias = absolute + table(buckets).permute(2, 0, 1)  # [heads, t, length]
            x = layer(x, number, memory, past, bias, cross_bias, watched)
        return self.layer_norm(x)

    def _query(self, linear: nn.Module, positions: Tensor) -> Tensor:
        return heads_apart(linear(positions), self.config.decoder_attention_heads) * scale_of(self.config)

    def _keys(self, positions: Tensor) -> Tensor:
        return heads_apart(self.self_pos_k_linear(positions), self.config.decoder_attention_heads).transpose(-1, -2)
