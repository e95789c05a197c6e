"""The table of what is supported is that of the specs, and every family in it is tested."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from apt_ds.analysis import support_matrix
from apt_ds.analysis.support_matrix import SECTION, SHORT_SECTION, cells, short_matrix
from apt_ds.config.errors import UserError
from apt_ds.models.architectures import REGISTRY, llama
from tests.support import tiny, tiny_experts, tiny_families
from tests.support.paths import ROOT

TABLES = {SECTION: support_matrix.support_matrix, SHORT_SECTION: short_matrix}


def sections() -> list[tuple[Path, str, str]]:
    """(document, section, text) of every table in a document."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    place = re.compile(r"<!-- (support matrix.*?) -->\n(.*?)<!-- end -->", re.DOTALL)
    paths = [ROOT / name for name in listed.split()]
    return [(path, *match.groups()) for path in paths for match in place.finditer(path.read_text(encoding="utf8"))]


def test_documents_have_the_tables_of_the_specs() -> None:
    """After a change: python -m apt_ds.analysis.support_matrix --into DOCUMENT."""
    tables = sections()
    assert ROOT / "apt_ds" / "models" / "README.md" in [path for path, _, _ in tables]
    for path, section, text in tables:
        assert text == TABLES[section](), path


def test_every_family_has_a_row_of_tests() -> None:
    rows = {make().model_type for make in tiny_families.FAMILIES.values()}
    rows |= {config.model_type for _, config, _ in tiny.SMALL.values()}
    rows |= tiny_experts.FAMILIES.keys()
    assert REGISTRY.keys() <= rows


def test_a_row_says_what_its_spec_says() -> None:
    row = dict(zip(support_matrix.HEADERS, cells(REGISTRY["bert"]), strict=True))
    assert row["`--task`"] == "GLUE, SQuAD" and row["`--base_bits`"] == "16, 8, 4"
    assert row["adaptive sizes"] == "modelling file + base model"
    row = dict(zip(support_matrix.HEADERS, cells(REGISTRY["mixtral"]), strict=True))
    assert row["`--base_bits`"] == "16" and row["`--prune_blocks`"] == "heads, experts, neurons, hidden"
    row = dict(zip(support_matrix.HEADERS, cells(REGISTRY["qwen3"]), strict=True))
    assert row["`--base_bits`"] == "16, 8, 4" and row["adaptive sizes"] == "modelling file + classifier + base model"
    assert "not supported" in cells(replace(llama.ARCHITECTURE, modeling=None))


def test_the_short_table_has_every_family_and_fits_a_first_page() -> None:
    text = short_matrix()
    assert len(text.splitlines()) <= 14
    assert all(spec.title in text for spec in REGISTRY.values())


def test_the_command_writes_into_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["support_matrix", "--short", "--into", str(document)])
    document.write_text(f"before\n<!-- {SHORT_SECTION} -->\nold\n<!-- end -->\nafter\n", encoding="utf8")
    support_matrix.main()
    assert document.read_text(encoding="utf8") == (
        f"before\n<!-- {SHORT_SECTION} -->\n{short_matrix()}<!-- end -->\nafter\n"
    )
    document.write_text("nothing", encoding="utf8")
    with pytest.raises(UserError, match="has 0 places for it"):
        support_matrix.main()
