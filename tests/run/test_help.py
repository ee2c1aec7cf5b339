"""The pages of `--help`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from captioner.run.help import CommandLine


@pytest.fixture
def line() -> CommandLine:
    """A command line of two verbs, one with an option of each kind."""
    made = CommandLine()

    @made.command()
    def paint(
        pictures: Annotated[list[Path], typer.Argument(help="What to paint.")],
        out: Annotated[Path | None, typer.Option("--out", "-o", help="A `.png`.")] = None,
        how: Annotated[Literal["oil", "ink"], typer.Option(help="With what.")] = "oil",
        coats: Annotated[int, typer.Option(help="How often.", min=1)] = 2,
        drops: Annotated[int, typer.Option(help="Of water.", min=0, max=1_000_000)] = 9,
        wet: Annotated[float, typer.Option(help="How wet.", min=0, max=1)] = 0.5,
        dry: Annotated[bool, typer.Option(help="Let it dry.")] = True,
        fast: Annotated[bool | None, typer.Option("--fast/--fine", help="In a hurry.")] = None,
        key: Annotated[str | None, typer.Option(help="Of the studio.", envvar="STUDIO_KEY")] = None,
        dust: Annotated[bool, typer.Option("--dust", help="Some dust.", rich_help_panel="Rarely")] = False,
        secret: Annotated[bool, typer.Option("--secret", hidden=True)] = False,
    ) -> None:
        """Paint pictures
        anew.

        Each takes a while.

        captioner paint cat.png

        captioner paint dog.png --how ink
        """

    @made.command(epilog="Ask with --help.", rich_help_panel="Afterwards")
    def wash(colour: Annotated[str, typer.Option(help="Which one.")]) -> None:
        """Wash the brushes."""

    return made


def page(line: CommandLine, monkeypatch: pytest.MonkeyPatch, *words: str, width: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(line, [*words, "--help"])
    assert result.exit_code == 0, result.output
    return "\n".join(one.rstrip() for one in result.stdout.splitlines())


def test_a_page_says_what_a_verb_is_for_and_what_it_takes(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        page(line, monkeypatch, "paint").strip()
        == """\
Usage: root paint [OPTIONS] PICTURES...

 Paint pictures anew.

 Each takes a while.

 captioner paint cat.png
 captioner paint dog.png --how ink

╭─ Arguments ──────────────────────────────────────────────────────────────────╮
│ PICTURES...             What to paint. [required]                            │
╰──────────────────────────────────────────────────────────────────────────────╯
╭─ Options ────────────────────────────────────────────────────────────────────╮
│ -o, --out PATH          A `.png`.                                            │
│     --how WORD          With what. [oil, ink] [default: oil]                 │
│     --coats N>=1        How often. [default: 2]                              │
│     --drops 0..1000000  Of water. [default: 9]                               │
│     --wet 0..1          How wet. [default: 0.5]                              │
│     --dry/--no-dry      Let it dry. [default: on]                            │
│     --fast/--fine       In a hurry.                                          │
│     --key TEXT          Of the studio. [or the environment's STUDIO_KEY]     │
│     --help              Show this message and exit.                          │
╰──────────────────────────────────────────────────────────────────────────────╯
╭─ Rarely ─────────────────────────────────────────────────────────────────────╮
│     --dust              Some dust.                                           │
╰──────────────────────────────────────────────────────────────────────────────╯"""
    )


def test_the_page_of_a_group_lists_its_verbs(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    commands, afterwards, options = page(line, monkeypatch).split("╭─ ")[1:]
    assert commands.startswith("Commands ")
    assert "│ paint  Paint pictures anew." in commands
    assert afterwards.startswith("Afterwards ")
    assert "│ wash   Wash the brushes." in afterwards
    assert "--help" in options


def test_a_required_option_and_an_epilog_are_told(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = page(line, monkeypatch, "wash")
    assert "--colour TEXT  Which one. [required]" in shown
    assert shown.rstrip().endswith("Ask with --help.")


def test_nothing_is_lost_on_a_narrow_terminal(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = page(line, monkeypatch, "paint", width=40)
    assert all(len(one) <= 40 for one in shown.splitlines())
    assert "".join("".join(one.strip("│ ").split()) for one in shown.splitlines()).count("STUDIO_KEY") == 1
    assert "│ -o, --out PATH                       │\n│       A `.png`.                      │" in shown
    assert "│ paint  Paint pictures anew.          │" in page(line, monkeypatch, width=40)  # there is room beside it


def test_colours_are_for_terminals_alone(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in page(line, monkeypatch, "paint")
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = page(line, monkeypatch, "paint")
    assert "\x1b[1;36m--out\x1b[0m \x1b[33mPATH\x1b[0m" in shown
    assert "What to paint. \x1b[31m[required]\x1b[0m" in shown
    assert "With what. \x1b[2m[oil, ink]\x1b[0m \x1b[2m[default: oil]\x1b[0m" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in page(line, monkeypatch, "paint")


def test_frames_are_of_what_can_be_printed(line: CommandLine) -> None:
    shown = CliRunner(charset="ascii").invoke(line, ["wash", "--help"]).stdout
    assert "\n+- Options --" in shown
    assert "\n|     --colour TEXT  Which one. [required]" in shown


def test_a_page_loads_nothing_that_draws() -> None:
    """It would be a third of its time."""
    code = (
        "import sys\nfrom captioner.cli.main import app\ntry: app(['generate', '--help'])\n"
        "except SystemExit: print({'rich', 'torch'} & sys.modules.keys(), file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "set()\n"
