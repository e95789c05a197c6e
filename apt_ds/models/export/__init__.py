"""How a pruned model is written, and the modelling files that are copied next to it."""
