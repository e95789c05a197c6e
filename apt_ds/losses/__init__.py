"""What a step minimises: the task's loss, the memory-lean cross-entropy, distillation."""
