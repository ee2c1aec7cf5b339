"""CIDEr-D for the `evaluate` library: `evaluate.load("eval/cider_d")`."""

from eval import metrics
from eval.modules import TextModule


class CiderD(TextModule):
    metric = metrics.cider_d
