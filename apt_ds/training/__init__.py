"""The run: data sets, the loop, one step, rebuild, checkpoints, metrics, report."""
