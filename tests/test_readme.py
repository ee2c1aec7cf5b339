"""The README keeps its word: its commands run as they are printed, its example too, its links lead somewhere."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from captioner import zoo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLIP = "models--Salesforce--blip-image-captioning-base"


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def readme_commands(section: str = README) -> list[str]:
    """The commands of the README's indented blocks, without their comments."""
    lines = re.findall(r"^    ((?:captioner|python -m) .+?)(?:  +#.*)?$", section, re.MULTILINE)
    return [line.strip() for line in lines]


@pytest.mark.parametrize("line", readme_commands())
def test_the_readme_names_options_that_exist(line: str) -> None:
    words = shlex.split(line.split(" < ")[0])
    program = [sys.executable, "-m", "captioner"] if words[0] == "captioner" else [sys.executable, "-m", words[2]]
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    if not options:
        return
    verbs = words[1:] if words[0] == "captioner" else words[3:]
    verb = verbs[: 2 if verbs[0] in ("index", "ensemble", "terms", "convert") else 1]
    shown = shown_help(*program, *(word for word in verb if not word.startswith("--")))
    for option in options:
        assert option in shown


@cache
def shown_help(*command: str) -> str:
    shown = run(*command, "--help")
    assert shown.returncode == 0, shown.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout)


def draw_pairs(folder: Path, count: int, prompt: str) -> None:
    """Pictures, each with its prompt in a .txt beside it."""
    folder.mkdir()
    for number in range(count):
        Image.effect_noise((64, 64), 2 * number + 20).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(prompt.format(number + 2))


def leave(folder: Path, count: int) -> None:
    """Take all pictures out of a folder but the first."""
    for file in folder.iterdir():
        if int(file.stem) >= count:
            file.unlink()


@pytest.fixture
def newcomer(tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> Path:
    """A folder with everything that the README's commands name, and a Hub cache with a tiny BLIP and tagger in it."""
    names = (
        "cat.png",
        "other.webp",
        "third.jpg",
        "new.png",
        "photos/a.jpg",
        "photos/more/b.jpg",
        "dataset/10_sks/1.png",
    )
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64 + number, 48), 60).convert("RGB").save(tmp_path / name)
    parameters = PngInfo()
    parameters.add_text("parameters", "a fox in the snow\nSteps: 20, Sampler: Euler a, Seed: 1, Size: 64x64")
    (tmp_path / "drawn").mkdir()
    for name in ("img.png", "drawn/1.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name, pnginfo=parameters)
    (tmp_path / "dataset/10_sks/1.txt").write_text("snow, fox")
    (tmp_path / "prompts.txt").write_text("a cat, oil painting\na dog, oil painting\n" * 2)
    (tmp_path / "list.txt").write_text("cat.png\nphotos\n")
    (tmp_path / "texts.csv").write_text("truth,prediction\na cat,a dog\na red fox,a red cat\n")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    draw_pairs(tmp_path / "my-pictures", 40, "a red painting of {} cats in a forest")
    draw_pairs(tmp_path / "validation", 10, "a drawing of {} towers by the sea")
    for family, repository in (("blip", BLIP), ("tagger", "models--SmilingWolf--wd-swinv2-tagger-v3")):
        shutil.copytree(tiny_checkpoint(family), tmp_path / "hub" / repository / "snapshots/0")
        (tmp_path / "hub" / repository / "refs").mkdir()
        (tmp_path / "hub" / repository / "refs/main").write_text("0")
    return tmp_path


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


BIN = Path(sys.executable).parent


def test_a_quick_program_says_and_returns_what_a_new_one_does(quick_bin: Path, tmp_path: Path) -> None:
    told = []
    for folder, settings in ((BIN, {}), (quick_bin, {}), (quick_bin, {"OMP_WAIT_POLICY": "passive"})):
        command = [f"{folder}/captioner", "read", "-", "nope.png"]
        environment = os.environ | settings  # what is read as torch is imported: the last one starts anew
        done = subprocess.run(command, cwd=tmp_path, env=environment, input=b"none", capture_output=True)
        told.append((done.returncode, done.stdout, done.stderr))
    assert told[0] == told[1] == told[2]
    assert told[0][0] != 0


@pytest.mark.parametrize(
    ("titles", "is_downloaded"),
    [
        (("Start", "Which part do you need?", "Caption pictures", "Models"), False),
        (("Reference pictures and ensembles", "Train", "Evaluate"), True),
    ],
    ids=["caption", "train and measure"],
)
def test_the_commands_of_the_readme_run_as_they_are_printed(
    newcomer: Path, quick_bin: Path, titles: Sequence[str], is_downloaded: bool
) -> None:
    """By copy and paste, without the network, and without a warning of any package. The first of these commands is a
    new process of Python, as each is to users; other tests start training and evaluation so."""
    if not is_downloaded:
        shutil.rmtree(newcomer / "hub" / BLIP)
    programs = BIN
    for title in titles:
        commands = [line for line in readme_commands(section(title)) if "https://" not in line]
        assert commands
        for line in commands:
            settings = {"PATH": os.pathsep.join([str(programs), str(BIN), os.environ["PATH"]])}
            done = subprocess.run(
                ["bash", "-c", line], cwd=newcomer, env=os.environ | settings, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            assert not re.search(r"warn|deprecat|kernels|retry", done.stderr, re.IGNORECASE), f"{line}\n{done.stderr}"
            programs = quick_bin
        leave(newcomer / "my-pictures", 8)  # only an index needs its forty, and only an ensemble ten
        leave(newcomer / "validation", 4)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_a_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_contents_of_the_readme_are_its_sections() -> None:
    anchors = set(re.findall(r"\]\(#([^)]+)\)", README))
    titles = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert anchors == {re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_model_and_extra_stands_in_the_readme() -> None:
    for name in zoo.ENTRIES:
        assert f"`{name}`" in section("Models")
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    for extra in settings["options.extras_require"]:
        assert f"| `{extra}` |" in section("Extras and files")


def test_the_readme_example_runs(quick_python: str) -> None:
    [example] = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    done = run(quick_python, "-c", example)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("(384,)") == 2
