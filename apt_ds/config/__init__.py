"""Options, presets, DeepSpeed JSON, schedules and error types: plain values and pure functions."""
