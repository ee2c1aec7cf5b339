"""keyword precision for the `evaluate` library: `evaluate.load("eval/keyword_precision")`."""

from eval import metrics
from eval.modules import TextModule


class KeywordPrecision(TextModule):
    metric = metrics.keyword_precision
