"""Evaluate a finished model: `python launchers/evaluate.py --model out/model --suite open-llm`.

One of --suite or --tasks (lm-evaluation-harness), --perplexity, --efficiency.
"""

from apt_ds.commands.evaluate import main, script

__all__ = ["main"]

if __name__ == "__main__":
    script()
