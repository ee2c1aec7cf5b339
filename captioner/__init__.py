"""captioner: give it an image, get the prompt that could have made it, and that prompt's embedding.

The public names load on first use, so that `import captioner` (and `captioner --help`) costs no torch.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "load": "captioner.pipeline",
    "Captioner": "captioner.pipeline",
    "Prompt": "captioner.prompt",
    "Decoding": "captioner.decoding",
    "LoadOptions": "captioner.contracts",
    "CaptionerError": "captioner.errors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'captioner' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
