"""Ranges of settings: one table for the library, the service and the page."""

from __future__ import annotations

import re
from pathlib import Path

import captioner.web
from captioner.web.ranges import ranges
from captioner.web.routes.native import Generate


def test_every_number_that_the_page_asks_for_has_its_range() -> None:
    settings = (Path(captioner.web.__file__).parent / "static/settings.js").read_text(encoding="utf-8")
    numbers = set(re.findall(r'name: "(\w+)".*?kind: "(?:whole|number)"', settings))
    assert len(numbers) > 10
    assert numbers <= ranges(Generate).keys()


def test_least_and_most() -> None:
    of = ranges(Generate)
    assert of["temperature"] == (0.01, 100)
    assert of["min_new_tokens"] == (0, 1024)
    assert of["num_beams"] == (1, 32)
    assert of["threshold"] == (0, 1)
    assert "prompt" not in of
