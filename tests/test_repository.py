"""The repository keeps its own promises: style, no torch before it is needed, no import that points upwards."""

import configparser
import http.server
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
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
    alone = {added["extra"] for added in workflow["jobs"]["extras"]["strategy"]["matrix"]["include"]}
    assert alone == {"core", *setup()["options.extras_require"]} - {"test"}


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not packaged for this machine")
    done = run(hadolint, "--failure-threshold", "style", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def is_healthy(check: str, port: str) -> bool:
    """What the check says of a service that answers, in a container that Docker gave the proxies of its settings."""

    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *given: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _, *arguments = json.loads(check.partition("CMD")[2].replace(port, str(server.server_port)))
        proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:1")
        done = subprocess.run([sys.executable, *arguments], env=os.environ | proxies, timeout=60, check=False)
        server.shutdown()
    return done.returncode == 0


def test_the_container_is_one_that_can_be_built_without_an_engine() -> None:
    """`.ci/container.py` knows every instruction; health, port and command of the Dockerfile and compose file agree."""
    steps = runpy.run_path(str(ROOT / ".ci/container.py"))["read"]((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    last = dict(steps)
    command = json.loads(last["CMD"])
    port = command[command.index("--port") + 1]
    assert last["USER"] not in ("root", "0")
    assert last["EXPOSE"] == port
    assert f"127.0.0.1:{port}/health" in last["HEALTHCHECK"]
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    arguments = {rest.partition("=")[0] for name, rest in steps if name == "ARG"}
    for service in services.values():
        assert [published.split(":")[-1] for published in service["ports"]] == [port]
        assert [mounted.split(":")[1] for mounted in service["volumes"]] == json.loads(last["VOLUME"])
        if isinstance(service["build"], dict):
            assert service["build"]["args"].keys() <= arguments
    assert is_healthy(last["HEALTHCHECK"], port)
    copied = {file for name, rest in steps if name == "COPY" for file in rest.split()[:-1]}
    assert {"captioner", "training", "eval", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= copied
    for file in copied:
        assert (ROOT / file).exists()
