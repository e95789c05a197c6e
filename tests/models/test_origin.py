"""A base model's name and licence come from its own folder, from the most explicit source down to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from apt_ds.models.architectures.licence_terms import TERMS, terms_of
from apt_ds.models.origin import UNKNOWN, is_repository, licence_of_text, origin_of


def test_the_card_of_the_folder_wins(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: gemma\nlanguage: en\n---\ntext\n")
    (tmp_path / "LICENSE").write_text("MIT License\n")
    (tmp_path / "USE_POLICY.md").write_text("be kind\n")
    origin = origin_of(str(tmp_path), str(tmp_path))
    assert (origin.licence, origin.stated_by, origin.languages) == ("gemma", "its model card", ("en",))
    assert [path.name for path in origin.files] == ["LICENSE", "USE_POLICY.md"]
    assert origin.name == tmp_path.name and origin.hub_name == ""


def test_a_licence_without_a_name_on_the_hub_keeps_name_and_link(tmp_path: Path) -> None:
    lines = ["license: other", "license_name: tiny-1", "license_link: https://example.org/tiny"]
    (tmp_path / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n")
    origin = origin_of(str(tmp_path), str(tmp_path))
    assert (origin.licence, origin.licence_name, origin.licence_link) == (
        "other",
        "tiny-1",
        "https://example.org/tiny",
    )


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("                    Apache License\n   Version 2.0, January 2004\n", "apache-2.0"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date", "llama3.1"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n", "llama3"),
        ("All rights reserved.", ""),
    ],
)
def test_a_licence_is_known_by_its_title(text: str, licence: str, tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text(text)
    assert licence_of_text(tmp_path / "LICENSE.txt") == licence
    origin = origin_of(str(tmp_path), str(tmp_path))
    assert origin.licence == (licence or UNKNOWN)
    assert origin.stated_by == ("its file LICENSE.txt" if licence else "")


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert origin_of(str(tmp_path), str(tmp_path)).licence == UNKNOWN
    # no network and nothing cached
    origin = origin_of("nobody/nothing", "nobody/nothing")
    assert (origin.name, origin.hub_name, origin.licence) == ("nobody/nothing", "nobody/nothing", UNKNOWN)


def test_a_folder_of_the_hubs_cache_has_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--some--model" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    assert origin_of(str(folder), str(folder)).hub_name == "some/model"


def test_terms_have_what_their_licences_demand() -> None:
    terms = terms_of("llama3.2")
    assert terms is not None and terms.name_begins == "Llama" and terms.built_with == "Built with Llama"
    assert "Llama 3.2 Community License" in terms.notice
    assert terms_of("apache-2.0") is None and len({terms.licence for terms in TERMS}) == len(TERMS)


@pytest.mark.parametrize(
    ("name", "right"), [("a/b", True), ("a", True), ("a/b/c", False), ("/x", False), ("-a", False)]
)
def test_names_of_repositories(name: str, right: bool) -> None:
    assert is_repository(name) == right
