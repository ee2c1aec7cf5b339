"""What users call files."""

from pathlib import Path

from captioner.files.names import path_of


def test_home_is_found_and_that_of_nobody_is_left() -> None:
    assert path_of("~/a.png") == Path.home() / "a.png"
    assert path_of("~nobody-of-this-name/a.png") == Path("~nobody-of-this-name/a.png")
    assert path_of(Path("a")) == Path("a")
