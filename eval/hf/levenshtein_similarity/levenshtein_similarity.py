"""Levenshtein similarity for the `evaluate` library: `evaluate.load("eval/hf/levenshtein_similarity")`."""

from eval import metrics
from eval.hf.modules import TextModule


class LevenshteinSimilarity(TextModule):
    metric = metrics.levenshtein_similarity
