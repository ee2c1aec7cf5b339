"""What is loaded for a question, and when."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image

from captioner.contracts import PLAIN_REQUEST, LoadOptions, Request
from captioner.errors import BadInput
from captioner.images import Source
from captioner.images.open import at_once
from captioner.pipeline import Captioner
from captioner.run.questions import Model, Prompts
from captioner.serving.bench import Bench
from captioner.serving.engine import Ask, Picture
from captioner.serving.memories import Memories
from captioner.text.finish import Finish
from tests.chat_server import serving

ASKING = """
import sys
from captioner.cli.main import app
app(sys.argv[1:], standalone_mode=False)
print(*{"torch", "transformers"} & sys.modules.keys())
"""


def test_a_model_of_a_server_costs_no_import_of_torch(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / "red.png")
    with serving() as server:
        words = ["generate", str(tmp_path / "red.png"), "--model", f"openai:{server.address}#painter"]
        done = subprocess.run([sys.executable, "-c", ASKING, *words], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["a red square, oil on canvas", ""], done.stderr


def test_a_picture_is_the_same_whichever_way_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a JPEG is decoded to is known before the model is loaded."""
    file = tmp_path / "large.jpg"
    Image.linear_gradient("L").resize((1100, 1600)).convert("RGB").save(file)
    asked = Prompts(Model("mini", LoadOptions()), Request(), Finish(), "ignore", 10**8)
    in_a_run = asked.look(Source(file.name, file)).image
    assert in_a_run.size == (550, 800)
    seen: list[Image.Image] = []
    captioner = asked.model.loaded
    read = captioner.speaker.read_images
    monkeypatch.setattr(
        captioner.speaker, "read_images", lambda images, *how: seen.extend(images) or read(images, *how)
    )
    captioner.generate([file, file.read_bytes()])
    served = Bench(LoadOptions(), Memories(0), None).open(Ask("mini"), Picture(file.read_bytes()), at_once)
    assert all(picture.tobytes() == in_a_run.tobytes() for picture in (*seen, served.value))
    assert len(seen) == 2


def test_a_picture_is_made_ready_once_the_model_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "large.png"
    Image.linear_gradient("L").resize((500, 300)).convert("RGB").save(file)
    model, source = Model("mini", LoadOptions()), Source(file.name, file)
    before = model.open(source, 10**8)
    assert before.size == (500, 300)
    preprocess = model.loaded.speaker.processor.preprocess
    after = model.open(source, 10**8)
    assert after.size == (preprocess.size, preprocess.size)
    assert torch.equal(preprocess([before]), preprocess([after]))
    assert model.open(source, 10**8, whole=True).size == (500, 300)

    def out_of_memory(image: Image.Image) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(model.loaded.speaker, "ready", out_of_memory)
    assert model.open(source, 10**8).size == (500, 300)  # the model tries, and a run goes on with smaller batches


def test_how_many_batches_at_once_loads_no_model() -> None:
    """A run whose pictures all carry their prompts is asked, too."""
    model = Model("mini", LoadOptions())
    assert model.at_once() == 1
    assert "loaded" not in vars(model)
    assert model.loaded.speaker.at_once == model.at_once() == 1  # on a CPU


@pytest.mark.parametrize(("embedder", "refusal"), [(None, nullcontext()), ("tests/none", pytest.raises(BadInput))])
def test_what_a_model_predicts_makes_an_expectation_of_one_text(
    embedder: str | None, refusal: AbstractContextManager
) -> None:
    """Where texts are embedded in another space, it cannot be compared with them."""
    model = Model("mini", LoadOptions(embedder=embedder)).loaded
    assert isinstance(model, Captioner)
    with refusal:
        model.check_expected(PLAIN_REQUEST.changed(num_candidates=1))
    model.check_expected(PLAIN_REQUEST)
