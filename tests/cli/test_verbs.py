"""A group of verbs ends in one line and an exit status, whatever happens inside."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from captioner.cli.main import app
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


@pytest.mark.parametrize(
    ("line", "completed"),
    [("captioner gen", "generate"), ("captioner index b", "build"), ("captioner generate --num-c", "--num-candidates")],
)
def test_a_shell_completes_verbs_and_options(line: str, completed: str) -> None:
    """Asked as the scripts of --show-completion ask."""
    bash = {"_CAPTIONER_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    zsh = {"_CAPTIONER_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
    assert CliRunner().invoke(app, env=bash, prog_name="captioner").stdout.split() == [completed]
    assert f'"{completed}"' in CliRunner().invoke(app, env=zsh, prog_name="captioner").stdout


def test_the_help_names_no_types_of_what_takes_no_value() -> None:
    assert "<bool>" not in CliRunner().invoke(app, ["--help"]).stdout


def test_a_paragraph_of_help_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "What cannot be read is reported" in CliRunner().invoke(app, ["generate", "--help"]).stdout


def test_what_is_as_it_should_be_is_read_without_pydantic() -> None:
    """Its import, and a checker for each option, take a tenth of a cold caption."""
    words = ["generate", "no.jpg", "--prefix", "a", "--metadata", "first"]
    code = (
        f"import sys\nfrom captioner.cli.main import app\ntry: app({words})\n"
        "except SystemExit: print('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--num-beams", "four", "'four' is not a whole number."),
        ("--temperature", "hot", "'hot' is not a number."),
        ("--quality", "good", "'good' is not one of"),
        ("--max-pixels", "0", "'0' should be greater"),
    ],
)
def test_values_are_checked_all_the_same(option: str, value: str, told: str) -> None:
    result = CliRunner().invoke(app, ["generate", "no.jpg", option, value])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': {told}" in result.stderr
