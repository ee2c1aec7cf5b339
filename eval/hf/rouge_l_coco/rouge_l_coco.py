"""ROUGE-L (COCO) for the `evaluate` library: `evaluate.load("eval/hf/rouge_l_coco")`."""

from eval import metrics
from eval.hf.modules import TextModule


class RougeLCoco(TextModule):
    metric = metrics.rouge_l_coco
