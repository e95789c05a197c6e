"""Reads the file of `--config`: YAML or JSON, with every option once and every number in plain decimal form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from apt_ds.config.cli import LONGEST, one_line
from apt_ds.config.deepspeed_json import unrepeated
from apt_ds.config.errors import UserError
from apt_ds.config.nearest import suggest
from apt_ds.config.option_types import Value, converted
from apt_ds.config.paths import shortened
from apt_ds.config.run_config import OPTIONS

TAG = "tag:yaml.org,2002:"
INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# of an option that is a number: YAML 1.1 reads 1e-4 as text
NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
DIGITS = re.compile(r"[-+.]*[0-9]")
OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # byte order marks of UTF-16 and UTF-32


class Loader(yaml.SafeLoader):
    """YAML without a repeated key. Only plain decimal numbers are numbers: 010, 1_0, 0x10, 1:30 and dates stay text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises UserError for a key that it has twice."""
        # an option that the merge key `<<` brings in may be given again
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != f"{TAG}merge"]
        unrepeated([(self.construct_object(key), None) for key in keys])
        return super().construct_mapping(node, deep)

    def number(self, node: yaml.ScalarNode) -> Any:
        """A number in plain decimal form, else the text of the node."""
        text = str(node.value)
        if INT.fullmatch(text) and len(text) < LONGEST:
            return int(text)
        return self.construct_yaml_float(node) if FLOAT.fullmatch(text) else text


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.removeprefix(TAG) not in ("int", "float", "timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for name, pattern in (("int", INT), ("float", FLOAT)):
    Loader.add_implicit_resolver(f"{TAG}{name}", re.compile(f"(?:{pattern.pattern})$"), list("-+.0123456789"))
    Loader.add_constructor(f"{TAG}{name}", Loader.number)


def read_options(path: str) -> dict[str, Value]:
    """The options in a YAML or JSON file, converted.

    Raises:
        UserError: the file cannot be read, or states an unknown option, one twice, or one with a value of another type.
    """
    content = _content(path)
    if not isinstance(content, dict):
        raise UserError(f"--config {path!r} has no options. Give lines of the form name: value")
    for key in content:
        if key not in OPTIONS:
            hint = suggest(str(key), OPTIONS)
            raise UserError(f"{path}: {key!r} is an unknown option{hint}. --help lists all options")
    return {name: _value(f"{path}: {name}", name, value) for name, value in content.items()}


def _content(path: str) -> Any:
    """What a file holds. Raises UserError."""
    readers: dict[str, Callable[[str], Any]] = {".yaml": _yaml, ".yml": _yaml, ".json": _json}
    ending = Path(path).suffix
    if ending not in readers:
        raise UserError(f"--config {shortened(path)!r} is not allowed: give a .yaml, .yml or .json file")
    unread = f"--config {shortened(path)!r} cannot be read"
    try:
        return readers[ending](_text(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{unread}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{unread}: it is nested too deeply. Give lines of the form name: value") from None
    except (ValueError, LookupError, AttributeError, yaml.YAMLError) as error:
        # the latter from a tag whose value has another form
        raise UserError(f"{unread}: {one_line(str(error))}") from None


def _text(path: str) -> str:
    """The text of a file, without a byte order mark. Raises UserError for another encoding than UTF-8."""
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    # UTF-16 without a byte order mark has NUL bytes
    if data.startswith(OTHER_ENCODINGS) or "\0" in text:
        raise UserError("the file is not text in UTF-8. Save it as UTF-8")
    return text


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=unrepeated)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader)


def _value(label: str, name: str, value: Any) -> Value:
    """The value of an option. Raises UserError, for a number in another form than plain decimal too."""
    kind = type(OPTIONS[name].default)
    if kind in (int, float) and isinstance(value, str) and DIGITS.match(value) and not NUMBER.fullmatch(value):
        raise UserError(f"{label} {value!r} is not allowed: give a plain decimal number, such as 10 or 1e-4")
    return converted(label, OPTIONS[name], value)
