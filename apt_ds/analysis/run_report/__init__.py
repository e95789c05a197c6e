"""The report of one run: a single HTML file, made from the files in the run's output folder."""
