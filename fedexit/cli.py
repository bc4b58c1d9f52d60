"""Run the command `fedexit`. Each handler imports its own modules, so `--help` and error messages appear at once."""

import argparse
import errno
import json
import re
import sys
from collections.abc import Callable, Sequence

from fedexit import __version__
from fedexit.data_commands import add_data_commands
from fedexit.figure_commands import add_figure_commands
from fedexit.fleet_commands import add_fleet_commands
from fedexit.model_commands import add_model_commands
from fedexit.support.errors import FedexitError
from fedexit.teach_commands import add_teach_commands

_WRONG_PATHS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)  # the user's, not a fault of the machine
# exit codes: 0 done, 1 a notebook or the machine failed, 2 wrong input, 130 interrupted (Ctrl-C)


def main(arguments: list[str] | None = None) -> int:
    """Run the command with `arguments` (default: `sys.argv[1:]`) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):  # print a character that the console cannot show as its code
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if arguments is None else arguments
    args = _parser().parse_args(given)
    try:
        _refuse_empty(given)
        return args.handler(args) or 0
    except FedexitError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted; run the command again to resume", 130)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _complain("disk full; free space, then run the command again to resume", 1)
        what = str(error.strerror or error).splitlines()[0]  # some libraries raise OSError without a number and a text
        named, code = f"{error.filename or 'system'}", 2 if error.errno in _WRONG_PATHS else 1
        named = named if len(named) < 200 else f"{named:.100}..."
        return _complain(f"{named}: {what}; fix this, then run the command again", code)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raise FedexitError for an empty argument, which a variable of the shell without a value gives."""
    for place, own in enumerate(arguments):
        if own == "" or re.fullmatch(r"--[a-z-]+=", own):
            named = own[:-1] or f"number {place + 1}, after {arguments[place - 1] if place else 'fedexit'},"
            raise FedexitError(f"argument {named} is empty; give a value, or leave it out")


def _complain(message: str, code: int) -> int:
    print(f"fedexit: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedexit", description="Federated fine-tuning of speech models, reproducibly."
    )
    parser.add_argument("--version", action="version", version=f"fedexit {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _command(
        commands,
        "run",
        _run,
        "run notebooks that are out of date or unverified",
        "fedexit run 04_one_round --profile smoke -p more_rounds=3; fedexit run --profile paper --dry-run",
    )
    run.add_argument(
        "notebooks", nargs="*", metavar="NOTEBOOK", help="notebooks to run, after those that they need (default: all)"
    )
    run.add_argument("--profile", default="default", help="set of parameters in nbs_ci.yml (default: %(default)s)")
    run.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value for the cell tagged parameters, as YAML 1.2: 3, 1e-3, true, [3, 12]; no, on, 010, 12:30 are text",
    )
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks that run side by side (%(default)s)")
    run.add_argument("--force", action="store_true", help="run the named notebooks (or all) even if up to date")
    text = "print GPU hours, disk, network and memory of the paper's tables, and run nothing (with --profile paper)"
    run.add_argument("--dry-run", action="store_true", help=text)
    text = (
        "speed that --dry-run assumes of the device, in 10^12 operations per second (default: %(default)s, a quarter "
        "of the single-precision peak of an NVIDIA A100; an assumption, not a measurement)"
    )
    run.add_argument("--tflops", type=float, default=5.0, metavar="X", help=text)
    status = _command(
        commands,
        "status",
        _status,
        "show which results are out of date or unverified, and why",
        "fedexit status --profile smoke",
    )
    status.add_argument("--profile", default="default", help="set of parameters in nbs_ci.yml (default: %(default)s)")
    _add_publish_commands(commands)
    example = "fedexit pretrain data/backbones/mine -p updates=2000 -p corpora=[queen] --minutes 30"
    pretrain = _command(commands, "pretrain", _pretrain, "pre-train a backbone, or resume its pre-training", example)
    pretrain.add_argument("out", metavar="FOLDER", help="folder of the run; it becomes a model folder")
    pretrain.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="stop at a checkpoint after this time (default: run to the end)",
    )
    pretrain.add_argument(
        "-p", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="a setting, as YAML"
    )
    pretrain.add_argument("--device", default="cpu", help="where to train: auto, cpu, cuda or mps (%(default)s)")
    pretrain.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that compute a teacher's layers (%(default)s)"
    )
    text = "train a start for speech recognition on the public voice of a corpus, or resume the training"
    ctc = _command(commands, "ctc", _ctc, text, "fedexit ctc data/backbones/mine-ctc --start data/backbones/mine")
    ctc.add_argument("out", metavar="FOLDER", help="folder of the run; it becomes a model folder with CTC heads")
    ctc.add_argument(
        "--start", default="tiny-distilled", metavar="BACKBONE", help="model to start from (default: %(default)s)"
    )
    ctc.add_argument(
        "--corpus", default="queen", metavar="CORPUS", help="corpus with a public voice (default: %(default)s)"
    )
    text = "further corpus with texts to train on, e.g. of synthetic voices; can be given several times"
    ctc.add_argument("--more", action="append", default=[], metavar="CORPUS", help=text)
    ctc.add_argument(
        "-p", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="a setting, as YAML"
    )
    ctc.add_argument("--device", default="cpu", help="where to train: auto, cpu, cuda or mps (%(default)s)")
    add_model_commands(commands, _command)
    add_figure_commands(commands, _command)
    _add_bench_command(commands)
    add_data_commands(commands, _command)
    add_fleet_commands(commands, _command, _parameter)
    _add_cells_commands(commands)
    add_teach_commands(commands, _command)
    return parser


def _add_publish_commands(commands: argparse._SubParsersAction) -> None:
    text = "take the files of the last run, also where only times of this machine or the code differ"
    publish = _command(commands, "publish", _publish, text, "fedexit publish 12_cost_of_depth")
    publish.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="notebooks of the profile default")
    _command(commands, "readme", _readme, "write the tables of README.md from the stored results", "fedexit readme")


def _add_bench_command(commands: argparse._SubParsersAction) -> None:
    text = "measure speed and memory, and compare them with their lower limits"
    bench = _command(commands, "bench", _bench, text, "fedexit bench engine --repetitions 5")
    bench.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="engine, aggregate, depth or peers (installs other engines); default: the first three",
    )
    bench.add_argument(
        "--repetitions", type=int, default=3, metavar="N", help="repetitions of each measurement (%(default)s)"
    )
    bench.add_argument("--out", metavar="FOLDER", help="folder for tables and the figure (default: results/bench)")


def _add_cells_commands(commands: argparse._SubParsersAction) -> None:
    text = "list, check and publish the trained models of the experiments (cells)"
    cells = commands.add_parser("cells", help=text, epilog="example: fedexit cells list")
    parts = cells.add_subparsers(required=True, metavar="COMMAND")
    _command(parts, "list", _cells_list, "list the published cells by experiment", "fedexit cells list")
    text = "train some published cells again and compare them"
    check = _command(parts, "check", _cells_check, text, "fedexit cells check --cells 3 --whole")
    check.add_argument("--cells", type=int, metavar="N", help="number of cells (default: one of each experiment)")
    check.add_argument("--turn", type=int, default=0, metavar="N", help="another turn checks other cells (default: 0)")
    text = "train to the end (default: two rounds, or epochs of a central cell)"
    check.add_argument("--whole", action="store_true", help=text)
    text = "if all are bit-identical, note in same_code.csv that this code gives the published cells"
    check.add_argument("--record", action="store_true", help=text)
    text = "add finished cells to results/cells"
    publish = _command(parts, "publish", _cells_publish, text, "fedexit cells publish results/.state/full")
    publish.add_argument(
        "state", nargs="?", metavar="STATE", help="folder of finished cells (default: results/.state/full)"
    )


def _command(
    commands: argparse._SubParsersAction, name: str, handler: Callable, text: str, example: str
) -> argparse.ArgumentParser:
    sentence = f"{text[0].upper()}{text[1:]}."
    parser = commands.add_parser(name, help=text, description=sentence, epilog=f"example: {example}")
    parser.set_defaults(handler=handler)
    return parser


def _run(args: argparse.Namespace) -> int:
    from fedexit.runner.run import check_kinds, run

    overrides = dict(map(_parameter, args.parameters))
    if args.dry_run or args.profile == "paper":
        check_kinds(args.profile, args.notebooks, overrides)
        from fedexit.lab import paper_costs, paper_profile  # they take seconds

        grids, tables = paper_profile.grids_in(args.profile, args.notebooks, overrides)
        if args.dry_run and not grids:
            name = paper_profile.NOTEBOOK
            raise FedexitError(f"--dry-run knows the costs of {name} alone; name it, or give --profile paper")
        if args.dry_run:
            print(paper_costs.dry_run(grids, tables, args.tflops))
            return 0
        paper_profile.check_ready(grids)
    return 0 if run(args.profile, args.notebooks, overrides, args.force, args.jobs) else 1


def _parameter(text: str) -> tuple[str, object]:
    """Return the name and value of NAME=VALUE; the value is YAML: a number, text, true, null, a list or a mapping."""
    from fedexit.runner.yaml_text import parse_yaml

    shown = " ".join(text.split())
    where = f"-p {shown}" if len(shown) < 100 else f"-p {shown:.100}..."
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise FedexitError(f"{where}: write -p NAME=VALUE, for example -p rounds=3")
    if name == "profile":
        raise FedexitError(f"{where}: write --profile {value}")
    parsed = parse_yaml(value, where)
    try:  # the value is stored with the results as JSON and must come back unchanged
        same = json.loads(json.dumps(parsed, allow_nan=False)) == parsed
    except (TypeError, ValueError):
        same = False
    if not same:
        raise FedexitError(f"{where}: give a number, text, true, null, a list of these or a mapping from text to them")
    return name, parsed


def _status(args: argparse.Namespace) -> None:
    from fedexit.runner.run import status

    status(args.profile)


def _publish(args: argparse.Namespace) -> None:
    from fedexit.runner.publish import publish

    publish(args.notebooks)


def _readme(args: argparse.Namespace) -> None:
    from fedexit.lab.readme import write_readme

    write_readme()


def _pretrain(args: argparse.Namespace) -> None:
    from fedexit.central.masked_prediction import pretrain
    from fedexit.central.pretraining import pretraining_settings

    settings = pretraining_settings(dict(map(_parameter, args.settings)))
    finished = pretrain(settings, args.out, args.minutes, device=args.device, workers=args.workers)
    print(f"{args.out}: " + ("done" if finished else "stopped at a checkpoint; run the command again to resume"))


def _ctc(args: argparse.Namespace) -> None:
    from fedexit.central.ctc_start import train_ctc_start

    given = dict(map(_parameter, args.settings))
    train_ctc_start(args.out, args.start, args.corpus, given, args.device, args.more)
    print(f"{args.out}: done; its README.md has its error rates")


def _bench(args: argparse.Namespace) -> None:
    from fedexit.bench.suite import bench

    print(f"tables and figure: {bench(args.parts, args.repetitions, args.out)}")


def _cells_list(args: argparse.Namespace) -> None:
    from fedexit.lab.spot_checks import listed
    from fedexit.runner.cell_index import cells_folder

    print(listed(cells_folder()).to_string(index=False))


def _cells_check(args: argparse.Namespace) -> int:
    from fedexit.lab.spot_checks import check_cells, record
    from fedexit.runner.cell_index import cells_folder

    if args.cells is not None and args.cells < 1:
        raise FedexitError(f"--cells must be >= 1, not {args.cells}")
    found = check_cells(cells_folder(), args.cells, args.whole, turn=args.turn)
    if not all(one.passed for one in found):
        return 1
    if args.record:
        print(f"same_code.csv: the present code gives the cells of {len(record(cells_folder(), found))} other codes")
    return 0


def _cells_publish(args: argparse.Namespace) -> None:
    from pathlib import Path

    from fedexit.lab.published import publish
    from fedexit.runner.cell_index import cells_folder
    from fedexit.support.paths import results_dir

    state = Path(args.state) if args.state else results_dir() / ".state" / "full"
    if not (number := publish(state, cells_folder())):
        raise FedexitError(f"{state} has no finished cell; run a notebook with --profile full first")
    print(f"{number} cells of {state} are published in {cells_folder()}; the state can be deleted")
