"""What each family of Hub models is told: in its authors' words where it was trained on some, else in ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedConfig

from captioner.errors import BadInput
from captioner.styles import STYLES


@dataclass(frozen=True)
class Instructions:
    """What a family is told where a request does not say."""

    default: str | None = None
    """None: it captions without a word."""
    styles: Mapping[str, str] = field(default_factory=dict)
    """The styles that it was taught, in the words it was taught."""
    system: str | None = None
    before: str = ""
    """What stands for the picture before every instruction."""
    max_new_tokens: int = 77
    """As long as the default instruction makes it talk."""

    def of_style(self, style: str | None) -> str | None:
        """The words for a style; one that the model was not taught is refused."""
        if style is None:
            return self.default
        if style not in self.styles:
            raise BadInput(f"This model writes {' or '.join(self.styles)}, not {style}: choose one of them.")
        return self.styles[style]


CHAT = Instructions(STYLES["prompt"].instruction, {name: style.instruction for name, style in STYLES.items()})
"""Models that understand any instruction."""
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
JOYCAPTION = Instructions(
    "Write a stable diffusion prompt for this image.",
    {
        "prompt": "Write a stable diffusion prompt for this image.",
        "tags": "Write a list of Booru-like tags for this image.",
        "sentence": "Write a very short descriptive caption for this image in a formal tone.",
        "paragraph": "Write a long descriptive caption for this image in a formal tone.",
    },
    system="You are a helpful image captioner.",
    max_new_tokens=150,
)


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
