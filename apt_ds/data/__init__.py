"""From files and hub data sets to token batches in a fixed order."""
