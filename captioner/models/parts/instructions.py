"""What a model that can be asked is told: in its authors' words where it was trained on some, else in ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
LIKE_A_REAL_ONE = "Output a stable diffusion prompt that is indistinguishable from a real stable diffusion prompt."
JOYCAPTION = Instructions(
    LIKE_A_REAL_ONE,
    {
        "prompt": LIKE_A_REAL_ONE,
        "tags": "Write a list of Booru-like tags for this image.",
        "sentence": "Write a very short descriptive caption for this image in a formal tone.",
        "paragraph": "Write a long descriptive caption for this image in a formal tone.",
    },
    system="You are a helpful image captioner.",
    max_new_tokens=150,
)
"""Of Beta One, whose authors say that it follows hardly any other words."""
