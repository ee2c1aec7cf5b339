"""Libraries say nothing while something is loaded; afterwards they are as loud as before."""

import logging as of_python
import warnings
from contextlib import suppress

import pytest
from transformers.utils import logging

from captioner.quiet import silenced, without_bars


@pytest.mark.parametrize("bars", [True, False])
def test_all_is_as_before(bars: bool) -> None:
    verbosity, were_on = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        with suppress(ValueError), without_bars():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
            raise ValueError("damaged")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() is bars
    finally:
        logging.set_verbosity(verbosity)
        (logging.enable_progress_bar if were_on else logging.disable_progress_bar)()


def test_no_library_says_a_word(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    other = of_python.getLogger("any.other.library")
    with silenced():
        warnings.warn("renamed soon", FutureWarning, stacklevel=1)
        other.warning("a note")
    assert caplog.messages == []
    assert capsys.readouterr().err == ""
    other.warning("as before")
    assert caplog.messages == ["as before"]
