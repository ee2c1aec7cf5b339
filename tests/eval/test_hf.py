"""Every metric as a module of the `evaluate` library."""

from collections.abc import Iterator
from pathlib import Path

import evaluate
import numpy as np
import pytest
from PIL import Image

from eval import metrics
from eval.clip import Clip, clip_scores

OF_TEXTS = (
    *(*metrics.TEXT_METRICS, *metrics.modifier_metrics()),
    *(metrics.cosine, metrics.subject_cosine, metrics.rouge_l_coco, metrics.cider_d_coco),
)
FOLDER = Path(metrics.__file__).parent / "hf"


@pytest.fixture(scope="module")
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("evaluate.config.HF_MODULES_CACHE", folder)
        yield folder


@pytest.mark.parametrize("metric", OF_TEXTS, ids=lambda metric: metric.name)
def test_evaluate_loads_it(metric: metrics.TextMetric, modules_cache: str) -> None:
    module = evaluate.load(str(FOLDER / metric.name), cache_dir=modules_cache)
    said, truth = ["a red fox, oil", "a blue owl, 4k"], ["a red fox, oil", "a green owl, oil, 4k"]
    found = module.compute(predictions=said, references=truth)
    expected = metric(said, truth)
    assert found[metric.name] == pytest.approx(expected.mean())
    assert found["per_item"] == pytest.approx(expected.tolist())
    several = module.compute(predictions=said, references=[[t, "something else"] for t in truth])
    assert several[metric.name] == pytest.approx(metric(said, [[t, "something else"] for t in truth]).mean())


def test_where_there_is_nothing_to_measure_it_says_so_alone(
    modules_cache: str, recwarn: pytest.WarningsRecorder
) -> None:
    module = evaluate.load(str(FOLDER / "modifier_f1"), cache_dir=modules_cache)
    found = module.compute(predictions=["a cat"], references=["a dog"])  # neither has a modifier
    assert np.isnan([found["modifier_f1"], *found["per_item"]]).all()
    assert [str(warning.message) for warning in recwarn if "empty" in str(warning.message)] == []


def test_evaluate_loads_clip_score(modules_cache: str, tmp_path: Path, tiny_checkpoint) -> None:
    red, folder = Image.new("RGB", (20, 20), (200, 10, 10)), str(tiny_checkpoint("clip"))
    red.save(tmp_path / "red.png")
    module = evaluate.load(str(FOLDER / "clip_score"), cache_dir=modules_cache)
    found = module.compute(predictions=["a fox"], references=[str(tmp_path / "red.png")], clip=folder)
    clip = Clip(folder)
    assert found["clip_score"] == pytest.approx(
        clip_scores(clip.embed_images([red]), clip.embed_texts(["a fox"]))[0], abs=1e-6
    )
