"""modifier recall for the `evaluate` library: `evaluate.load("eval/hf/modifier_recall")`."""

from eval import metrics
from eval.hf.modules import TextModule


class ModifierRecall(TextModule):
    metric = metrics.modifier_recall
