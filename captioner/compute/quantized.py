"""peft, without the second and the messages that bitsandbytes costs where nothing is quantized."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec

PACKAGE = "bitsandbytes"


def peft_without_bitsandbytes() -> None:
    """Import peft as if bitsandbytes were not installed; afterwards that can be imported as ever.

    peft imports it whenever it is there, and transformers' Trainer and sentence-transformers import peft. On CPUs with
    AVX-512 bitsandbytes then asks for one more package (`pip install kernels`), which reads like a broken installation.
    Call this before any of them is imported. It does nothing when peft or bitsandbytes is in use already, or where
    there is no peft: sentence-transformers does without.
    """
    if PACKAGE in sys.modules or "peft" in sys.modules or find_spec("peft") is None:
        return
    sys.modules[PACKAGE] = None  # type: ignore[assignment]  # to Python's import: there is no such package
    try:
        from peft import import_utils

        import_utils.is_bnb_available()  # both answers are kept for good
        import_utils.is_bnb_4bit_available()
    finally:
        del sys.modules[PACKAGE]


def peft_with_bitsandbytes() -> None:
    """For quantized layers: let peft look for bitsandbytes again. What it says of itself is for developers."""
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)  # a missing optional kernel, a cast in every layer
    from peft import import_utils

    import_utils.is_bnb_available.cache_clear()
    import_utils.is_bnb_4bit_available.cache_clear()
