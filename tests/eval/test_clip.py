"""CLIPScore: against transformers' own CLIP, and in a report."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from captioner.errors import BadCheckpoint
from eval.clip import Clip, clip_scores
from eval.measure import Measures
from eval.report import report


@pytest.fixture
def folder(tiny_checkpoint) -> Path:
    return tiny_checkpoint("clip")


def picture(red: int) -> Image.Image:
    return Image.new("RGB", (20, 20), (red, 120, 255 - red))


def test_equals_transformers_and_cuts_long_texts(folder: Path) -> None:
    images, texts = [picture(10), picture(240)], ["a fox", "far too long, " * 20]
    clip = Clip(str(folder))
    ours = clip_scores(clip.embed_images(images), clip.embed_texts(texts))
    tokenizer, model = CLIPTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder).eval()
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    with torch.inference_mode():
        out = model(**tokens, **pixels)
    expected = 2.5 * torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds).clamp(min=0)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)
    assert len(set(ours.round(6))) == 2


def test_never_negative() -> None:
    assert clip_scores(np.array([[1.0, 0]]), np.array([[-1.0, 0]])).tolist() == [0]


def test_in_a_report_texts_alone_have_a_score(folder: Path, tmp_path: Path, tiny_checkpoint) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        picture(80 * number).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text("a fox")
    (tmp_path / "said.csv").write_text("id,prediction\n0.png,a fox\n1.png,an owl\n")
    models = [f"said={tmp_path / 'said.csv'}", f"vit={tiny_checkpoint('direct')}"]
    loops: list[str] = []

    def track(steps, total, what):
        loops.append(what)
        return steps

    chosen = {"measures": Measures(clip=str(folder)), "resamples": 200, "gallery": 1}
    written = report([str(data)], models, tmp_path / "out", track, **chosen)
    said, vit = (model["figures"]["clip_score"] for model in written["models"])
    assert (said["n"], vit["n"]) == (2, 0)
    assert len(loops) == 2
    report([str(data)], models, tmp_path / "out", track, **chosen)
    assert len(loops) == 2  # the pictures' vectors were kept, too


def test_what_is_no_clip_is_refused(tiny_checkpoint) -> None:
    with pytest.raises(BadCheckpoint, match="CLIP or SigLIP"):
        Clip(str(tiny_checkpoint("blip")))
