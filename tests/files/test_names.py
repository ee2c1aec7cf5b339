"""What users call files."""

import ntpath
import os
from pathlib import Path

import pytest

from captioner.files.cache import cache_folder
from captioner.files.names import home, nearest_existing, path_of, seen_from, typed


def test_home_is_found_and_that_of_nobody_is_left() -> None:
    assert path_of("~/a.png") == Path.home() / "a.png"
    assert path_of("~nobody-of-this-name/a.png") == Path("~nobody-of-this-name/a.png")
    assert path_of(Path("a")) == Path("a")
    assert home() == Path.home()


@pytest.mark.skipif(os.name == "nt", reason="users have no numbers")
def test_who_has_no_home_has_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is run by a number; and no cache lies in whatever folder one is in."""
    for name in ("CAPTIONER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    monkeypatch.setattr(os, "getuid", lambda: 987_654_321)
    for is_set in (True, False):
        if is_set:
            monkeypatch.setenv("HOME", "")
        else:
            monkeypatch.delenv("HOME")
        assert home() == Path("/")
        assert cache_folder("sidecars") == Path("/.cache/captioner/sidecars")


def test_where_a_folder_would_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert nearest_existing(tmp_path) == nearest_existing(tmp_path / "a/b") == nearest_existing(Path("a/b")) == tmp_path
    assert nearest_existing(Path("file")) == Path("file")
    assert nearest_existing(tmp_path / "file/a") == tmp_path / "file"


def test_what_lies_on_another_drive_is_called_by_all_of_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen_from(Path("/a/b"), "/a/c/d.png") == os.path.join("..", "c", "d.png")
    with monkeypatch.context() as windows:
        windows.setattr(os, "path", ntpath)
        seen = [seen_from("C:\\a", file) for file in ("C:\\b\\d.png", "D:\\b\\d.png")]  # type: ignore[arg-type]
    assert seen == ["..\\b\\d.png", "D:\\b\\d.png"]


def test_a_path_as_it_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    for system, line in (("posix", "'my runs'"), ("nt", '"my runs"')):
        with monkeypatch.context() as other:
            other.setattr(os, "name", system)
            assert (typed("runs"), typed("my runs")) == ("runs", line)
