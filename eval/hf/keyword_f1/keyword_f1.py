"""keyword F1 for the `evaluate` library: `evaluate.load("eval/hf/keyword_f1")`."""

from eval import metrics
from eval.hf.modules import TextModule


class KeywordF1(TextModule):
    metric = metrics.keyword_f1
