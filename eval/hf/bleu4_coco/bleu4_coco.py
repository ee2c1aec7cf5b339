"""BLEU-4 (COCO) for the `evaluate` library: `evaluate.load("eval/hf/bleu4_coco")`."""

from eval import metrics
from eval.hf.modules import TextModule


class Bleu4Coco(TextModule):
    metric = metrics.bleu4_coco
