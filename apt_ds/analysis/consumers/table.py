"""The table of consumers and forms, over all families."""

from __future__ import annotations

from collections.abc import Mapping

from apt_ds.analysis.consumers.entry import Entry
from apt_ds.analysis.support_matrix import table

FORMS = ("uniform", "adaptive", "padded")
Entries = Mapping[tuple[str, str, str], Entry]  # by (consumer, form, family)


def cell(entries: Mapping[str, Entry]) -> str:
    """How many families are equal, the largest error, and which families are not.

    Args:
        entries: The entry of each family.
    """
    ran = {family: entry for family, entry in entries.items() if entry.status != "not run"}
    if not ran:
        return "not run"
    equal = [entry for entry in ran.values() if entry.equal]
    wrong = [family for family, entry in ran.items() if not entry.equal]
    text = f"{len(equal)} of {len(ran)}"
    if equal:
        text += f" ({max(entry.error for entry in equal):.0e})"
    return text + (f"; not {', '.join(wrong)}" if equal and wrong else "")


def consumer_table(entries: Entries) -> str:
    """One row for each consumer: families whose tokens are equal, of those that ran, and the largest error."""
    names = dict.fromkeys(consumer for consumer, _, _ in entries)
    rows = []
    for name in names:
        cells = [
            cell({family: entry for (n, f, family), entry in entries.items() if (n, f) == (name, form)})
            for form in FORMS
        ]
        rows.append((name, *cells))
    return table(("consumer", *FORMS), rows)


def reasons(entries: Entries) -> str:
    """A line for each entry that is not equal."""
    lines = [
        f"{consumer}, {form}, {family}: {entry.status}"
        + (f", {entry.equal_tokens} tokens equal, error {entry.error:.1e}" if entry.status == "differs" else "")
        + (f": {entry.reason}" if entry.reason else "")
        for (consumer, form, family), entry in entries.items()
        if not entry.equal
    ]
    return "\n".join(lines)
