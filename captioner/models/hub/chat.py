"""What a chat model is asked about a picture, in the words of its own chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from captioner.errors import BadCheckpoint, BadInput

PROBE = "What is it?"


class Chat:
    """An instruction → the text of a conversation that holds one picture.

    Most templates take a turn in parts, of which one is the picture. Some take plain text, and put the picture before
    it themselves (JoyCaption's) or expect its token in it. Which of them this one is, is tried out.
    """

    def __init__(self, processor: ProcessorMixin, folder: Path, system: str | None = None) -> None:
        self.processor = processor
        self.system = system
        self.template = _template(processor)
        self.picture = str(getattr(processor, "image_token", None) or "")
        """The token that stands for a picture; some processors do not tell theirs."""
        forms: tuple[Callable[[str], Any], ...] = (_parts, _plain, self._marked)
        fitting = [form for form in forms if self._fits(form(PROBE))]
        if not fitting:
            raise BadCheckpoint(
                f"The chat template of {folder} has no place for a picture. Fetch it again, or copy that of the model "
                "this one was made from."
            )
        self.form = fitting[0]

    def text(self, instruction: str, prompt: str = "") -> str:
        """Everything the model is told, up to its answer. prompt: what that goes on from."""
        for name, said in (("instruction", instruction), ("prompt", prompt)):
            if self.picture and self.picture in said:
                raise BadInput(f"The {name} holds {self.picture}, which stands for the picture. Leave it out.")
        told = self._render(self.form(instruction))
        space = " " if prompt and told[-1:] in ":]" else ""  # after "Assistant:" answers begin with one
        return told + space + prompt

    def _marked(self, instruction: str) -> str:
        return f"{self.picture}\n{instruction}"

    def _fits(self, content: Any) -> bool:
        try:
            text = self._render(content)
        except Exception:
            return False
        understood = PROBE in text and "'text'" not in text
        return understood and (text.count(self.picture) == 1 if self.picture else content != PROBE)

    def _render(self, content: Any) -> str:
        turns = [{"role": "user", "content": content}]
        if self.system is not None:
            system = self.system if isinstance(content, str) else [{"type": "text", "text": self.system}]
            turns.insert(0, {"role": "system", "content": system})
        return self.processor.tokenizer.apply_chat_template(
            turns, chat_template=self.template, add_generation_prompt=True, tokenize=False
        )


def has_template(processor: Any) -> bool:
    """Whether this is a processor of a model that chats."""
    return isinstance(processor, ProcessorMixin) and _template(processor) is not None


def _template(processor: ProcessorMixin) -> str | None:
    """The processor's own, else its tokenizer's; of several the default."""
    found = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    return found.get("default") if isinstance(found, dict) else found


def _parts(instruction: str) -> list[dict[str, str]]:
    return [{"type": "image"}, {"type": "text", "text": instruction}]


def _plain(instruction: str) -> str:
    return instruction
