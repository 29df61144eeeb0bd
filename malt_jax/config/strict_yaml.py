"""YAML as configs use it: safe, without ambiguities, and with errors that name the line."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Hashable, Iterable
from typing import Any

import yaml

from malt_jax.checks import has_lone_surrogate, show
from malt_jax.errors import UserError, first_line

MERGE = "tag:yaml.org,2002:merge"
"""What PyYAML calls the key `<<`."""
MAX_BYTES = 1_000_000
"""The largest config file; PyYAML needs about ten seconds for one of this size."""
MAX_VALUES = 100_000
"""The most values a config file may stand for once its aliases are expanded."""


def read_file(path: str) -> dict[str, Any]:
    """The mapping in a YAML file; UserError names the file and the line of what is wrong."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{path}: cannot be read (a pipe or a device); give a file.")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes, which no config is.")
        # This encoding also accepts a byte-order mark at the start of the file.
        data = load(content.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give --config FILE.yaml, or --config "
            "quickstart for the config in the package."
        ) from None
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise UserError(f"{path}: not a text file in UTF-8 ({first_line(error)}).") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for a config.") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path}{line}: not valid YAML ({problem}).") from None
    if data is not None and not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of config fields, found {show(data)}.")
    return data or {}


def read_value(text: str) -> Any:
    """The YAML value that the text of a flag spells, or the text itself where it is not YAML."""
    text = str(text)
    try:
        return load(text) if text.strip() else text
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def write_value(value: Any) -> str:
    """A value as YAML on one line."""
    value = list(value) if isinstance(value, tuple) else value
    text = dump(value, default_flow_style=True, width=1 << 30)
    text = text.removesuffix("...\n").strip()
    # PyYAML would break a text with line breaks over several lines; JSON is YAML as well.
    return json.dumps(value, ensure_ascii=False) if "\n" in text else text


def load(text: str | bytes) -> Any:
    """The value of a YAML document; raises yaml.YAMLError, ValueError or RecursionError."""
    return yaml.load(text, Loader=Loader)


def dump(value: Any, **options: Any) -> str:
    """A value as YAML that `load`, and other readers of YAML, read as the same value."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, **options)


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader that reads numbers as JSON does and refuses repeated keys.

    A few lines of aliases can stand for billions of values, so these are counted before any is
    built. `<<: *anchor` merges another mapping's keys, under those that the mapping has itself.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self._own: set[int] = set()
        """Mappings whose own keys were compared: merging puts those of others beside them."""

    def construct_document(self, node):
        if _count_values(node, {}) > MAX_VALUES:
            raise _problem(f"its aliases stand for over {MAX_VALUES:,} values", node)
        return super().construct_document(node)

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:  # PyYAML raises errors of any kind for a value like `!!int ''`
            raise _problem(f"a value that is no {node.tag.rpartition(':')[2]}", node) from None

    def construct_scalar(self, node):
        value = super().construct_scalar(node)
        # JSON writes a character beyond the first 65,536 as two escapes, which PyYAML leaves apart.
        if isinstance(value, str) and has_lone_surrogate(value):
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return value

    def flatten_mapping(self, node):
        """Puts what `<<` merges into the mapping's own keys, which are compared before."""
        if id(node) not in self._own:
            self._own.add(id(node))
            self._refuse_repeats(node)
        super().flatten_mapping(node)

    def _refuse_repeats(self, node):
        seen = set()
        for key_node, _ in node.value:
            # Keys are compared as values, because 1 and 0x1 are two spellings of one key.
            merges = key_node.tag == MERGE
            key = "<<" if merges else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                raise _problem(f"the key {key!r} is given twice or is not a name", key_node)
            seen.add(key)


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that also quotes the texts which `Loader` would take for numbers."""


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(?:0|[1-9][0-9]*)",
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
}
"""YAML 1.1, which PyYAML reads, wants a point in 1e-4, and takes 010 for 8, 1:30 for 90 and
1_000 for 1000."""

# Tables of their own, because a new entry in PyYAML's would hold for the whole process.
for _kind, _kept in ((Loader, False), (Dumper, True)):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in resolvers if _kept or tag not in _NUMBERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _tag, _form in _NUMBERS.items():
        _kind.add_implicit_resolver(_tag, re.compile(f"^(?:{_form})$"), list("-+.0123456789"))


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for; infinite where it contains an alias of itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # what an alias of a node that is still being counted finds
        children: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            children = itertools.chain.from_iterable(node.value)
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_count_values(child, known) for child in children)
    return known[id(node)]


def _problem(text: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)
