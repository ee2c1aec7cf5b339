"""A group of verbs ends in one line and an exit status, whatever happens inside."""

import pytest
import typer
from typer.testing import CliRunner

from captioner.cli.verbs import Verbs
from captioner.errors import CaptionerError, Stopped


@pytest.mark.parametrize(
    ("stop", "told"), [(KeyboardInterrupt(), "Stopped."), (Stopped("Stopped with 3 done."), "Stopped with 3 done.")]
)
def test_ctrl_c_is_told_and_status_130(stop: KeyboardInterrupt, told: str) -> None:
    verbs = typer.Typer(cls=Verbs)

    @verbs.callback()
    def group() -> None: ...

    @verbs.command()
    def work() -> None:
        raise stop

    result = CliRunner().invoke(verbs, ["work"])
    assert (result.exit_code, result.stderr) == (130, f"\ncaptioner: {told}\n")


def test_an_error_of_many_lines_is_said_on_one() -> None:
    verbs = typer.Typer(cls=Verbs)

    @verbs.callback()
    def group() -> None: ...

    @verbs.command()
    def fail() -> None:
        raise CaptionerError("Something\n  is wrong.")

    result = CliRunner().invoke(verbs, ["fail"])
    assert (result.exit_code, result.stderr) == (2, "captioner: Something is wrong.\n")
