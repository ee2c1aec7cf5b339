"""OFA's configuration, with the names of the published config.json files."""

from __future__ import annotations

from transformers import PreTrainedConfig

RESNET_DEPTHS = {"resnet50": (3, 4, 6), "resnet101": (3, 4, 23), "resnet152": (3, 8, 36)}
"""Blocks of the three stages; OFA has no fourth."""

PUBLISHED = {
    "activation_function": "gelu",
    "add_type_embedding": True,
    "code_layernorm_embedding": True,
    "decoder_normalize_before": True,
    "encoder_normalize_before": True,
    "entangle_position_embedding": False,
    "interpolate_position": False,
    "layernorm_embedding": True,
    "normformer": True,
    "patch_layernorm_embedding": True,
    "scale_embedding": False,
    "share_attn_bias": False,
    "share_decoder_input_output_embed": True,
    "use_gamma_feature": False,
    "use_image_feature": True,
    "use_ofasys": False,
}
"""Switches that change the arithmetic, as every published caption model has them: the only form we run."""


class OFAConfig(PreTrainedConfig):
    """Sizes of OFA base unless said otherwise."""

    model_type = "ofa"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    vocab_size: int = 59457
    d_model: int = 768
    encoder_layers: int = 6
    encoder_ffn_dim: int = 3072
    encoder_attention_heads: int = 12
    decoder_layers: int = 6
    decoder_ffn_dim: int = 3072
    decoder_attention_heads: int = 12
    max_position_embeddings: int = 1024
    token_bucket_size: int = 256
    image_bucket_size: int = 42
    attn_scale_factor: float | int = 2.0
    resnet_type: str = "resnet101"
    dropout: float | int = 0.1
    init_std: float = 0.02
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 0
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 0
    question: str | None = None
    """What a fine-tuned model was trained to answer; None: what the image describes."""
