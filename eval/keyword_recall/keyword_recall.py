"""keyword recall for the `evaluate` library: `evaluate.load("eval/keyword_recall")`."""

from eval import metrics
from eval.modules import TextModule


class KeywordRecall(TextModule):
    metric = metrics.keyword_recall
