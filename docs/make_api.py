"""Write docs/api.md, the reference of the public names, from the docstrings: `make docs`."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
INTRODUCTION = """# Reference

`make docs` writes this page from the docstrings. `from fedexit import NAME` gives each of these names:
"""
BESIDE_THEM = "The modules offer more. The README and the notebooks also use these names:\n"
BESIDE = {
    "Corpus": "fedexit.data.corpora",
    "fetch_corpus": "fedexit.data.corpora",
    "convert_folder": "fedexit.data.corpora",
    "make_task": "fedexit.data.tasks",
    "Federation": "fedexit.federated.rounds",
    "Regime": "fedexit.federated.regime",
    "drop_outs": "fedexit.federated.rounds",
    "depths_of_round": "fedexit.devices.policy",
    "federate_guarded": "fedexit.robust.guard",
    "culprits": "fedexit.robust.scores",
    "federate_by_width": "fedexit.lab.heterofl",
    "fine_tune": "fedexit.central.fine_tuning",
    "predict": "fedexit.model.metrics",
    "all_rates": "fedexit.model.metrics",
}


def page() -> str:
    """Return the page for the modules as they are on disk. Nothing of the package is imported."""
    package = griffe.load("fedexit", search_paths=[str(ROOT)])
    exports = ast.literal_eval(str(package["_EXPORTS"].value))
    parts = [INTRODUCTION, _listed(exports), BESIDE_THEM, _listed(BESIDE)]
    for name, module in (exports | BESIDE).items():
        parts += described(package[f"{module}.{name}".removeprefix("fedexit.")])
    return "\n".join(parts)


def _listed(names: dict[str, str]) -> str:
    """Return links to the sections of `names`."""
    links = ", ".join(f"[`{name}`](#{name.lower()})" for name in names)
    return textwrap.fill(f"{links}.", 110, break_long_words=False) + "\n"


def described(found: griffe.Object, owner: str = "") -> Iterator[str]:
    """Yield the parts of the page about a name of a module, or about a member of the class `owner`, and its members."""
    summary, _, rest = found.docstring.value.partition("\n\n") if found.docstring else ("", "", "")
    yield f"{'###' if owner else '##'} {owner}{found.name}\n"
    yield f"{summary}\n" if owner else f"`from {found.parent.path} import {found.name}`\n\n{summary}\n"
    if not found.is_attribute:
        signature = found.signature()
    else:
        signature = f"{found.name}: {found.annotation}" if found.value is None else f"{found.name} = {found.value}"
    yield "```python\n" + signature + (f"\n\n{rest}" if rest else "") + "\n```\n"
    for member in found.members.values() if found.is_class else ():
        if member.docstring and not member.name.startswith("_"):
            yield from described(member, f"{found.name}.")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
