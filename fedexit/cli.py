"""The command `fedexit`. Handlers import what they need, so that --help and mistakes answer at once."""

import argparse
import errno
import json
import sys

from fedexit.support.errors import FedexitError

# exit codes: 0 done, 1 a notebook or the machine failed, 2 wrong input, 130 interrupted (Ctrl-C)


def main(arguments: list[str] | None = None) -> int:
    """Run the command with `arguments` (default: those of the process) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console without UTF-8 must not fail after the work
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(arguments)
    try:
        return args.handler(args) or 0
    except FedexitError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted; run the same command again, it resumes", 130)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _complain("disk full; free space and run the same command again, it resumes", 1)
        what = error.strerror or error  # libraries raise it without the system's number and words
        return _complain(f"{error.filename or 'system'}: {what}; mend it and run the same command again", 1)


def _complain(message: str, code: int) -> int:
    print(f"fedexit: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedexit", description="Federated fine-tuning of speech models, reproducibly."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _command(
        commands, "run", _run, "run notebooks that are out of date", "fedexit run 02_aggregation -p rounds=3"
    )
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="default: all; what it needs runs first")
    run.add_argument("--profile", default="default", help="set of parameters in nbs_ci.yml (default: %(default)s)")
    run.add_argument(
        "-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help="a parameter, as YAML"
    )
    run.add_argument("--force", action="store_true", help="run the named notebooks (or all) even if up to date")
    status = _command(commands, "status", _status, "say what is out of date and why", "fedexit status --profile smoke")
    status.add_argument("--profile", default="default", help="set of parameters in nbs_ci.yml (default: %(default)s)")
    example = "fedexit pretrain data/backbones/mine -p updates=2000 -p corpora=[queen] --minutes 30"
    pretrain = _command(commands, "pretrain", _pretrain, "pre-train a backbone, or go on with it", example)
    pretrain.add_argument("out", metavar="FOLDER", help="of the run; in the end it is a model folder")
    pretrain.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="stop at a checkpoint after so long; default: run to the end",
    )
    pretrain.add_argument(
        "-p", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="a setting, as YAML"
    )
    text = "train a start for speech recognition on a corpus's public voice, or go on with it"
    ctc = _command(commands, "ctc", _ctc, text, "fedexit ctc data/backbones/mine-ctc --start data/backbones/mine")
    ctc.add_argument("out", metavar="FOLDER", help="of the run; in the end it is a model folder with CTC heads")
    ctc.add_argument("--start", default="tiny", metavar="BACKBONE", help="what to train (default: %(default)s)")
    ctc.add_argument("--corpus", default="queen", metavar="CORPUS", help="whose public voice (default: %(default)s)")
    ctc.add_argument(
        "-p", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="a setting, as YAML"
    )
    _add_bench_command(commands)
    _add_data_commands(commands)
    return parser


def _add_bench_command(commands: argparse._SubParsersAction) -> None:
    text = "measure speed and memory beside their floors"
    bench = _command(commands, "bench", _bench, text, "fedexit bench engine --repetitions 5")
    bench.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="engine, aggregate, depth or peers (installs them); default: first three",
    )
    bench.add_argument("--repetitions", type=int, default=3, metavar="N", help="of each measurement, in turn (3)")
    bench.add_argument("--out", metavar="FOLDER", help="for tables and figure; default: results/bench")


def _add_data_commands(commands: argparse._SubParsersAction) -> None:
    data = commands.add_parser("data", help="list, fetch and convert corpora", epilog="example: fedexit data list")
    parts = data.add_subparsers(required=True, metavar="COMMAND")
    _command(parts, "list", _data_list, "corpora and where they are", "fedexit data list")
    fetch = _command(parts, "fetch", _data_fetch, "download a corpus", "fedexit data fetch queen")
    fetch.add_argument("name", metavar="NAME", help="a name of `fedexit data list`")
    fetch.add_argument(
        "--from", dest="source", metavar="FILE", help="use this downloaded archive instead of the network"
    )
    example = "fedexit data manifest queen --out queen.csv"
    manifest = _command(parts, "manifest", _data_manifest, "write the manifest of a corpus", example)
    manifest.add_argument("corpus", metavar="CORPUS", help="a corpus or a folder of your own")
    manifest.add_argument("--out", required=True, metavar="FILE.csv", help="where to write it")
    example = "fedexit data trials queen --pairs 1000 --out trials.csv"
    trials = _command(parts, "trials", _data_trials, "draw pairs of test clips for speaker verification", example)
    trials.add_argument("corpus", metavar="CORPUS", help="a corpus or a folder of your own")
    trials.add_argument("--pairs", type=int, default=1000, metavar="N", help="of one speaker, as many of two (1000)")
    trials.add_argument("--out", required=True, metavar="FILE.csv", help="where to write it")
    example = "fedexit data convert my_mp3s my_corpus"
    convert = _command(parts, "convert", _data_convert, "make a corpus (16 kHz, mono) of a folder of audio", example)
    convert.add_argument("folder", metavar="FOLDER", help="audio of any rate and format")
    convert.add_argument("out", metavar="OUT", help="new folder, not there yet")
    text = "leave out files that cannot be used, and list them (default: the first one stops the conversion)"
    convert.add_argument("--skip-bad", action="store_true", help=text)


def _command(commands: argparse._SubParsersAction, name: str, handler, text: str, example: str):
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".", epilog=f"example: {example}")
    parser.set_defaults(handler=handler)
    return parser


def _run(args: argparse.Namespace) -> int:
    from fedexit.runner.run import run

    return 0 if run(args.profile, args.notebooks, dict(map(_parameter, args.parameters)), args.force) else 1


def _parameter(text: str) -> tuple[str, object]:
    """NAME=VALUE, the value read as YAML: a number, text, true, null, a list or a mapping."""
    from fedexit.runner.manifest import parse_yaml

    name, equals, value = text.partition("=")
    if not (name and equals):
        raise FedexitError(f"-p {text}: write -p NAME=VALUE, for example -p rounds=3")
    if name == "profile":
        raise FedexitError(f"-p {text}: write --profile {value}")
    parsed = parse_yaml(value, f"-p {text}")
    try:  # what is stored with the results comes back from JSON
        same = json.loads(json.dumps(parsed, allow_nan=False)) == parsed
    except (TypeError, ValueError):
        same = False
    if not same:
        raise FedexitError(
            f"-p {text}: give a number, text, true, null, a list of these or a mapping from text to them"
        )
    return name, parsed


def _status(args: argparse.Namespace) -> None:
    from fedexit.runner.run import status

    status(args.profile)


def _pretrain(args: argparse.Namespace) -> None:
    from fedexit.central.masked_prediction import pretrain, pretraining_settings

    settings = pretraining_settings(dict(map(_parameter, args.settings)))
    finished = pretrain(settings, args.out, args.minutes)
    print(f"{args.out}: " + ("done" if finished else "stopped at a checkpoint; run the same command again, it goes on"))


def _ctc(args: argparse.Namespace) -> None:
    from fedexit.central.ctc_start import train_ctc_start

    train_ctc_start(args.out, args.start, args.corpus, dict(map(_parameter, args.settings)))
    print(f"{args.out}: done; its card says how well it spells")


def _bench(args: argparse.Namespace) -> None:
    from fedexit.bench.suite import bench

    print(f"tables and figure: {bench(args.parts, args.repetitions, args.out)}")


def _data_list(args: argparse.Namespace) -> None:
    from fedexit.data.corpora import list_corpora
    from fedexit.model.features import feature_files, limit

    print(list_corpora().to_string(index=False))
    held = sum(feature_files().values())
    print(f"features of frozen convolutions: {held / 1e6:.0f} of at most {limit() / 1e6:.0f} MB in the cache")


def _data_fetch(args: argparse.Namespace) -> None:
    from fedexit.data.corpora import fetch_corpus

    corpus = fetch_corpus(args.name, args.source)
    print(f"{args.name}: {len(corpus.dataset)} clips in {corpus.folder}")


def _data_manifest(args: argparse.Namespace) -> None:
    from fedexit.data.corpora import write_manifest

    print(f"manifest of {args.corpus}: {write_manifest(args.corpus, args.out)}")


def _data_trials(args: argparse.Namespace) -> None:
    from fedexit.data.trials import write_trials

    print(f"trials of {args.corpus}: {write_trials(args.corpus, args.pairs, args.out)}")


def _data_convert(args: argparse.Namespace) -> None:
    from fedexit.data.corpora import convert_folder

    convert_folder(args.folder, args.out, skip_bad=args.skip_bad)
