"""A Hub model's processor by Pillow, without what captions have no use for.

Processors of models that can watch videos have a part for them, which needs torchvision and has no form for Pillow. It
is left out, with torchvision and without: the other parts do not ask for it as long as there is no video.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from captioner.files.json import read_object

VIDEO = "video_processor"
NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files that name the class of a processor, the first before the others."""


def load_processor(folder: Path, config: PreTrainedConfig, trust: dict[str, Any]) -> ProcessorMixin:
    """Pictures and text → what the model reads."""
    cls = _processor_class(folder, config)
    if cls is None or VIDEO not in cls.get_attributes():
        return AutoProcessor.from_pretrained(folder, backend="pil", **trust)
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil", **trust)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **trust)
    settings, _ = cls.get_processor_dict(folder, local_files_only=True)
    settings.pop(VIDEO, None)  # since transformers 5 the parts are told here, too
    parts = {"image_processor": pixels, "tokenizer": tokenizer, VIDEO: None}
    return _without_video(cls).from_args_and_dict([parts[name] for name in cls.get_attributes()], settings)


def _processor_class(folder: Path, config: PreTrainedConfig) -> type[ProcessorMixin] | None:
    """As a file of the folder names it, else as is usual for the model."""
    told = (read_object(folder / name).get("processor_class") for name in NAMED_IN if (folder / name).is_file())
    name = next((name for name in told if isinstance(name, str)), "")
    named = getattr(transformers, name, None)
    if isinstance(named, type) and issubclass(named, ProcessorMixin):
        return named
    usual: Any = PROCESSOR_MAPPING.get(type(config), None)
    return usual


def _without_video(cls: type[ProcessorMixin]) -> type[ProcessorMixin]:
    class PicturesOnly(cls):  # type: ignore[misc, valid-type]  # which class it is, the checkpoint says
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != VIDEO]

        def __reduce__(self) -> tuple:
            return _unset, (cls,), self.__dict__  # pickle finds no class that was made here

    PicturesOnly.__name__ = cls.__name__
    return PicturesOnly


def _unset(cls: type[ProcessorMixin]) -> ProcessorMixin:
    own = _without_video(cls)
    return own.__new__(own)
