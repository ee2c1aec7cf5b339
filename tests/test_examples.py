"""What lies under examples/: the scripts run as they are, and the clients ask a real server."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import captioner
from captioner.serving.engine import Engine
from captioner.styles import STYLES
from tests.chat_server import serving
from tests.web.served import served

EXAMPLES = Path(__file__).parent.parent / "examples"
KEY = "a key of the tests"


@pytest.fixture(scope="module")
def example(quick_python: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """What a script says, and how it ends."""

    def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([quick_python, EXAMPLES / script, *arguments], capture_output=True, text=True)

    return run


def test_a_contact_sheet_has_rows_and_columns(example, tmp_path: Path) -> None:
    pictures = [str(file) for file in sorted((EXAMPLES / "pictures").glob("*.jpg"))[:2]]
    sizes = []
    for columns in ("2", "1"):
        out = tmp_path / "new" / f"{columns}.png"
        done = example("contact_sheet.py", *pictures, "--columns", columns, "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        with Image.open(out) as sheet:
            sizes.append(sheet.size)
    assert sizes[0][0] > sizes[1][0]
    assert sizes[0][1] < sizes[1][1]


def test_a_script_for_several_processes_says_how_it_is_started(example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    done = example("fsdp.py", "--data", "nope", "--out", "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Start it by torchrun" in done.stderr


def test_a_long_word_is_broken_and_a_caption_stays_in_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from contact_sheet import TEXT, wrapped

    lines = wrapped("a cat " + "w" * 60 + " sits on a mat, highly detailed", 200)
    assert "".join(lines).replace(" ", "") == "acat" + "w" * 60 + "sitsonamat,highlydetailed"
    assert max(map(TEXT.getlength, lines)) <= 200
    assert lines[0] == "a cat"


def test_without_pictures_a_contact_sheet_says_so(example, tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "nope.png"):
        done = example("contact_sheet.py", name, "--out", tmp_path / "sheet.png")
        assert done.returncode == 1
        assert "There is no picture to draw" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("script", ["train_mini.sh", "train_siblings.sh"])
def test_without_arguments_a_script_says_what_it_needs(script: str) -> None:
    done = subprocess.run(["bash", str(EXAMPLES / script)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs DATA WORK OUT: the data folder" in done.stderr


def test_a_folder_is_captioned_and_the_command_to_review_it_is_told(example, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "pictures" / "cat.jpg", tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    done = example("caption_and_review.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "cat" in (tmp_path / "cat.txt").read_text()
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert f"captioner serve {tmp_path}" in done.stdout


@pytest.fixture(scope="module")
def shown(quick_python: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the two scripts that learn have written, and what they have printed, in one process."""
    folder = tmp_path_factory.mktemp("examples")
    code = """import sys; sys.path.insert(0, sys.argv[1]); folder = sys.argv[2]
import index_and_ensemble, train_and_compare
train_and_compare.main([f"{folder}/trained", "--pairs", "10", "--epochs", "2"])
index_and_ensemble.main([f"{folder}/fitted", "--pairs", "10"])"""
    settings = {"CAPTIONER_CACHE": str(folder / "cache")}
    command = [quick_python, "-c", code, str(EXAMPLES), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"warn|deprecat|kernels|retry", done.stderr, re.IGNORECASE), done.stderr
    return folder, done.stdout


def test_what_is_trained_stands_beside_its_base_in_a_report(shown: tuple[Path, str]) -> None:
    folder, printed = shown
    assert "$ python -m training.direct --data" in printed
    report = json.loads((folder / "trained/report/report.json").read_text())
    means = {model["label"]: model["figures"]["cosine"]["mean"] for model in report["models"]}
    assert means["trained"] > means["mini"]


def test_an_ensemble_is_fitted_and_its_gain_is_told(shown: tuple[Path, str]) -> None:
    folder, printed = shown
    assert (folder / "fitted/ensemble.json").is_file()
    assert re.search(r"The ensemble gains [+-]0\.\d{3} over \w+ \(0\.\d{3}\); 95 % interval .+: (it|more)", printed)


def test_a_base_that_is_no_model_ends_the_script_with_one_sentence(example, tmp_path: Path) -> None:
    done = example("train_and_compare.py", tmp_path / "out", "--base", "nope")
    assert done.returncode == 2
    assert "No model 'nope'" in done.stderr
    assert "Traceback" not in done.stderr


def module_of(file: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"example_{file.parent.name}", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server(quick_python: str) -> Iterator[str]:
    """The address of `captioner serve` with a key, as a user starts it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [quick_python, "-m", "captioner", "serve", "--models", "mini", "--no-page", "--port", str(port)]
    settings = {"CAPTIONER_SERVE_KEY": KEY}
    with subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        address = f"http://127.0.0.1:{port}"
        while True:
            assert run.poll() is None, run.stderr and run.stderr.read()
            try:
                with urllib.request.urlopen(f"{address}/ready", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield address
        run.terminate()


def test_the_comfyui_node_gives_a_text_for_every_picture(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = module_of(EXAMPLES / "comfyui" / "__init__.py")
    monkeypatch.setenv("CAPTIONER_ADDRESS", server)
    monkeypatch.setenv("CAPTIONER_SERVE_KEY", KEY)
    with Image.open(EXAMPLES / "pictures" / "coffee.jpg") as coffee:
        small = np.asarray(coffee.convert("RGB").resize((96, 96)))
    pixels = small.astype(np.float32) / 255
    batch = torch.from_numpy(np.stack([pixels, pixels]))
    names = node.CaptionerPrompt.INPUT_TYPES()["required"]
    assert not {"address", "key"} & set(names)  # a workflow travels with its pictures
    make = getattr(node.NODE_CLASS_MAPPINGS["CaptionerPrompt"](), node.CaptionerPrompt.FUNCTION)
    (texts,) = make(batch, 2, "", "sks style")
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert texts[0].startswith("sks style, ")
    beams = names["num_beams"][1]["default"]
    plain = captioner.load("mini").generate(Image.fromarray(small)).text
    assert make(batch[:1], beams, "", "") == ([plain],) != make(batch[:1], 3, "", "")
    with pytest.raises(RuntimeError, match="blip-large"):
        make(batch[:1], 2, "blip-large", "")
    monkeypatch.setenv("CAPTIONER_SERVE_KEY", "wrong")
    with pytest.raises(RuntimeError, match="key"):
        make(batch[:1], 2, "", "")
    monkeypatch.setenv("CAPTIONER_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="captioner serve"):
        make(batch[:1], 2, "", "")


def test_the_comfyui_node_asks_a_chat_model_in_a_style_or_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    node = module_of(EXAMPLES / "comfyui" / "__init__.py").CaptionerPrompt
    assert node.INPUT_TYPES()["optional"]["style"][0] == ["", *STYLES]
    with serving() as chat:
        engine = Engine([f"openai:{chat.address}#painter"])
        engine.start()
        with served(None, engine) as address:
            monkeypatch.setenv("CAPTIONER_ADDRESS", address)
            for asked in ({"style": "tags"}, {"instruction": "Which colour?"}):
                texts = node().prompts(torch.ones(1, 8, 8, 3), 0, "", "", **asked)
                assert texts == (["a white square, oil on canvas"],)
            with pytest.raises(RuntimeError, match="one of the two"):
                node().prompts(torch.ones(1, 8, 8, 3), 0, "", "", "tags", "Which colour?")
        engine.close()
    said = [part["text"] for body in chat.bodies for part in body["messages"][0]["content"] if part["type"] == "text"]
    assert said == [STYLES["tags"].instruction, "Which colour?"]


def test_the_space_gives_several_texts_and_says_what_is_wrong(server: str, tmp_path: Path) -> None:
    space = module_of(EXAMPLES / "space" / "app.py")
    coffee = EXAMPLES / "pictures" / "coffee.jpg"
    texts = space.prompts(str(coffee), 3, server, KEY)
    drawn = captioner.load("mini").generate(coffee, num_candidates=3)  # mini's own way, which is no search
    assert texts == list(dict.fromkeys([drawn.text, *(candidate.text for candidate in drawn.candidates)]))
    assert 1 < len(texts) <= 3
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="picture"):
        space.prompts(str(broken), 3, server, KEY)
    with pytest.raises(ValueError, match="does not answer"):
        space.prompts(str(EXAMPLES / "pictures" / "cat.jpg"), 3, "http://127.0.0.1:9", KEY)
