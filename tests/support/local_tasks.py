"""A folder with the data of the suite `local`, small enough for a tiny model."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support import tiny


def write_folder(folder: Path) -> Path:
    """SST-2, Wikipedia and WikiText-2, whose words are those of the tiny tokenizer."""
    draw = random.Random(5)

    def words(count: int) -> str:
        return " ".join(draw.choice([word for word in tiny.WORDS if len(word) > 2]) for _ in range(count))

    for name, rows in (("train", 12), ("validation", 9)):
        lines = ["sentence\tlabel", *(f"{words(4)}\t{i % 2}" for i in range(rows))]
        (folder / "sst2").mkdir(parents=True, exist_ok=True)
        (folder / "sst2" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")
    for name in ("plain", "wikitext2"):
        (folder / name).mkdir()
    articles = [" ".join(f"The {words(14)}." for _ in range(4)) for _ in range(20)]
    (folder / "plain" / "wikipedia.txt").write_text("\n\n".join(f"title\n\n{text}" for text in articles), "utf8")
    paragraphs = []
    for number in range(8):
        # the last word of the second paragraph has not occurred before
        word, last = (tiny.WORDS[2 + number],) * 2 if number != 1 else ("cat", "zebra")
        first, last = f"{words(20)} {word} {words(2)}", f" The {words(6)} {last} ."
        paragraphs.append(f" The {first} .{last} \n")
    (folder / "wikitext2" / "validation.txt").write_text(" = Title = \n \n" + "".join(paragraphs), encoding="utf8")
    return folder
