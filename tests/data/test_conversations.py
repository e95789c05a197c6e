"""Reading examples, padding them, the order of samples, and the built-in set."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from apt_ds.config.errors import UserError
from apt_ds.data.batching import GlobalOrder, collate
from apt_ds.data.conversations import Example, builtin_path, load_examples
from apt_ds.data.tokenized import IGNORED
from tests.support.builtin_instructions import make

ROOT = Path(__file__).resolve().parent.parent.parent
RECORD = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
SHARED = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


def write(folder: Path, name: str, *lines: object) -> str:
    """A file of one JSON value or raw text per line."""
    path = folder / name
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), "utf-8")
    return str(path)


def with_turns(*turns: object) -> dict[str, object]:
    """A chat record of these messages."""
    return {"messages": list(turns)}


def test_alpaca_records_are_read_from_both_kinds_of_file(tmp_path: Path) -> None:
    plain = {"instruction": "Greet.", "output": "Hello"}
    expected = [
        Example.from_instruction("Add.", "1 and 2", "3"),
        Example.from_instruction("Greet.", "", "Hello"),
    ]
    assert load_examples(write(tmp_path, "a.json", [RECORD, plain])) == expected
    assert load_examples(write(tmp_path, "b.json", {"data": [RECORD, {**plain, "input": None}]})) == expected
    assert load_examples(write(tmp_path, "c.jsonl", RECORD, "", plain)) == expected
    assert expected[0].messages[0] == {"role": "user", "content": "Add.\n\n1 and 2"}
    assert expected[0].output == "3"


def test_both_chat_formats_are_read(tmp_path: Path) -> None:
    first, second = load_examples(write(tmp_path, "a.jsonl", CHAT, SHARED))
    assert first == second == Example(tuple(CHAT["messages"]))
    assert first.instruction == "" and first.output == "Hello"


def test_the_real_alpaca_is_read(real_data: Path) -> None:
    assert len(load_examples(real_data / "alpaca" / "alpaca_validation.json")) == 200


def test_line_separators_inside_a_string_do_not_end_the_line(tmp_path: Path) -> None:
    line = json.dumps({**RECORD, "output": "one\u2028two"}, ensure_ascii=False)
    assert load_examples(write(tmp_path, "a.jsonl", line))[0].output == "one\u2028two"


BROKEN = [
    (("a.jsonl", RECORD, "", '{"instruction": '), r"a\.jsonl, line 3, column \d+: not valid JSON"),
    (("a.json", '[{"instruction": "x",', "oops]"), r"a\.json, line 2, column 1: not valid JSON"),
    (("a.json", RECORD, RECORD), r"line 2, column 1: .*Name it \.jsonl"),
    (
        ("a.jsonl", RECORD, {"instruction": "x", "answer": "y"}),
        r"line 2: no column 'output' .*instruction, answer",
    ),
    (("a.json", [RECORD, {"output": "y"}]), r"record 2: no column 'instruction' \(it has: output\)"),
    (("a.jsonl", RECORD, {**RECORD, "output": 3}), "line 2: 'output' must be text, not int"),
    (("a.jsonl", {**RECORD, "input": ["x"]}), "line 1: 'input' must be text, not list"),
    (("a.jsonl", RECORD, {**RECORD, "output": " "}), "line 2: the output is empty"),
    (("a.jsonl", {**RECORD, "instruction": ""}), "line 1: the instruction is empty"),
    (("a.jsonl", RECORD, '["x"]'), "line 2: a record must be an object, not list"),
    (
        ("a.jsonl", with_turns(CHAT["messages"][0], {"role": "assistant", "content": None})),
        "'content' must be text, not null",
    ),
    (("a.json", "[]"), r"a\.json holds no records"),
    (("a.json", {"data": []}), r"a\.json holds no records"),
    (("a.json", {"data": RECORD}), "must hold a list of records"),
    (("a.jsonl", "", " "), r"a\.jsonl is empty"),
    (("a.json", ""), r"a\.json is empty"),
    (("a.json", {"rows": []}), "must hold a list of records"),
    (("a.xml", "instruction,output"), r"unknown file ending '\.xml'"),
    (("a.csv", "instruction,output"), r"a\.csv holds no records"),
    (("a.jsonl", {"messages": []}), "line 1: 'messages' must be a list of at least"),
    (
        ("a.jsonl", with_turns(*CHAT["messages"], CHAT["messages"][0])),
        "line 1: the last message is the user's",
    ),
    (
        ("a.jsonl", with_turns({"role": "owner", "content": "x"}, {})),
        "line 1, message 1: unknown role 'owner'",
    ),
    (("a.jsonl", with_turns(CHAT["messages"][0], {"role": "assistant"})), "message 2: no column 'content'"),
    (("a.jsonl", with_turns("x", "y")), "line 1, message 1: a message must be an object, not str"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_a_broken_file_is_named_with_its_place(tmp_path: Path, content: tuple[object, ...], message: str) -> None:
    name, *lines = content
    path = write(tmp_path, str(name), *lines)
    with pytest.raises(UserError, match=message) as caught:
        load_examples(path)
    assert "\n" not in str(caught.value) and path in str(caught.value)


def test_a_path_without_records_is_named_with_the_reason(tmp_path: Path) -> None:
    latin = tmp_path / "latin.json"
    latin.write_bytes('[{"instruction": "é"}]'.encode("latin-1"))
    (tmp_path / "folder").mkdir()
    wrong = {str(latin): "is not UTF-8 text (byte 18)", str(tmp_path / "folder"): "holds no train.* (endings: .json"}
    for name, problem in wrong.items():
        with pytest.raises(UserError) as caught:
            load_examples(name)
        assert str(caught.value).startswith(f"{name} {problem}") and "\n" not in str(caught.value)
    for missing in (str(tmp_path / "missing.json"), "missing.jsonl", "./nowhere", "builtin:nothing"):
        with pytest.raises(UserError) as caught:
            load_examples(missing)
        assert str(caught.value) == f"no such data file: {missing}. Give a file, a folder or a hub name"


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(RECORD), "utf-8-sig")
    assert load_examples(tmp_path / "a.jsonl") == [Example.from_instruction("Add.", "1 and 2", "3")]


def test_an_unknown_name_is_one_line_without_the_hub() -> None:
    datasets = pytest.importorskip("datasets")
    if not datasets.config.HF_HUB_OFFLINE:
        pytest.skip("HF_HUB_OFFLINE is off, so the hub would be asked")
    with pytest.raises(UserError, match=r"^nobody/nothing is neither a file nor a dataset.*'test'") as caught:
        load_examples("nobody/nothing", "test")
    assert "\n" not in str(caught.value)


def test_a_few_empty_outputs_in_a_large_set_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [RECORD] * 150 + [{**RECORD, "output": ""}]
    with caplog.at_level(logging.WARNING):
        assert len(load_examples(write(tmp_path, "a.jsonl", *records))) == 150
    assert "line 151" in caplog.text


def test_a_name_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[str, str]] = []

    def load(name: str, split: str) -> list[dict[str, str]]:
        asked.append((name, split))
        if name == "some/alpaca":
            return [RECORD]
        raise ConnectionError("no route\nmore text")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_examples("some/alpaca", "test") == [Example.from_instruction("Add.", "1 and 2", "3")]
    assert asked == [("some/alpaca", "test")]
    with pytest.raises(UserError, match=r"neither a file nor a dataset.*'train'.*: no route$"):
        load_examples("some/thing")


def test_collate_pads_on_the_right() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]},
        {"input_ids": list(range(9)), "labels": [1] * 9},
    ]
    batch = collate(rows, pad_id=2).to("cpu")
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape == (2, 16)
    assert batch.input_ids.dtype == torch.int64
    assert batch.input_ids[0].tolist() == [5, 6, 7] + [2] * 13
    assert batch.labels[0].tolist() == [IGNORED, 6, 7] + [IGNORED] * 13
    assert batch.attention_mask.sum(dim=1).tolist() == [3, 9]
    assert collate(rows[:1], pad_id=0, multiple=1).input_ids.shape == (1, 3)


@pytest.mark.parametrize(("longest", "width"), [(1, 8), (7, 8), (8, 8), (9, 16), (16, 16), (17, 24)])
def test_collate_rounds_the_length_up_to_eights(longest: int, width: int) -> None:
    rows = [{"input_ids": [3] * length, "labels": [3] * length} for length in (1, longest)]
    batch = collate(rows, pad_id=0)
    assert batch.input_ids.shape == (2, width)
    assert batch.attention_mask.tolist() == [[1] + [0] * (width - 1), [1] * longest + [0] * (width - longest)]
    assert torch.equal(batch.labels != IGNORED, batch.attention_mask.bool())


@pytest.mark.parametrize("n", [29, 12, 5, 1])
@pytest.mark.parametrize(("world", "per_device"), [(1, 12), (1, 4), (2, 3), (3, 2), (4, 1), (6, 2), (12, 1)])
def test_any_split_sees_the_same_global_batch(world: int, per_device: int, n: int) -> None:
    order = GlobalOrder(n, global_batch=12, seed=4)
    for step in (0, 2, 7):
        assert len(order.indices(step)) == 12 and set(order.indices(step)) <= set(range(n))
        parts = [
            order.micro(step, micro, rank, world, per_device)
            for micro in range(12 // (world * per_device))
            for rank in range(world)
        ]
        assert [index for part in parts for index in part] == order.indices(step)


@pytest.mark.parametrize(("n", "batch"), [(29, 12), (24, 8), (5, 16), (1, 4)])
def test_every_sample_comes_once_per_epoch(n: int, batch: int) -> None:
    order = GlobalOrder(n, batch, seed=1)
    seen = [index for step in range(3 * n) for index in order.indices(step)]
    epochs = [seen[i * n : (i + 1) * n] for i in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n > 5:
        assert epochs[0] != epochs[1] != epochs[2]
    assert order.steps(1) == -(-n // batch) and order.steps(3) == -(-3 * n // batch)


def test_steps_of_a_part_of_an_epoch_are_rounded_up() -> None:
    assert [GlobalOrder(40, 16).steps(epochs) for epochs in (0.1, 0.4, 0.5, 1, 2)] == [1, 1, 2, 3, 5]


def test_order_depends_on_seed_and_step_alone() -> None:
    straight = [GlobalOrder(40, 8, seed=3).indices(step) for step in range(20)]
    resumed = GlobalOrder(40, 8, seed=3)
    assert [resumed.indices(step) for step in range(11, 20)] == straight[11:]
    assert [resumed.indices(step) for step in reversed(range(20))] == straight[::-1]
    assert GlobalOrder(40, 8, seed=5).indices(0) != straight[0]


def test_a_micro_batch_outside_the_global_batch_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        GlobalOrder(40, 8).micro(0, micro=2, rank=0, world=2, per_device=2)


def test_the_builtin_set_is_large_unique_and_made_by_its_script() -> None:
    assert builtin_path().read_bytes() == make.make().encode()
    examples = load_examples("builtin:instructions")
    assert examples == load_examples(builtin_path())
    asked = {(example.instruction, example.input) for example in examples}
    assert len(examples) == len(asked) == make.SIZE >= 1000
    assert all(example.output == example.output.strip() for example in examples)
    records = [json.loads(line) for line in builtin_path().read_text("utf-8").splitlines()]
    assert {tuple(record) for record in records} == {("instruction", "input", "output")}


def test_the_builtin_script_checks_the_file_that_ships() -> None:
    before = builtin_path().read_bytes()
    # a process of its own has other hash seeds, on which the bytes must not depend
    command = [sys.executable, "-m", "tests.support.builtin_instructions.make", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert builtin_path().read_bytes() == before


def test_the_builtin_script_tells_a_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make, "PATH", tmp_path / "instructions.jsonl")
    monkeypatch.setattr("sys.argv", ["make", "--check"])
    assert make.main() == 1
    assert "differs" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["make"])
    assert make.main() == 0
    monkeypatch.setattr("sys.argv", ["make", "--check"])
    assert make.main() == 0
