"""The repository keeps its own promises: style, the README's commands and example, no torch before it is needed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff(command: list[str]) -> None:
    done = run(sys.executable, "-m", "ruff", *command, ".")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["captioner.cli", "eval.__main__", "training.data.__main__", "training.recipe"])
def test_a_command_line_imports_no_torch_for_its_help(module: str) -> None:
    done = run(sys.executable, "-c", f"import sys, {module}; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_nothing_points_upwards() -> None:
    arrows = re.compile(r"^\s*(from|import) (training|eval)\b", re.MULTILINE)
    guilty = [file.name for file in (ROOT / "captioner").rglob("*.py") if arrows.search(file.read_text("utf-8"))]
    assert guilty == []


def readme_commands() -> list[str]:
    """`captioner …` and `python -m …` lines of the README's indented blocks."""
    lines = re.findall(r"^    ((?:captioner|python -m) .+?)(?:  +#.*)?$", README, re.MULTILINE)
    return [line.split(" < ")[0] for line in lines]


@pytest.mark.parametrize("line", readme_commands())
def test_the_readme_names_options_that_exist(line: str) -> None:
    words = shlex.split(line.replace("…", "address"))
    program = [sys.executable, "-m", "captioner"] if words[0] == "captioner" else [sys.executable, "-m", words[2]]
    verb = [word for word in words[1 if words[0] == "captioner" else 3 :][:1] if not word.startswith("-")]
    shown = run(*program, *verb, "--help")
    assert shown.returncode == 0, shown.stderr
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout)
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in plain


def test_the_readme_example_runs() -> None:
    [example] = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    done = run(sys.executable, "-c", example)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(384,)") == 2
