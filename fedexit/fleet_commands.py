"""Define the commands on fleets of devices: `fedexit fleet plan | up | run | down | certificates`."""

import argparse
from collections.abc import Callable

from fedexit.support.errors import FedexitError

_LONGEST_CLIP = 3600  # seconds


def add_fleet_commands(commands: argparse._SubParsersAction, command: Callable, parse: Callable) -> None:
    """Add these commands.

    Args:
        commands: Of the parser.
        command: The function of `fedexit.cli` that adds one with its handler and example.
        parse: The function that parses NAME=VALUE.
    """
    text = "plan a fleet of devices, and run one on Flower (docs/fleet.md)"
    fleet = commands.add_parser("fleet", help=text, epilog="example: fedexit fleet plan fleet.csv --rounds 20")
    parts = fleet.add_subparsers(required=True, metavar="COMMAND")
    text = "predict depth, memory, time and bytes of each device of a fleet file"
    plan = command(parts, "plan", _plan, text, "fedexit fleet plan fleet.csv --task keyword --rounds 20")
    plan.add_argument("file", metavar="FLEET", help="fleet file, CSV or TOML: client, depth, examples, device")
    plan.add_argument("--rounds", type=int, default=20, metavar="N", help="number of rounds (default: %(default)s)")
    plan.add_argument("--seconds", type=float, default=3.0, metavar="X", help="length of a clip (default: %(default)s)")
    plan.add_argument("--method", default="layerwise", metavar="NAME", help="the method (default: %(default)s)")
    _add_model(plan)
    up = command(parts, "up", _up, "start a whole fleet on this machine", "fedexit fleet up --nodes 3 --backbone nano")
    up.add_argument("--nodes", type=int, default=3, metavar="N", help="number of SuperNodes (default: %(default)s)")
    up.add_argument("--corpus", default="queen", metavar="CORPUS", help="name or folder (default: %(default)s)")
    up.add_argument("--simulated", action="store_true", help="let Flower simulate the nodes, without TLS and keys")
    _add_model(up)
    run = command(parts, "run", _run, "run or resume the federation on a fleet", "fedexit fleet run -p rounds=3")
    run.add_argument(
        "-p", dest="settings", action="append", default=[], metavar="NAME=VALUE",
        help="a setting of the app, see app/pyproject.toml in the folder of the fleet",
    )  # fmt: skip
    run.set_defaults(parse=parse)
    run.add_argument("--minutes", type=float, default=60.0, metavar="X", help="longest wait (default: %(default)s)")
    down = command(parts, "down", _down, "end the processes of a fleet, and no others", "fedexit fleet down")
    for part in (up, run, down):
        part.add_argument("--folder", default="fleet", metavar="FOLDER", help="of the fleet (default: %(default)s)")
    text = "make the certificates of a SuperLink on its own machine"
    made = command(parts, "certificates", _certificates, text, "fedexit fleet certificates certs 192.168.1.20")
    made.add_argument("folder", metavar="FOLDER", help="folder to create")
    made.add_argument("hosts", nargs="+", metavar="HOST", help="addresses by which nodes reach the machine")


def _add_model(part: argparse.ArgumentParser) -> None:
    part.add_argument("--task", default="keyword", metavar="NAME", help="the task (default: %(default)s)")
    part.add_argument("--backbone", default="tiny", metavar="NAME", help="the backbone (default: %(default)s)")


def _plan(args: argparse.Namespace) -> None:
    from fedexit.data.tasks import task_options
    from fedexit.data.text import CHARACTERS
    from fedexit.flower.fleet import read_fleet
    from fedexit.flower.plan import layers_trained, plan, summary
    from fedexit.model.backbone import load_backbone
    from fedexit.model.exits import MultiExitModel

    if not 0 < args.seconds <= _LONGEST_CLIP:  # NaN as well
        raise FedexitError(f"--seconds must be > 0 and at most {_LONGEST_CLIP}, not {args.seconds:g}")
    task_options(args.task)  # refuses a task that does not exist
    nodes, asr = read_fleet(args.file), args.task == "asr"
    labels = list(CHARACTERS) if asr else [str(number) for number in range(10)]
    model = MultiExitModel(load_backbone(args.backbone), labels, head="ctc" if asr else "pooled")
    table = plan(nodes, model, args.rounds, args.seconds, method=args.method)
    shown = table.assign(memory=table["memory"] / 2**20, bytes=table["bytes"] / 1e6, total=table["bytes_total"] / 1e6)
    shown = shown.rename(columns={"memory": "MiB", "bytes": "MB/round", "total": "MB"}).drop(columns="bytes_total")
    print(shown.to_string(index=False, float_format="{:.1f}".format))
    print(summary(table, layers_trained(table, nodes, model.backbone.layers), args.rounds))


def _up(args: argparse.Namespace) -> None:
    from pathlib import Path

    from fedexit.data.corpora import open_corpus
    from fedexit.data.tasks import make_task
    from fedexit.flower import local
    from fedexit.flower.fleet import nodes_of_task
    from fedexit.model.backbone import load_backbone
    from fedexit.model.exits import MultiExitModel

    named = Path(args.corpus)
    corpus = str(named.resolve()) if named.is_dir() else args.corpus
    task = make_task(args.task, open_corpus(args.corpus))
    model = MultiExitModel(load_backbone(args.backbone), task.labels, head=task.head)
    nodes = nodes_of_task(task, args.nodes, model.exits)
    local.up(args.folder, nodes, model, {"corpus": corpus, "task": args.task}, args.simulated)
    print(f"{len(nodes)} nodes in {args.folder}; next: fedexit fleet run --folder {args.folder} -p rounds=3")


def _run(args: argparse.Namespace) -> int:
    from fedexit.flower import local

    if not args.minutes > 0:  # NaN as well
        raise FedexitError(f"--minutes must be > 0, not {args.minutes:g}")
    ended = local.finished(args.folder, 60 * args.minutes, **dict(map(args.parse, args.settings)))
    print(f"the run is {ended}; checkpoint, model and tables: {args.folder}/run, log: {args.folder}/logs")
    return 0 if ended == "finished:completed" else 1


def _down(args: argparse.Namespace) -> None:
    from fedexit.flower import local

    if not (ended := local.down(args.folder)):
        local.facts_of(args.folder)  # refuses a folder without a fleet: its name may be misspelt
    print(f"{ended} processes ended")


def _certificates(args: argparse.Namespace) -> None:
    from pathlib import Path

    from fedexit.flower.certificates import make_certificates

    Path(args.folder).mkdir(parents=True, exist_ok=True)
    make_certificates(Path(args.folder), args.hosts)
    print(f"{args.folder}: keep server.key here, and copy ca.crt to every node")
