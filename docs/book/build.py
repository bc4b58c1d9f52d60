"""Build the book from the published results: `make book`."""

import shutil
import sys
from pathlib import Path

from pages import gather
from sphinx.cmd.build import build_main

ROOT = Path(__file__).parents[2]


def main(folder: Path) -> int:
    """Write the pages into `folder`/pages and the website into `folder`/html. Return 0 if Sphinx had no fault."""
    for old in ("pages", "html"):
        shutil.rmtree(folder / old, ignore_errors=True)
    pages = gather(ROOT, folder / "pages")
    options = ["-q", "-b", "html", "-c", str(Path(__file__).parent), "-d", str(folder / "doctrees")]
    failed = build_main([*options, str(folder / "pages"), str(folder / "html")])
    print(f"{len(pages)} pages: open {folder / 'html' / 'index.html'}")
    return failed


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
