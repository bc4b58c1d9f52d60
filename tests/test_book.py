"""Test the website of the results: its pages, its links, and what it looks for outside itself."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "docs" / "book"
SITE = "http://book/"
OWN_PYTHON = ROOT / ".venv-book" / "bin" / "python"
NEEDS = ("sphinx", "myst_nb", "sphinx_book_theme", "ziamath")
LOADED = {"script": "src", "img": "src", "iframe": "src", "audio": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def pages():
    """Return the module docs/book/pages.py."""
    spec = spec_from_file_location("pages", BOOK / "pages.py")
    spec.loader.exec_module(module := module_from_spec(spec))
    return module


def test_executed_notebooks_are_at_most_a_megabyte():
    sizes = {path: path.stat().st_size for path in (ROOT / "results").glob("*/notebook.ipynb")}
    assert sizes and {path.parent.name: size for path, size in sizes.items() if size > 1_000_000} == {}


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def notebook(*cells: tuple[str, str]) -> str:
    written = [
        {"cell_type": kind, "id": f"c{n}", "metadata": {}, "source": text} for n, (kind, text) in enumerate(cells)
    ]
    return json.dumps({"cells": written, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def test_pages_have_links_that_fit_and_data_below_each_table(pages, tmp_path):
    root, to = tmp_path / "project", tmp_path / "book"
    source = [("markdown", "# 01\n[next](02_b.ipynb) [words](../docs/glossary.md#exit) [rule](../fedexit/rule.py)")]
    source += [
        ("code", 'run.table(shares.round(2), "shares")\nrun.figure(draw(a, "b"), "picture", a)\nrun.table(x, "gone")')
    ]
    write(root / "notebooks/01_a.ipynb", notebook(*source))
    write(root / "notebooks/02_b.ipynb", notebook(("markdown", "# never run [home](../README.md)")))
    write(root / "results/01_a/notebook.ipynb", notebook(*source, ("markdown", "executed")))
    for name in ("tables/shares.csv", "figures/picture.csv", "figures/picture.png", "tables/other.csv"):
        write(root / "results/01_a" / name, name)
    write(root / "results/README.md", "[1](01_a/tables) [a](../notebooks/01_a.ipynb)")
    write(root / "fedexit/rule.py", "rule")
    write(root / "docs/glossary.md", "# Exit\n[`f`](#f) [web](https://x.org/a) [gone](gone.md)")
    links = "[a](results/01_a/notebook.ipynb) [r](results/) [code](fedexit/) [c](docs/c.ipynb) "
    links += "![p](results/01_a/figures/picture.png)"
    write(root / "README.md", links)
    write(root / "docs/c.ipynb", notebook())

    assert len(pages.gather(root, to)) == 5
    index = (to / "index.md").read_text()
    pictured = "![p](results/01_a/figures/picture.png)"
    beside = "{download}`c <docs/c.ipynb>`"
    assert index.startswith(f"[a](notebooks/01_a.ipynb) [r](results/README.md) code {beside} {pictured}")
    assert re.findall(r"^\w\S+\.(?:md|ipynb)$", index, re.M) == [
        "notebooks/01_a.ipynb", "notebooks/02_b.ipynb", "docs/glossary.md", "results/README.md"
    ]  # fmt: skip
    cells = [cell["source"] for cell in json.loads((to / "notebooks/01_a.ipynb").read_text())["cells"]]
    assert cells[0].endswith("[next](02_b.ipynb) [words](../docs/glossary.md#exit) [rule](../fedexit/rule.py)")
    data = [f"[{name}](../results/01_a/{name})" for name in ("tables/shares.csv", "figures/picture.csv")]
    assert cells[2] == f"Data: {', '.join(data)}" and cells[3] == "executed"
    assert len(re.findall(r"^\* \[", cells[4], re.M)) == 4
    assert "[home](../index.md)" in (to / "notebooks/02_b.ipynb").read_text()
    anchor = pages.DATA.lower().replace(" ", "-")
    assert (to / "results/README.md").read_text() == (
        f"[1](../notebooks/01_a.ipynb#{anchor}) [a](../notebooks/01_a.ipynb)"
    )
    assert (to / "docs/glossary.md").read_text() == (root / "docs/glossary.md").read_text()
    assert (to / "fedexit/rule.py").read_text() == "rule" and (to / "results/01_a/figures/picture.png").exists()


class Seen(HTMLParser):
    """Collect what a page loads, links to and names."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded, self.links, self.names = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag in LOADED and found.get(LOADED[tag]):
            self.loaded.append(found[LOADED[tag]])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])


def python_with(*modules: str) -> str:
    """Return an interpreter that has the modules: this one or that of `make book`. Without one, skip."""
    for python in (sys.executable, OWN_PYTHON):
        code = f"import importlib.util as u; raise SystemExit(not all(map(u.find_spec, {modules!r})))"
        if Path(python).exists() and subprocess.run([python, "-c", code]).returncode == 0:
            return str(python)
    pytest.skip(f"{', '.join(modules)} not installed: run make book, or pip install 'fedexit[book,browser]'")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """Return the folder of the website and what its builder complained about."""
    python, folder = python_with(*NEEDS), tmp_path_factory.mktemp("book")
    done = subprocess.run([python, str(BOOK / "build.py"), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html", done.stderr


@pytest.mark.book
def test_book_builds_without_warning_remote_file_or_broken_link(built):
    html, complaints = built
    assert complaints == ""
    files = [path for path in html.rglob("*.html") if "_static" not in path.parts]  # templates of the theme
    seen = {path.relative_to(html).as_posix(): Seen(path.read_text(encoding="utf-8")) for path in files}
    wanted = {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {"index.html", "search.html", "docs/glossary.html", *wanted} <= {*seen}
    faults = []
    for page, found in seen.items():
        for link in found.loaded + found.links:
            address = urlsplit(urljoin(SITE + page, link))
            here, file = address.netloc == "book", unquote(address.path.lstrip("/"))
            if link in found.loaded and not here and address.scheme != "data":
                faults.append(f"{page} loads {link}")
            elif here and not (html / file).is_file():
                faults.append(f"{page} links to {link}, which is missing")
            elif here and address.fragment and file in seen and unquote(address.fragment) not in seen[file].names:
                faults.append(f"{page} links to {link}, which has no such place")
    styles = "\n".join(path.read_text(encoding="utf-8") for path in html.rglob("*.css"))
    faults += re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", styles)
    assert faults == []


@pytest.mark.book
def test_book_has_formulas_search_and_the_data_of_each_table(built):
    html, _ = built
    page = (html / "notebooks" / "02_aggregation.html").read_text(encoding="utf-8")
    assert page.count("<math") > 5 and "<mfrac>" in page and "\\frac" not in page
    for table in (ROOT / "results").glob("*/tables/*.csv"):
        page = html / "notebooks" / f"{table.parents[1].name}.html"
        assert not page.exists() or f"/{table.name}" in page.read_text(encoding="utf-8"), table
    assert '"eq' in (html / "searchindex.js").read_text(encoding="utf-8")


@pytest.mark.book
def test_browser_without_a_network_finds_no_fault(built):
    python = python_with("playwright")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))):
        pytest.skip("no Chromium is installed")
    done = subprocess.run([python, str(BOOK / "check.py"), str(built[0])], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
