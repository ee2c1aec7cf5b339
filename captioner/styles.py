"""What a model that can be asked is told to write (a prompt, tags, a sentence, a paragraph), and how long it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Style:
    """A kind of text that a picture is described in."""

    instruction: str
    """The words for a model that understands any."""
    max_new_tokens: int


StyleName = Literal["prompt", "tags", "sentence", "paragraph"]
STYLES: dict[StyleName, Style] = {
    "prompt": Style(
        "Write the text-to-image prompt that could have made this picture. Answer with the prompt alone, on one line.",
        max_new_tokens=77,
    ),
    "tags": Style(
        "List what this picture shows as tags for Stable Diffusion 1.5: short terms, comma-separated, in lower case, "
        "the most important first: subject, details, setting, medium, style, light. At most 30. "
        "Answer with the tags alone, on one line.",
        max_new_tokens=150,
    ),
    "sentence": Style(
        "Describe this picture in one sentence of at most 40 words: subject, setting, medium, style and light. "
        "Begin with the subject. Answer with the sentence alone.",
        max_new_tokens=77,
    ),
    "paragraph": Style(
        "Describe this picture in one detailed paragraph of 80 to 150 words: subject, setting, composition, colours, "
        "light, medium and style. Begin with the subject. Answer with the paragraph alone.",
        max_new_tokens=300,
    ),
}
"""`--style`: what SD 1.5 (tags), SDXL (a sentence) and Flux (a paragraph) are used to, and the plain prompt."""
