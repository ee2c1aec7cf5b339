"""subject cosine for the `evaluate` library: `evaluate.load("eval/hf/subject_cosine")`."""

from eval import metrics
from eval.hf.modules import TextModule


class SubjectCosine(TextModule):
    metric = metrics.subject_cosine
