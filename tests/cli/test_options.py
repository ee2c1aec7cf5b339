"""A verb's options are found by its annotations, as every Python gives them."""

import inspect
from pathlib import Path
from typing import Annotated, Optional, get_args

import pytest
from typer import Option

from captioner.cli.options import grouped
from captioner.contracts import LoadOptions, Request


def test_options_are_found_where_python_310_hides_them() -> None:
    """It makes an option that may be None of one whose default is None."""

    def verb(name: Optional[Annotated[str | None, Option(help="a name")]] = None) -> None:  # noqa: UP045
        """Say a name."""

    (parameter,) = inspect.signature(grouped(verb)).parameters.values()
    kind, option = get_args(parameter.annotation)
    assert kind == str | None
    assert option.help == "a name"


def test_files_and_folders_are_named_for_who_stands_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a cluster, or a run that goes on, may stand in another folder."""
    made: list[Request | LoadOptions] = []

    def verb(request: Request, options: LoadOptions) -> None:
        made.extend((request, options))

    monkeypatch.chdir(tmp_path)
    for name in ("clip", "other", "all-MiniLM-L6-v2"):
        Path(name).mkdir()
    ask = grouped(verb)
    plain = {parameter.name: parameter.default for parameter in inspect.signature(ask).parameters.values()}
    ask(**plain | {"terms": [Path("my.txt")], "caption_model": "mini", "clip_model": "hub:clip", "embedder": "other"})
    ask(**plain | {"embedder": "all-MiniLM-L6-v2"})
    request, options, _, packaged = made
    assert request == Request(terms=(tmp_path / "my.txt",))
    assert options == LoadOptions(
        caption_model="mini", clip_model=f"hub:{tmp_path / 'clip'}", embedder=str(tmp_path / "other")
    )
    assert packaged == LoadOptions(embedder="all-MiniLM-L6-v2")
