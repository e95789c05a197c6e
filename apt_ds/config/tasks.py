"""The tasks a run can be about, and the kind of model each is asked of. Plain values.

A kind is what sits on the model's end: LANGUAGE_MODEL (next tokens), CLASSIFICATION (classes, or one number),
ANSWERS (a span of the context), GENERATION (a text from a text).
"""

from __future__ import annotations

LANGUAGE_MODEL, CLASSIFICATION, ANSWERS, GENERATION = "language model", "classification", "answers", "generation"

INSTRUCTIONS = "instructions"
GLUE_TASKS = ("sst2", "mnli", "qnli", "qqp", "mrpc", "cola", "rte", "stsb")
SQUADS = ("squad", "squad_v2")
# article to summary, and any text from any text
TEXTS = ("cnndm", "text")
TASKS = (INSTRUCTIONS, *GLUE_TASKS, *SQUADS, *TEXTS)
