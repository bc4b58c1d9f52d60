"""Define the commands that make figures and tables again: `fedexit figure` and `fedexit table`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from fedexit.support.errors import FedexitError
from fedexit.support.files import check_target


def add_figure_commands(commands: argparse._SubParsersAction, command: Callable) -> None:
    """Add both commands; `command` is the function of `fedexit.cli` that adds one with its handler and example."""
    _add(commands, command, "figure", "fedexit figure 11_heterogeneous_depth/differences --format svg")
    _add(commands, command, "table", "fedexit table 1; fedexit table 11_heterogeneous_depth/main --format tex")


def _add(commands: argparse._SubParsersAction, command: Callable, kind: str, example: str) -> None:
    formats = {"figure": "png, pdf, svg or csv (default: png)", "table": "csv, tex or html (default: text)"}[kind]
    text = f"make a {kind} of the paper or of a notebook again from stored results, in seconds; without NAME, list all"
    parser = command(commands, kind, _make, text, example)
    parser.set_defaults(kind=kind)
    text = f"number of a {kind} in the paper, or NOTEBOOK/NAME"
    parser.add_argument("name", nargs="?", metavar="NAME", help=text)
    parser.add_argument("--format", metavar="FORMAT", help=formats)
    out = {"figure": "NOTEBOOK-NAME.FORMAT in this folder", "table": "print it"}[kind]
    parser.add_argument("--out", metavar="FILE", help=f"file to write (default: {out})")
    text = "first run the notebook that makes it, from nothing; the list gives the minutes"
    parser.add_argument("--rerun", action="store_true", help=text)
    text = "results to read, a profile of nbs_ci.yml (default: %(default)s, the published results)"
    parser.add_argument("--profile", default="default", help=text)


def _make(args: argparse.Namespace) -> int:
    from fedexit.lab import drawing

    if args.name is None:
        for item in drawing.items(args.kind, args.profile):
            minutes = f"{item.minutes:g} min" if item.minutes else ""
            print(f"{item.name:45} {minutes:>8}  {item.about}")
        return 0
    item = drawing.find(args.kind, args.name, args.profile)
    format = _format(args, drawing.FORMATS[args.kind])
    out = Path(args.out or f"{item.source.replace('/', '-')}.{format}")
    if args.kind == "figure" or args.out:
        check_target(out)
    if args.rerun:
        _rerun(item.notebook, args.profile)
    data = drawing.read(item, args.profile)
    if args.kind == "table" and not args.out:
        shown = drawing.as_text(data, format) if format else data.to_string(index=False, na_rep="", float_format="%.2f")
        print(shown.rstrip("\n"))
        return 0
    drawing.save(item, data, format, out)
    minutes = f", or with --rerun in about {item.minutes:g} minutes" if item.minutes else ""
    print(f"{out}: {item.about}; from the results of {item.notebook}{minutes}")
    return 0


def _format(args: argparse.Namespace, known: tuple[str, ...]) -> str:
    """Return the format that `--format` or the suffix of `--out` names; none for a table that is printed."""
    suffix = Path(args.out).suffix.lstrip(".") if args.out else ""
    default = "png" if args.kind == "figure" else ("csv" if args.out else "")
    format = args.format or suffix or default
    if format and format not in known:
        raise FedexitError(f"{format!r} is no format of a {args.kind}; available: {', '.join(known)}")
    return format


def _rerun(notebook: str, profile: str) -> None:
    """Run the notebook again, and first those that it needs."""
    from fedexit.runner.run import run

    if notebook == "bench":
        raise FedexitError("run `fedexit bench` to measure the engines again")
    print(f"running {notebook} in profile {profile}", file=sys.stderr)
    if not run(profile, [notebook], {}, force=True):
        raise FedexitError(f"{notebook} failed; the message above says where")
