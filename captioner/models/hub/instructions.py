"""What each family of Hub models is told."""

from __future__ import annotations

from transformers import PreTrainedConfig

from captioner.models.parts.instructions import CHAT, JOYCAPTION, Instructions

NONE = Instructions()
PLAIN = {
    "florence2": Instructions(
        "<MORE_DETAILED_CAPTION>",
        {"sentence": "<CAPTION>", "paragraph": "<MORE_DETAILED_CAPTION>"},
        max_new_tokens=300,
    ),
    "paligemma": Instructions("caption en", {"sentence": "caption en", "paragraph": "describe en"}, before="<image>"),
    "instructblip": Instructions(
        "Write a short description for the image.",
        {"sentence": "Write a short description for the image.", "paragraph": "Describe the image in detail."},
    ),
    "kosmos-2": Instructions("An image of", {"sentence": "An image of", "paragraph": "Describe this image in detail:"}),
    "blip-2": NONE,
}
"""Models without a chat template, and the words they were trained on."""


def instructions_for(config: PreTrainedConfig, chats: bool) -> Instructions:
    """What this kind of model is told."""
    if config.model_type in PLAIN:
        return PLAIN[config.model_type]
    if not chats:
        return NONE
    return JOYCAPTION if _is_joycaption(config) else CHAT


def _is_joycaption(config: PreTrainedConfig) -> bool:
    """It has no name of its own: no other LLaVA is made of SigLIP's tower and Llama."""
    if config.model_type != "llava":
        return False
    return config.vision_config.model_type.startswith("siglip") and config.text_config.model_type == "llama"
