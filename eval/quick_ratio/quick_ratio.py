"""quick ratio for the `evaluate` library: `evaluate.load("eval/quick_ratio")`."""

from eval import metrics
from eval.modules import TextModule


class QuickRatio(TextModule):
    metric = metrics.quick_ratio
