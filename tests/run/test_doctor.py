"""A bug report says what is there and what is missing, and nothing of the user's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import captioner
from captioner import errors
from captioner.cli.main import app
from captioner.run import doctor


def test_every_chapter_says_what_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = doctor.examine()
    assert found["versions"]["captioner"] == captioner.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert torch.backends.cpu.get_cpu_capability() in found["machine"]["processor"]
    assert "mini" in found["models"]["ready here"]
    assert found["caches"]["captioner"] == "~/cache, 0 MB"
    assert found["environment"]["CAPTIONER_CACHE"] == str(tmp_path / "cache")


@pytest.mark.skipif(os.name == "nt", reason="users have no numbers")
def test_caches_of_whoever_has_no_home_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 987_654_321)
    assert doctor._folder(Path("/nowhere/captioner"), "CAPTIONER_CACHE").startswith("~/nowhere/captioner, not there")


def test_what_is_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda package: None if package in ("peft", "ray") else object())
    extras = doctor._extras()
    assert extras["train"] == 'misses peft: pip install "captioner[train]"'
    assert extras["web"] == "complete"


def test_the_verb_prints_lines_or_json() -> None:
    lines = CliRunner().invoke(app, ["doctor"]).stdout.splitlines()
    assert "versions:" in lines
    assert any(line.startswith("  torch ") for line in lines)
    whole = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert list(whole) == ["versions", "machine", "models", "caches", "extras", "environment"]


def test_a_cache_that_takes_nothing_is_told_of_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert doctor.examine()["caches"] == {
        "captioner": "~/file/cache, not there yet, NOT WRITABLE (Not a directory): "
        "set CAPTIONER_CACHE to a folder of yours",
        "Hugging Face": "~/hub, not there yet",
    }
