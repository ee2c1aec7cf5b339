"""CIDEr-D (COCO) for the `evaluate` library: `evaluate.load("eval/hf/cider_d_coco")`."""

from eval import metrics
from eval.hf.modules import TextModule


class CiderDCoco(TextModule):
    metric = metrics.cider_d_coco
