"""keyword recall for the `evaluate` library: `evaluate.load("eval/hf/keyword_recall")`."""

from eval import metrics
from eval.hf.modules import TextModule


class KeywordRecall(TextModule):
    metric = metrics.keyword_recall
