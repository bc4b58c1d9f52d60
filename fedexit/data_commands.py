"""Define the commands on corpora: `fedexit data list | fetch | convert | manifest | trials | speak`."""

import argparse
import sys
from collections.abc import Callable


def add_data_commands(commands: argparse._SubParsersAction, command: Callable) -> None:
    """Add these commands; `command` is the function of `fedexit.cli` that adds one with its handler and example."""
    examples = "examples: fedexit data fetch emodb; fedexit data fetch voxceleb1 --from MY_FOLDER"
    text = "example: fedexit data list; more " + examples
    data = commands.add_parser("data", help="list, fetch and convert corpora", epilog=text)
    parts = data.add_subparsers(required=True, metavar="COMMAND")
    command(parts, "list", _data_list, "list the known corpora and where they are", "fedexit data list")
    example = "fedexit data fetch librispeech --part dev-clean --part test-clean"
    fetch = command(parts, "fetch", _data_fetch, "download a corpus, or make it of a release that you have", example)
    fetch.add_argument("name", metavar="NAME", help="a name that `fedexit data list` shows")
    fetch.add_argument(
        "--from", dest="source", metavar="PATH", help="use this folder or archive instead of the network"
    )
    text = "address of a folder with copies of the archives (default: the official one)"
    fetch.add_argument("--url", default="", metavar="URL", help=text)
    text = "an archive of the release; may be given several times (default: the usual ones)"
    fetch.add_argument("--part", dest="archives", action="append", default=[], metavar="PART", help=text)
    example = "fedexit data manifest queen --out queen.csv"
    manifest = command(parts, "manifest", _data_manifest, "write the manifest of a corpus", example)
    manifest.add_argument("corpus", metavar="CORPUS", help="name of a corpus, or a folder of your own")
    manifest.add_argument("--out", required=True, metavar="FILE.csv", help="file to write")
    example = "fedexit data trials queen --pairs 1000 --out trials.csv"
    trials = command(parts, "trials", _data_trials, "draw pairs of test clips for speaker verification", example)
    trials.add_argument("corpus", metavar="CORPUS", help="name of a corpus, or a folder of your own")
    trials.add_argument(
        "--pairs",
        type=int,
        default=1000,
        metavar="N",
        help="number of same-speaker pairs, and of different-speaker pairs (%(default)s)",
    )
    trials.add_argument("--out", required=True, metavar="FILE.csv", help="file to write")
    example = "fedexit data convert my_mp3s my_corpus"
    convert = command(
        parts, "convert", _data_convert, "convert a folder of audio into a corpus (16 kHz, mono)", example
    )
    convert.add_argument("folder", metavar="FOLDER", help="folder of audio files, of any sample rate and format")
    convert.add_argument("out", metavar="OUT", help="folder to create")
    text = "leave out unusable files and list them (default: the first one stops the conversion)"
    convert.add_argument("--skip-bad", action="store_true", help=text)
    example = "fedexit data speak voices --voice flite_slt --voice pico_en-GB"
    speak = command(parts, "speak", _data_speak, "let synthetic voices read the texts of the public voice", example)
    speak.add_argument("out", metavar="OUT", help="folder to create")
    text = "a voice of `fedexit.data.synthetic.VOICES`; may be given several times"
    speak.add_argument("--voice", dest="voices", action="append", required=True, metavar="VOICE", help=text)
    text = "corpus whose public voice has the texts (default: %(default)s)"
    speak.add_argument("--corpus", default="queen", metavar="CORPUS", help=text)
    speak.add_argument("--texts", metavar="FILE", help="further texts, one per line")
    text = "how many of the further texts each voice reads, drawn for it (default: %(default)s)"
    speak.add_argument("--number", type=int, default=0, metavar="N", help=text)


def _data_list(args: argparse.Namespace) -> None:
    from fedexit.data.corpora import list_corpora
    from fedexit.support.cache import feature_files, limit

    print(list_corpora().to_string(index=False))
    held = sum(feature_files().values())
    print(f"cache of frozen features: {held / 1e6:.0f} MB of at most {limit() / 1e6:.0f} MB")


def _data_fetch(args: argparse.Namespace) -> None:
    from fedexit.data.corpora import fetch_corpus

    corpus = fetch_corpus(args.name, args.source, args.url, args.archives)
    print(f"{args.name}: {len(corpus.table)} clips in {corpus.folder}")


def _data_manifest(args: argparse.Namespace) -> None:
    from fedexit.data.corpora import write_manifest

    print(f"manifest of {args.corpus}: {write_manifest(args.corpus, args.out)}")


def _data_trials(args: argparse.Namespace) -> None:
    from fedexit.data.trials import write_trials

    print(f"trials of {args.corpus}: {write_trials(args.corpus, args.pairs, args.out)}")


def _data_convert(args: argparse.Namespace) -> None:
    from fedexit.data.convert import gaps
    from fedexit.data.corpora import convert_folder

    corpus = convert_folder(args.folder, args.out, skip_bad=args.skip_bad)
    for line in gaps(corpus.folder):
        print(f"note: {line}", file=sys.stderr)


def _data_speak(args: argparse.Namespace) -> None:
    from fedexit.data.synthetic import public_texts, read_aloud, read_texts

    more = read_texts(args.texts) if args.texts else []
    corpus = read_aloud(public_texts(args.corpus), args.out, args.voices, more, args.number)
    print(f"{len(corpus.table)} clips in {corpus.folder}")
