"""MiniLM cosine for the `evaluate` library: `evaluate.load("eval/hf/cosine")`."""

from eval import metrics
from eval.hf.modules import TextModule


class Cosine(TextModule):
    metric = metrics.cosine
