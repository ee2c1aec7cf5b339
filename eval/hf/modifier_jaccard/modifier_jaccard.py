"""modifier Jaccard for the `evaluate` library: `evaluate.load("eval/hf/modifier_jaccard")`."""

from eval import metrics
from eval.hf.modules import TextModule


class ModifierJaccard(TextModule):
    metric = metrics.modifier_jaccard
