"""A verb's options are found by its annotations, as every Python gives them."""

import inspect
from typing import Annotated, Optional, get_args

from typer import Option

from captioner.cli.options import grouped


def test_options_are_found_where_python_310_hides_them() -> None:
    """It makes an option that may be None of one whose default is None."""

    def verb(name: Optional[Annotated[str | None, Option(help="a name")]] = None) -> None:  # noqa: UP045
        """Say a name."""

    (parameter,) = inspect.signature(grouped(verb)).parameters.values()
    kind, option = get_args(parameter.annotation)
    assert kind == str | None
    assert option.metavar == "TEXT"
