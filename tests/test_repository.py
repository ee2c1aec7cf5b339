"""The repository keeps its own promises: style, no torch before it is needed, no import that points upwards."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff(command: list[str]) -> None:
    done = run(sys.executable, "-m", "ruff", *command, ".")
    assert done.returncode == 0, done.stdout


def test_mypy() -> None:
    """The configuration and the packages that it reads stand in pyproject.toml."""
    done = run(sys.executable, "-m", "mypy", "--no-error-summary")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "large"),
    [
        ("captioner.cli.main", {"torch", "transformers", "pyarrow", "numpy", "PIL"}),
        ("eval.__main__", {"torch", "transformers", "pyarrow", "numpy", "PIL"}),
        ("training.data.__main__", {"torch", "transformers", "pyarrow"}),
        ("training.recipe", {"torch", "transformers", "pyarrow"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_command_line_imports_nothing_large_for_its_help(module: str, large: set[str]) -> None:
    done = run(sys.executable, "-c", f"import sys, {module}; sys.exit(', '.join({large} & sys.modules.keys()) or None)")
    assert done.returncode == 0, done.stderr
