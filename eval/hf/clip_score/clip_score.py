"""CLIPScore for the `evaluate` library: `evaluate.load("eval/hf/clip_score")`; references are paths of pictures."""

import datasets
import evaluate
import numpy as np

from captioner.images import open_image
from eval import metrics
from eval.clip import Clip, clip_scores


class ClipScore(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=f"{metrics.clip_score.label}: {metrics.clip_score.meaning}.",
            citation="",
            inputs_description="predictions: list of texts; references: list of picture files; clip: folder or Hub id.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str], clip: str) -> dict[str, float | list[float]]:
        model = Clip(clip)
        pictures = np.concatenate([model.embed_images([open_image(path)]) for path in references])
        values = clip_scores(pictures, model.embed_texts(predictions))
        return {"clip_score": float(values.mean()), "per_item": values.tolist()}
