"""The tasks that each architecture can be trained on, and the task type of each."""

from __future__ import annotations

from apt_ds.config.tasks import (
    ANSWERS,
    CLASSIFICATION,
    GENERATION,
    GLUE_TASKS,
    INSTRUCTIONS,
    LANGUAGE_MODEL,
    SQUADS,
    TEXTS,
)

# task to kind, for each family of architectures; those that write answer everything with a text
DECODER = {INSTRUCTIONS: LANGUAGE_MODEL}
ENCODER = dict.fromkeys(GLUE_TASKS, CLASSIFICATION) | dict.fromkeys(SQUADS, ANSWERS)
WRITER = dict.fromkeys((*GLUE_TASKS, *TEXTS), GENERATION)
FAMILIES = {"llama": DECODER, "mistral": DECODER, "bert": ENCODER, "roberta": ENCODER, "t5": WRITER}
