"""Levenshtein ratio for the `evaluate` library: `evaluate.load("eval/levenshtein_ratio")`."""

from eval import metrics
from eval.modules import TextModule


class LevenshteinRatio(TextModule):
    metric = metrics.levenshtein_ratio
