"""What `pip install` brings: an sdist from a clean copy of the tree, a wheel from the sdist, run outside of both."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import captioner
from captioner.errors import EXTRAS

ROOT = Path(__file__).parents[1]
SHIPPED = ("captioner", "training", "eval", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


BUILD = """
import os, sys, tarfile
from setuptools.build_meta import build_sdist, build_wheel
out = sys.argv[1]
sdist = build_sdist(out)
with tarfile.open(f"{out}/{sdist}") as archive:
    archive.extractall(out, filter="data")
os.chdir(f"{out}/{sdist.removesuffix('.tar.gz')}")
build_wheel(out)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a clean copy, and the wheel that is built of the sdist alone. It takes no network:
    the build tool is one of the tests' own needs."""
    folder = tmp_path_factory.mktemp("package")
    for name in SHIPPED:
        source, target = ROOT / name, folder / "tree" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=folder / "tree", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (file,) = built.glob("*.whl")
    return file


def test_the_wheel_holds_the_model_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"captioner", "training", "eval"}
    for needed in (
        "captioner/py.typed",
        "captioner/bundled/mini/model.safetensors",
        "captioner/bundled/clip/merges.txt.gz",
        "eval/templates/report.html.j2",
        "eval/hf/bleu4/bleu4.py",
    ):
        assert needed in names
    modules = {str(file.relative_to(ROOT)) for room in SHIPPED[:3] for file in (ROOT / room).rglob("*.py")}
    assert modules <= set(names)
    static = {str(file.relative_to(ROOT)) for file in (ROOT / "captioner" / "web" / "static").iterdir()}
    assert {"captioner/web/static/index.html", *static} <= set(names)
    assert wheel.stat().st_size < 50_000_000


def test_what_was_installed_writes_a_caption_with_none_of_the_extras(wheel: Path, tmp_path: Path) -> None:
    """In a folder of its own, before everything else on the path: the tree of the tests plays no part. Nor do the
    packages of the extras: None in sys.modules is no such package to Python's import."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (entry_points,) = site.glob("captioner-*.dist-info/entry_points.txt")
    assert "captioner = captioner.__main__:main" in entry_points.read_text()
    picture = ROOT / "examples" / "pictures" / "cat.jpg"
    start = f"import sys; sys.modules.update(dict.fromkeys({list(EXTRAS)})); import captioner.__main__ as program; "
    start += "print(program.__file__, flush=True); program.main()"
    paths = os.pathsep.join([str(site), sysconfig.get_paths()["purelib"]])
    done = subprocess.run(
        [sys.executable, "-c", start, "generate", str(picture), "--quality", "fast"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    where, caption = done.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert caption == captioner.load("mini").generate(picture, quality="fast").text


def test_one_version_from_one_place(built: Path, wheel: Path) -> None:
    assert wheel.name.startswith(f"captioner-{captioner.__version__}-")
    assert (built / f"captioner-{captioner.__version__}.tar.gz").is_file()


def test_readers_of_types_see_the_public_names_as_they_are() -> None:
    """They follow no `__getattr__`: what it gives must be imported for them from the same modules, and it hidden."""
    tree = ast.parse((ROOT / "captioner" / "__init__.py").read_text())
    [split] = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(split.test) == "TYPE_CHECKING"
    imported = {
        alias.name: node.module for node in split.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == captioner._PUBLIC
    assert sorted(captioner.__all__) == sorted(imported)
    assert any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in split.orelse)
    for name, module in imported.items():
        assert getattr(captioner, name).__module__ == module
    with pytest.raises(AttributeError, match="no attribute 'generate'"):
        captioner.generate  # noqa: B018


def test_the_core_is_thin_and_every_extra_that_is_named_exists() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    core = settings["options"]["install_requires"].replace("-", "_")
    extras = settings["options.extras_require"]
    for package, extra in EXTRAS.items():
        assert package not in core
        assert extra in extras
