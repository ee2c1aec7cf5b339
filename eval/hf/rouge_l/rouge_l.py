"""ROUGE-L for the `evaluate` library: `evaluate.load("eval/hf/rouge_l")`."""

from eval import metrics
from eval.hf.modules import TextModule


class RougeL(TextModule):
    metric = metrics.rouge_l
