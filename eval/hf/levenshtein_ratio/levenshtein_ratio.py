"""Levenshtein ratio for the `evaluate` library: `evaluate.load("eval/hf/levenshtein_ratio")`."""

from eval import metrics
from eval.hf.modules import TextModule


class LevenshteinRatio(TextModule):
    metric = metrics.levenshtein_ratio
