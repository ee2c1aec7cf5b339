"""modifier precision for the `evaluate` library: `evaluate.load("eval/hf/modifier_precision")`."""

from eval import metrics
from eval.hf.modules import TextModule


class ModifierPrecision(TextModule):
    metric = metrics.modifier_precision
