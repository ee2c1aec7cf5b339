"""ROUGE-L for the `evaluate` library: `evaluate.load("eval/rouge_l")`."""

from eval import metrics
from eval.modules import TextModule


class RougeL(TextModule):
    metric = metrics.rouge_l
