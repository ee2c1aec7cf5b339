"""words for the `evaluate` library: `evaluate.load("eval/length")`."""

from eval import metrics
from eval.modules import TextModule


class Length(TextModule):
    metric = metrics.length
