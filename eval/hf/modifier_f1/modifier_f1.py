"""modifier F1 for the `evaluate` library: `evaluate.load("eval/hf/modifier_f1")`."""

from eval import metrics
from eval.hf.modules import TextModule


class ModifierF1(TextModule):
    metric = metrics.modifier_f1
