"""CIDEr-D for the `evaluate` library: `evaluate.load("eval/hf/cider_d")`."""

from eval import metrics
from eval.hf.modules import TextModule


class CiderD(TextModule):
    metric = metrics.cider_d
