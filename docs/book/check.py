"""Open every page of the book in headless Chromium without a network and list its faults: `make book-check`."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}  # pixels, width and height
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Quiet(SimpleHTTPRequestHandler):
    """Serve files without a line for each request."""

    def log_message(self, *_) -> None:
        """Print nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine while the block runs. Give the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def watched(browser: Browser, home: str, size: tuple[int, int], dark: bool, faults: list[str]) -> Page:
    """Return a page that reaches `home` alone and adds errors and other requests to `faults`."""
    width, height = size
    scheme = "dark" if dark else "light"
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()

    def only_here(route) -> None:
        if route.request.url.startswith((home, "data:", "blob:")):
            route.continue_()
        else:
            faults.append(f"remote request from {page.url}: {route.request.url}")
            route.abort()

    page.route("**/*", only_here)
    page.on("pageerror", lambda error: faults.append(f"error on {page.url}: {error}"))
    page.on("console", lambda said: said.type == "error" and faults.append(f"console of {page.url}: {said.text}"))
    page.on("response", lambda got: got.status >= 400 and faults.append(f"{got.status} on {page.url}: {got.url}"))
    return page


def faults_of(book: Path, browser: Browser, pictures: Path | None = None) -> list[str]:
    """Return the faults of all pages of the folder `book` at both widths; keep pictures of some in `pictures`."""
    faults: list[str] = []
    names = sorted(path.relative_to(book).as_posix() for path in book.rglob("*.html") if "_static" not in path.parts)
    with served(book) as home:
        for kind, size in WIDTHS.items():
            page = watched(browser, home, size, False, faults)
            for name in names:
                page.goto(home + name)
                if (over := page.evaluate(OVERFLOW)) > 0:
                    faults.append(f"{name} is {over} pixels wider than a {kind}")
                if pictures and name in PICTURED:
                    page.screenshot(path=pictures / f"{Path(name).stem}-{kind}.png")
        searching = watched(browser, home, WIDTHS["desktop"], True, faults)
        searching.goto(home + "search.html?q=stale")
        searching.wait_for_selector("#search-results li a", timeout=20_000)
        if pictures:
            searching.screenshot(path=pictures / "search-dark.png")
    return faults


PICTURED = {"index.html", "notebooks/02_aggregation.html", "notebooks/11_heterogeneous_depth.html", "docs/api.html"}


def main(book: Path, pictures: Path | None) -> int:
    """Print the faults of the book. Return 0 if there is none, 1 for faults, 2 without a browser."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        print(f"no browser is installed ({', '.join(BROWSERS)}); install chromium, then try again", file=sys.stderr)
        return 2
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        faults = faults_of(book, browser, pictures)
        browser.close()
    print(*faults or ["the browser found no fault"], sep="\n")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
