"""Licences of families that demand something of models made from theirs."""

from __future__ import annotations

from dataclasses import dataclass

META = "Copyright (c) Meta Platforms, Inc. All Rights Reserved."
POINTER = "LICENSE, NOTICE and USE_POLICY files of the base model apply to this model too."


@dataclass(frozen=True)
class Terms:
    """What a licence demands of a model made from a model under it.

    Attributes:
        licence: the licence's name on the hub.
        title: words that begin the licence's text.
        name_begins: what the new model's name must begin with. '': any name.
        built_with: words to display. '': none.
        notice: what the file NOTICE must say.
    """

    licence: str
    title: str
    notice: str
    name_begins: str = ""
    built_with: str = ""


TERMS = (
    Terms("llama2", "LLAMA 2 COMMUNITY LICENSE", f"Llama 2 is licensed under the LLAMA 2 Community License, {META}"),
    Terms(
        "llama3",
        "META LLAMA 3 COMMUNITY LICENSE",
        f"Meta Llama 3 is licensed under the Meta Llama 3 Community License, {META}",
        "Llama 3",
        "Built with Meta Llama 3",
    ),
    *(
        Terms(
            f"llama{version}",
            f"LLAMA {version} COMMUNITY LICENSE",
            f"Llama {version} is licensed under the Llama {version} Community License, {META}",
            "Llama",
            "Built with Llama",
        )
        for version in ("3.1", "3.2", "3.3")
    ),
    Terms(
        "gemma",
        "Gemma Terms of Use",
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
)


def terms_of(licence: str) -> Terms | None:
    """The demands of a licence by its name on the hub. None if it demands nothing."""
    return next((terms for terms in TERMS if terms.licence == licence), None)
