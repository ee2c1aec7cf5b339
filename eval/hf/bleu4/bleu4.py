"""BLEU-4 for the `evaluate` library: `evaluate.load("eval/hf/bleu4")`."""

from eval import metrics
from eval.hf.modules import TextModule


class Bleu4(TextModule):
    metric = metrics.bleu4
