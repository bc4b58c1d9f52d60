"""Copy the documents and the executed notebooks of the project into one folder that Sphinx reads."""

import ast
import json
import re
import shutil
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "docs/*.md",
    "results/README.md",
    "results/cells/README.md",
    "data/README.md",
    "fedexit/backbones/*/README.md",
)
CHAPTERS = {  # first digit of a notebook, caption in the table of contents
    "0": "The method, step by step",
    "1": "Experiments",
    "2": "The paper, machines, privacy, sound",
    "9": "All figures and tables",
}
DATA = "Tables and figures of this notebook"
LINK = re.compile(r"\[([^\]\[]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
FOLDERS = {"run.table": "tables", "run.figure": "figures"}


def gather(root: Path, to: Path) -> list[str]:
    """Copy all pages of the project at `root` with rewritten links, and the files that they name, into the folder `to`.

    An executed notebook stands where its source is, `notebooks/NAME.ipynb`, so that links between notebooks hold.
    A notebook that was not run is copied without results. Return the paths of the pages in `root`.
    """
    pages = pages_of(root)
    for source, page in pages.items():
        text = (root / source).read_text(encoding="utf-8")
        if page.endswith(".ipynb"):
            text = _notebook(root, page, text, pages, to)
        else:
            text = rewritten(text, root, source, page, pages, to)
        if page == "index.md":
            text += contents(pages)
        (to / page).parent.mkdir(parents=True, exist_ok=True)
        (to / page).write_text(text, encoding="utf-8")
    return [*pages]


def pages_of(root: Path) -> dict[str, str]:
    """Return the page of every document and notebook: its path in `root`, and its path in the book."""
    pages = {}
    for source in sorted((root / "notebooks").glob("*.ipynb")):
        executed = root / "results" / source.stem / "notebook.ipynb"
        best = executed if executed.is_file() else source
        pages[best.relative_to(root).as_posix()] = f"notebooks/{source.name}"
    for pattern in DOCUMENTS:
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            pages[name] = "index.md" if name == "README.md" else name
    return pages


def rewritten(text: str, root: Path, source: str, page: str, pages: dict[str, str], to: Path) -> str:
    """Return Markdown whose relative links, from `source`, fit the page `page` of the book.

    A link to a notebook or document leads to its page. Any other file is copied beside, to look at or to download.
    A link to a folder leads to the page of its README; without one, the text stays and the link goes.
    """
    known = pages | {name: name for name in pages.values()}  # notebooks link to the sources of others

    def link(match: re.Match) -> str:
        shown, path, anchor = match[1], match[2], match[3] or ""
        wanted = normpath(f"{PurePosixPath(source).parent}/{path}")
        if not (root / wanted).exists():
            return match[0]
        if (root / wanted).is_dir():
            wanted, anchor = _of_folder(wanted, pages)
        if not wanted:
            return shown
        if wanted not in known:
            _copy(root / wanted, to / wanted)
        target = relpath(known.get(wanted, wanted), PurePosixPath(page).parent)
        if wanted not in known and target.endswith(".ipynb"):  # Sphinx would look for a page
            return f"{{download}}`{shown} <{target}>`"
        return f"[{shown}]({target}{anchor})"

    return LINK.sub(link, text)


def _of_folder(folder: str, pages: dict[str, str]) -> tuple[str, str]:
    """Return the file that a link to a folder leads to, or "", and its anchor: a README or a notebook's tables."""
    executed = folder.removesuffix("/tables") + "/notebook.ipynb"
    if executed in pages:
        return executed, "#" + DATA.lower().replace(" ", "-")
    return (readme, "") if (readme := f"{folder}/README.md") in pages else ("", "")


def _notebook(root: Path, page: str, text: str, pages: dict[str, str], to: Path) -> str:
    """Return a notebook with rewritten links, a link to the data below each table and figure, and a list of all."""
    notebook = json.loads(text)
    results = root / "results" / PurePosixPath(page).stem
    cells = []
    for cell in notebook["cells"]:
        lines = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cell["source"] = rewritten(lines, root, page, page, pages, to)
        cells.append(cell)
        if cell["cell_type"] == "code":
            found = [results / name for name in made(lines) if (results / name).is_file()]
            if found:
                links = ", ".join(_download(root, path, to) for path in found)
                cells.append(_markdown(f"data-{len(cells)}", f"Data: {links}"))
    files = sorted(path for folder in ("tables", "figures") for path in (results / folder).glob("*.*"))
    if files:
        listed = [f"* {_download(root, path, to)}" for path in files]
        cells.append(_markdown("data", "\n".join([f"## {DATA}", "", *listed])))
    return json.dumps(notebook | {"cells": cells})


def made(code: str) -> list[str]:
    """Return the CSV files that the calls `run.table(..., NAME)` and `run.figure(..., NAME, ...)` of a cell write."""
    tree = ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", code))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in FOLDERS]
    named = [(call, [*call.args[1:], *(word.value for word in call.keywords if word.arg == "name")]) for call in calls]
    return [f"{FOLDERS[ast.unparse(call.func)]}/{ast.literal_eval(names[0])}.csv" for call, names in named if names]


def _download(root: Path, file: Path, to: Path) -> str:
    """Copy a file into the book and return a link to it from a notebook."""
    name = file.relative_to(root).as_posix()
    _copy(file, to / name)
    return f"[{file.parent.name}/{file.name}](../{name})"


def _markdown(name: str, text: str) -> dict:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def contents(pages: dict[str, str]) -> str:
    """Return the table of contents of the book: the notebooks by chapter, then the documents."""
    notebooks = sorted(page for page in pages.values() if page.endswith(".ipynb"))
    parts = {caption: [n for n in notebooks if n.split("/")[1][0] == digit] for digit, caption in CHAPTERS.items()}
    parts["Results and reference"] = [page for page in pages.values() if page.endswith(".md") and page != "index.md"]
    trees = [
        ["```{toctree}", f":caption: {caption}", ":hidden:", "", *listed, "```"] for caption, listed in parts.items()
    ]
    return "\n" + "\n\n".join("\n".join(tree) for tree in trees) + "\n"
