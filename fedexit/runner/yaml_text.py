"""Read YAML as version 1.2 does, for nbs_ci.yml and the values of the option -p.

`true` and `false` alone are truth values, numbers are decimal, and everything else is text: `no`, `on`, `010`, `0x1F`,
`12:30` and dates.
"""

import math
import re

import yaml

from fedexit.support.errors import FedexitError

MAX_VALUES = 100_000  # in one text, with its aliases written out


class _Loader(yaml.SafeLoader):
    """Read scalars as YAML 1.2 does, decimal numbers only, and refuse a key that is given twice."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's name for it)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^[-+]?(?:0|[1-9][0-9]*)[eE][-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def parse_yaml(text: str, where: str) -> object:
    """Return the value of a YAML text.

    Raises:
        FedexitError: it is not YAML, has a key twice or is too large; the message begins with `where`.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_VALUES:
            raise ValueError(f"with its aliases (*name) written out it has more than {MAX_VALUES:,} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise FedexitError(f"{where}{line}: not YAML that can be used: {reason}") from None
    except KeyError as error:  # of !!bool
        raise FedexitError(f"{where}: not YAML that can be used: {error} does not fit its tag") from None
    except (ValueError, AttributeError, IndexError, RecursionError) as error:  # of other tags and of deep lists
        raise FedexitError(f"{where}: not YAML that can be used: {' '.join(str(error).split())}") from None


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Return the number of values in `node`, where an alias counts as much as its original; inf if it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [each for part in parts for each in (part if isinstance(part, tuple) else [part])]
        known[id(node)] = 1 + sum(_size(each, known) for each in inner)
    return known[id(node)]
