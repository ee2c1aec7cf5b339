"""Each metric as a module of the `evaluate` library: `evaluate.load("eval/hf/levenshtein_ratio")`.

The folders eval/hf/<metric>/ hold one small class each; what they share is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import datasets
import evaluate
import numpy as np

from eval.metrics import TextMetric


class TextModule(evaluate.Metric, ABC):
    """`compute(predictions=[…], references=[…])` gives the mean under the metric's name, and `per_item`.

    References are one text an item, or a list of texts. It is abstract, so that `evaluate` takes the subclass.
    """

    @property
    @abstractmethod
    def metric(self) -> TextMetric: ...

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=f"{self.metric.label}: {self.metric.meaning}.",
            citation="",
            inputs_description="predictions: list of texts; references: list of texts, or of lists of texts.",
            features=[
                datasets.Features({"predictions": text, "references": text}),
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            ],
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float | list[float]]:
        values = self.metric(predictions, references)
        measured = values[~np.isnan(values)]
        mean = float(measured.mean()) if measured.size else float("nan")  # numpy warns of a mean of nothing
        return {self.metric.name: mean, "per_item": values.tolist()}
