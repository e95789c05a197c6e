"""The processes of a run: collectives, DeepSpeed, watchdog, signals, exit status, profiler, memory."""
