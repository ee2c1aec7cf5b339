"""MiniLM cosine for the `evaluate` library: `evaluate.load("eval/cosine")`."""

from eval import metrics
from eval.modules import TextModule


class Cosine(TextModule):
    metric = metrics.cosine
