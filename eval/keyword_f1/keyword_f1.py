"""keyword F1 for the `evaluate` library: `evaluate.load("eval/keyword_f1")`."""

from eval import metrics
from eval.modules import TextModule


class KeywordF1(TextModule):
    metric = metrics.keyword_f1
