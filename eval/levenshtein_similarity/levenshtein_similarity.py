"""Levenshtein similarity for the `evaluate` library: `evaluate.load("eval/levenshtein_similarity")`."""

from eval import metrics
from eval.modules import TextModule


class LevenshteinSimilarity(TextModule):
    metric = metrics.levenshtein_similarity
