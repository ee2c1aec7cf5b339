"""What a finished run tells: a card that may be published, curves that can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, metadata_load
from PIL import Image
from transformers import TrainerState

from training import blip
from training.blip import BlipRecipe
from training.finish import front_matter, write_curves
from training.job import Job


def job(base: str, data: list[str], verb: str = "generate") -> Job:
    recipe = BlipRecipe(data=data, base=base)
    return Job(recipe, None, None, None, None, None, verb=verb, base=base)


def test_the_card_names_no_folder_of_this_machine(
    tiny_checkpoint, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--base", str(tiny_checkpoint("blip")), "--data", str(pairs), "--out", str(tmp_path / "my run")]
    options += ["--max-steps", "2", "--eval-every", "1", "--samples", "0"]
    monkeypatch.setattr("sys.orig_argv", ["/usr/bin/python", "-m", "training.blip", *options])
    blip.main(options)
    for name in ("README.md", "training_data.json"):
        content = (tmp_path / "my run" / name).read_text()
        assert str(tmp_path) not in content
        assert str(pairs.parent) not in content
    card = (tmp_path / "my run/README.md").read_text()
    assert (
        f"-m training.blip --base {tiny_checkpoint('blip').name} --data {pairs.name} --out 'my run' --max-steps 2"
        in card
    )
    assert "| on the validation split | best: step 1, 2 pictures |" in card
    assert "captioner generate --model 'my run' picture.png" in card
    assert metadata_load(tmp_path / "my run/README.md") == {
        "library_name": "captioner",
        "pipeline_tag": "image-to-text",
        "tags": ["image-to-text", "prompt", "captioner"],
    }


def test_base_licence_and_data_sets_are_named_where_they_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    revision = "0" * 40
    repository = tmp_path / "models--Salesforce--blip-image-captioning-base"
    folder = repository / "snapshots" / revision
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    (folder / "model.safetensors").touch()
    (folder / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n# BLIP\n")
    file = tmp_path / "README.md"
    file.write_text(
        f"---\n{front_matter(job('blip', ['hub:me/cats@2', 'diffusiondb:/data/ddb', '/data/mine']))}\n---\n"
    )
    described = metadata_load(file)
    assert described["base_model"] == "Salesforce/blip-image-captioning-base"
    assert described["license"] == "bsd-3-clause"
    assert described["datasets"] == ["me/cats", "poloclub/diffusiondb"]
    assert "license" not in front_matter(job("somebody/else", ["/data/mine"]))
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert "license" not in front_matter(job("blip", ["/data/mine"]))
    assert "base_model: somebody/else" in front_matter(job("somebody/else", ["/data/mine"]))
    assert "pipeline_tag: image-feature-extraction" in front_matter(job("", [], verb="embed"))


def drawn(tmp_path: Path, history: list[dict], best: int | None = None) -> np.ndarray:
    write_curves(TrainerState(log_history=history, best_global_step=best), tmp_path / "curves.png")
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]
    return np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"), dtype=int)


def coloured(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture - np.array(colour)).sum(-1) < 30).sum())


BLUE = (31, 119, 180)


def test_a_single_point_is_seen(tmp_path: Path) -> None:
    one = drawn(tmp_path, [{"step": 1, "loss": 2.0}])
    assert coloured(one[:300], BLUE) > 10  # above the legend


def test_the_best_step_is_marked_and_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    history = [{"step": step, "eval_loss": 3.0 - step, "eval_cosine": 0.1 * step} for step in (1, 2, 3)]
    plain, marked = drawn(tmp_path, history), drawn(tmp_path, history, best=2)
    assert coloured(marked, (128, 128, 128)) > coloured(plain, (128, 128, 128))
    assert drawn(tmp_path, []).size


def test_curves_leave_the_backend_of_the_process_alone(tmp_path: Path) -> None:
    import matplotlib

    before = matplotlib.rcParams._get("backend")
    drawn(tmp_path, [{"step": 1, "loss": 2.0}])
    assert matplotlib.rcParams._get("backend") is before
