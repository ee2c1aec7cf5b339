"""OFA's encoder: the regions of a picture, then the words of a question, as one sequence."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.models.ofa.config import RESNET_DEPTHS, OFAConfig
from captioner.models.ofa.layers import (
    EncoderLayer,
    heads_apart,
    image_buckets,
    image_position_ids,
    image_table_rows,
    relative_tables,
    scale_of,
    token_buckets,
)
from captioner.models.ofa.resnet import WIDTH, ResNet


class Encoder(nn.Module):
    """Pixels and question → one vector a region and word."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        width, heads = config.d_model, config.encoder_attention_heads
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.type_embedding = nn.Embedding(2, width)  # text, picture
        self.embed_images = ResNet(RESNET_DEPTHS[config.resnet_type])
        self.image_proj = nn.Linear(WIDTH, width)
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + 2, width)
        self.embed_image_positions = nn.Embedding(config.image_bucket_size**2 + 1, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.pos_q_linear = nn.Linear(width, width)
        self.pos_k_linear = nn.Linear(width, width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)
        text_rows = 2 * config.token_bucket_size - 1
        self.token_rel_pos_table_list = relative_tables(config.encoder_layers, text_rows, heads)
        self.image_rel_pos_table_list = relative_tables(config.encoder_layers, image_table_rows(config), heads)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, pixels: Tensor, question: Tensor) -> Tensor:
        """pixels [n, 3, h, w], question ids [n, q], none of them padding → states [n, regions + q, width]."""
        feature_map = self.embed_images(pixels)  # [n, 1024, rows, columns]
        grid = feature_map.shape[2:]
        regions = self.image_proj(feature_map.flatten(2).transpose(1, 2)) + self.type_embedding.weight[1]
        words = self.embed_tokens(question) + self.type_embedding.weight[0]
        parts = self.patch_layernorm_embedding(regions), self.layernorm_embedding(words)
        x = self.dropout(torch.cat(parts, dim=1))  # [n, regions + q, width]
        absolute = self._absolute_bias(self.positions(grid, question.shape[1]))
        for layer, relative in zip(self.layers, self._relative_biases(grid, question.shape[1]), strict=True):
            x = layer(x, absolute + relative)
        return self.layer_norm(x)

    def positions(self, grid: tuple[int, int], words: int) -> Tensor:
        """Position vectors of regions and words [regions + words, width]; the decoder reads them too."""
        device = self.embed_positions.weight.device
        ids = image_position_ids(*grid, self.config.image_bucket_size, device)
        of_regions = self.image_pos_ln(self.embed_image_positions(ids))
        return torch.cat((of_regions, self.pos_ln(self.embed_positions.weight[:words])))

    def _absolute_bias(self, positions: Tensor) -> Tensor:
        """[1, heads, s, s], the same in all layers"""
        heads = self.config.encoder_attention_heads
        query = heads_apart(self.pos_q_linear(positions), heads) * scale_of(self.config)
        return (query @ heads_apart(self.pos_k_linear(positions), heads).transpose(-1, -2)).unsqueeze(0)

    def _relative_biases(self, grid: tuple[int, int], words: int) -> Iterator[Tensor]:
        """Of each layer [heads, s, s]: regions among themselves, words among themselves, nothing between."""
        config, device = self.config, self.embed_positions.weight.device
        of_regions = image_buckets(*grid, config.image_bucket_size, device)
        of_words = token_buckets(words, config.token_bucket_size, device)
        regions = len(of_regions)
        for image_table, token_table in zip(self.image_rel_pos_table_list, self.token_rel_pos_table_list, strict=True):
            among_regions = image_table(of_regions).permute(2, 0, 1)
            among_words = token_table(of_words).permute(2, 0, 1)
            yield F.pad(among_regions, (0, words, 0, words)) + F.pad(among_words, (regions, 0, regions, 0))
