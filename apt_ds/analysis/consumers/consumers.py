"""The consumers of a model folder. Each answers in a process of its own, where apt_ds cannot be imported.

A new consumer is one line of `CONSUMERS` and a probe in `probes.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from apt_ds.analysis.consumers import probes
from apt_ds.analysis.consumers.entry import Case, Entry, Expected, compare
from apt_ds.models.consumers import llama_cpp_problems
from apt_ds.models.export import gguf_rules
from apt_ds.models.export.gguf_folder import read_config

FULL, SIXTEEN, QUANTIZED = 2e-3, 2e-2, 0.25  # largest difference of log-probabilities: fp32, 16 bits, NF4 in bf16
CONVERTER = "apt_ds.models.export.gguf"
CONTEXT = 256  # tokens; llama.cpp rounds shorter contexts up to it


@dataclass(frozen=True)
class Consumer:
    """A program that loads model folders.

    Attributes:
        name: for the table.
        probe: its code, see `probes.py`.
        module: the package that it needs, '': none.
        executable: the environment variable that names a Python with that package. '': this Python has it.
        tolerance: the largest difference of log-probabilities.
        seconds: the most that one folder may take.
    """

    name: str
    probe: str
    module: str = "transformers"
    executable: str = ""
    tolerance: float = FULL
    seconds: int = 300

    def python(self) -> str:
        """The Python that runs it."""
        return (os.environ.get(self.executable, "") if self.executable else "") or sys.executable

    def absent(self) -> str:
        """Why it cannot run here, in one line. '': it can."""
        if self.executable and os.environ.get(self.executable):
            return ""
        if self.executable and self.module == "transformers":
            return f"{self.executable} names no Python"
        if importlib.util.find_spec(self.module) is None:
            named = f", and {self.executable} names no Python that has it" if self.executable else ""
            return f"{self.module} is not installed{named}"
        return ""

    def check(self, folder: Path, expected: Expected) -> Entry:
        """Load one folder and compare."""
        return self.check_all([Case(folder, expected)])[0]

    def check_all(self, cases: Sequence[Case], **options: Any) -> list[Entry]:
        """Load folders in one process and compare each.

        Args:
            cases: the folders.
            options: values that the probe reads from every case.
        """
        if reason := self.absent():
            return [Entry("not run", reason=reason) for _ in cases]
        with tempfile.TemporaryDirectory() as place:
            prepared = [self.prepare(case, Path(place), number) for number, case in enumerate(cases)]
            jobs = [job for job in prepared if isinstance(job, dict)]
            answers = iter(self._answers([job | options for job in jobs], Path(place)) if jobs else [])
            return [
                job if isinstance(job, Entry) else self._entry(next(answers), case)
                for job, case in zip(prepared, cases, strict=True)
            ]

    def prepare(self, case: Case, place: Path, number: int) -> dict[str, Any] | Entry:
        """What the probe gets for a folder, or the entry if the consumer cannot load it."""
        return {"folder": str(case.folder.resolve()), **asdict(case.expected)}

    def _answers(self, jobs: list[dict[str, Any]], place: Path) -> list[Mapping[str, Any]]:
        """The answers of the probe. A process that ends early fails at the first job without an answer."""
        file = place / "jobs.json"
        answers: list[Mapping[str, Any]] = []
        while len(answers) < len(jobs):
            left = jobs[len(answers) :]
            file.write_text(json.dumps(left), encoding="utf8")
            output, answer_file = self._run(file, len(left)), place / "jobs.json.out"
            new = json.loads(answer_file.read_text(encoding="utf8")) if answer_file.is_file() else []
            answer_file.unlink(missing_ok=True)
            # after an error the probe ends by itself
            ended = bool(new) and (len(new) == len(left) or "error" in new[-1])
            answers += new if ended else [*new, {"error": output}]
        return answers

    def _run(self, file: Path, count: int) -> str:
        """Run the probe. Returns the last line that it printed."""
        script = file.with_name("probe.py")
        script.write_text(probes.FRAME.replace("{probe}", self.probe), encoding="utf8")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(file.with_name("modules"))}
        command = [self.python(), "-P", str(script), str(file)]
        try:
            done = subprocess.run(
                command,
                cwd=file.parent,
                env=environment,
                capture_output=True,
                text=True,
                timeout=self.seconds * (count + 1),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {self.seconds * (count + 1)} s"
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"ended with status {done.returncode}"

    def _entry(self, answer: Mapping[str, Any], case: Case) -> Entry:
        if "error" in answer:
            return Entry("fails", reason=answer["error"])
        reference = case.expected
        if "reference" in answer:
            reference = Expected(reference.text, reference.prompt, **answer["reference"])
        return compare(answer["tokens"], answer["logprobs"], reference, self.tolerance)


class LlamaCpp(Consumer):
    """llama.cpp reads what the converter of this package makes of a folder."""

    def prepare(self, case: Case, place: Path, number: int) -> dict[str, Any] | Entry:
        """Convert the folder."""
        file = place / f"{number}.gguf"
        command = [sys.executable, "-m", CONVERTER, str(case.folder.resolve()), "--outtype", "f32", "--into", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return Entry("fails", reason=(done.stderr.strip().splitlines() or ["the converter failed"])[-1])
        # llama.cpp chooses the factors of longrope by its context
        context = gguf_rules.plan_of(case.folder, "f32").context
        job = super().prepare(case, place, number)
        length = len(case.expected.prompt) + len(case.expected.tokens)
        longest = {"gguf": str(file), "context": context if context > length else CONTEXT}
        return job | longest if isinstance(job, dict) else job

    def _entry(self, answer: Mapping[str, Any], case: Case) -> Entry:
        """The entry, with the rule that explains a difference."""
        entry = super()._entry(answer, case)
        problems = self.problems(case)
        return replace(entry, reason=problems[0]) if problems and entry.status == "differs" else entry

    @staticmethod
    def problems(case: Case) -> list[str]:
        """Why its answers must differ."""
        length = len(case.expected.prompt) + len(case.expected.tokens)
        return llama_cpp_problems(read_config(case.folder), length)


CONSUMERS: tuple[Consumer, ...] = (
    Consumer("transformers 5", probes.PLAIN),
    Consumer("transformers 4.57", probes.PLAIN, executable="APT_DS_TRANSFORMERS4_PYTHON"),
    Consumer("HF pipeline", probes.PIPELINE),
    Consumer("vLLM", probes.VLLM, "vllm", "APT_DS_VLLM_PYTHON"),
    LlamaCpp("llama.cpp", probes.LLAMA_CPP, "xllamacpp", tolerance=SIXTEEN),
    Consumer("lm-eval (hf)", probes.LM_EVAL, "lm_eval", "APT_DS_LM_EVAL_PYTHON"),
    Consumer("PEFT LoRA", probes.PEFT, "peft"),
    Consumer("bitsandbytes NF4", probes.NF4, "bitsandbytes", tolerance=QUANTIZED),
)
