"""The repository keeps its own promises: style, no torch before it is needed, no import that points upwards."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def requirements(text: str) -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {canonicalize_name(one.name): one for one in map(Requirement, filter(None, lines))}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-newest.txt"])
def test_pinned_versions_are_such_as_are_asked_for(name: str) -> None:
    pinned = requirements((ROOT / name).read_text(encoding="utf-8"))
    config = setup()
    for asked in (config["options"]["install_requires"], *config["options.extras_require"].values()):
        for package, requirement in requirements(asked).items():
            for pin in pinned[package].specifier if package in pinned else ():
                assert requirement.specifier.contains(pin.version), (package, pin.version)


def test_a_forge_tests_every_python_that_is_promised() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    assert setup()["options"]["python_requires"] == f">={matrix['python'][0]}"
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    for versions in filter(None, (added["versions"] for added in matrix["include"])):
        assert (ROOT / versions).is_file()
