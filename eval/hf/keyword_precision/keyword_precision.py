"""keyword precision for the `evaluate` library: `evaluate.load("eval/hf/keyword_precision")`."""

from eval import metrics
from eval.hf.modules import TextModule


class KeywordPrecision(TextModule):
    metric = metrics.keyword_precision
