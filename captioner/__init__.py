"""captioner: give it an image, get the prompt that could have made it, and that prompt's embedding.

The public names load on first use, so that `import captioner` (and `captioner --help`) costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Captioner", "CaptionerError", "Decoding", "Finish", "LoadOptions", "Prompt", "Request", "load"]

if TYPE_CHECKING:  # whoever reads types takes what `__getattr__` gives for anything at all, a mistyped name too
    from captioner.contracts import LoadOptions, Request
    from captioner.decoding import Decoding
    from captioner.errors import CaptionerError
    from captioner.pipeline import Captioner, load
    from captioner.prompt import Prompt
    from captioner.text.finish import Finish
else:
    _PUBLIC = {
        "load": "captioner.pipeline",
        "Captioner": "captioner.pipeline",
        "Prompt": "captioner.prompt",
        "Decoding": "captioner.decoding",
        "Finish": "captioner.text.finish",
        "LoadOptions": "captioner.contracts",
        "Request": "captioner.contracts",
        "CaptionerError": "captioner.errors",
    }

    def __getattr__(name: str) -> object:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'captioner' has no attribute {name!r}")
        return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
