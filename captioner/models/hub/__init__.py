"""Any image-to-text model that transformers knows, through its own processor, chat template and `generate`.

GIT, ViT-GPT2, BLIP-2, Florence-2, PaliGemma, Qwen2.5-VL, SmolVLM … What is asked is the request's instruction or style,
in the words of instructions.py where it names none. A model's own code is run only where the user has said so.
"""

from __future__ import annotations

from captioner.models.hub.loading import load
from captioner.models.hub.speaker import HubModel, settings

__all__ = ["DEFAULT_DECODING", "HubModel", "load", "settings"]

DEFAULT_DECODING = {"num_beams": 1}
"""Chat models write well without a search, and are too large for one."""
