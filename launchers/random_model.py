"""A model folder of random weights in a published shape: `python launchers/random_model.py FOLDER --shape llama2-7b`.

It stands in for weights that cannot be downloaded: memory, time and files are those of the published model.
"""

from apt_ds.commands.random_model import main, script

__all__ = ["main"]

if __name__ == "__main__":
    script()
