"""quick ratio for the `evaluate` library: `evaluate.load("eval/hf/quick_ratio")`."""

from eval import metrics
from eval.hf.modules import TextModule


class QuickRatio(TextModule):
    metric = metrics.quick_ratio
