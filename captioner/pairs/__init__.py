"""Pictures with their prompts, wherever they lie: one reader for the index, the ensemble, the training and the report.

`sources.read(["my/pictures", "coco:~/coco@0.5"])` gives records, and says what it left out and why.
"""
