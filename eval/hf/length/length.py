"""words for the `evaluate` library: `evaluate.load("eval/hf/length")`."""

from eval import metrics
from eval.hf.modules import TextModule


class Length(TextModule):
    metric = metrics.length
