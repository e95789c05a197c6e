"""Scripts in processes that can import transformers but not apt_ds. A process with all libraries forks them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support import multiprocess

# For each line of stdin, forks a process that runs a script. Prints its status, and its traceback if it failed.
SERVER = """
import json, os, sys, traceback
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, dynamic_module_utils
for line in sys.stdin:
    script, argument, modules = json.loads(line)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        with open(ours) as source:
            text = source.read()
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text]), flush=True)
        continue
    status = 0
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.chdir(os.path.dirname(argument))
    sys.argv = ["-c", argument]
    os.environ["HF_MODULES_CACHE"] = dynamic_module_utils.HF_MODULES_CACHE = modules
    try:
        exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
    except BaseException:
        status = 1
        os.write(theirs, traceback.format_exc().encode())
    os._exit(status)
"""


class Elsewhere:
    """The process that forks. It starts with the first script and ends with this process, which closes its stdin."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, script: str, argument: Path) -> None:
        """Run a script in a fresh process.

        Args:
            script: the text of the script.
            argument: its only argument, a file.

        Raises:
            AssertionError: the script failed.
        """
        if self._process is None:
            environment = multiprocess.environment()
            environment.pop("PYTHONPATH")
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", SERVER],
                cwd="/",
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([script, str(argument), str(argument.parent / "modules")]) + "\n")
        self._process.stdin.flush()
        try:
            status, text = json.loads(self._process.stdout.readline())
        except BaseException:
            # a late answer would be read as that of the next script
            self._process.kill()
            self._process = None
            raise
        assert not status, text


ELSEWHERE = Elsewhere()
