"""Keep libraries from talking while something is loaded or drawn; and what is told of our own work that takes long."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

PROGRESS = logging.getLogger("captioner.progress")
"""What takes long is told here as a warning, which Python shows where nobody has asked for less, as `--quiet` does."""
LIBRARIES = ("transformers.utils.logging", "diffusers.utils.logging")
"""Settings of the same kind. Whoever has something loaded by one of them has imported it."""


@contextmanager
def without_bars() -> Iterator[None]:
    """A bar for each file, and the reports of transformers and diffusers, would hide what matters. Afterwards all is
    as before."""
    libraries = [sys.modules[name] for name in LIBRARIES if name in sys.modules]
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


@contextmanager
def silenced() -> Iterator[None]:
    """As `without_bars`, and without the notes of any other library: those that they log, and Python's warnings."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), without_bars():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
