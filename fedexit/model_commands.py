"""Define the commands that use a trained model: `fedexit predict` and `fedexit export`."""

import argparse
import math
from collections.abc import Callable

from fedexit.support.errors import FedexitError

_CONFIDENCES = {"entropy": (-1, 0), "probability": (0, 1)}  # of the rules whose confidence has bounds


def add_model_commands(commands: argparse._SubParsersAction, command: Callable) -> None:
    """Add both commands; `command` is the function of `fedexit.cli` that adds one with its handler and example."""
    text = "print the label or text of recordings as CSV"
    example = "fedexit predict my_model yes.mp3 no.wav --rule probability --threshold 0.9"
    predict = command(commands, "predict", _predict, text, example)
    predict.add_argument("model", metavar="MODEL", help="folder of save_pretrained, or hub id")
    predict.add_argument("files", nargs="+", metavar="FILE", help="audio files of any format and rate")
    predict.add_argument("--exit", type=int, metavar="N", help="the exit that answers (default: the deepest)")
    predict.add_argument("--rule", metavar="NAME", help="stop early by entropy, probability or agreement")
    predict.add_argument("--threshold", type=float, metavar="X", help="the confidence at which a clip stops (--rule)")
    predict.add_argument("--device", default="cpu", help="where to compute: auto, cpu, cuda or mps (%(default)s)")
    text = "write a model, cut at one exit, to a file that other programs run, and check it"
    export = command(commands, "export", _export, text, "fedexit export my_model --exit 3 --to onnx --int8")
    export.add_argument("model", metavar="MODEL", help="folder of save_pretrained, or hub id")
    export.add_argument("--exit", type=int, metavar="N", help="the exit that answers (default: the deepest)")
    export.add_argument("--to", default="onnx", metavar="FORMAT", help="onnx or torchscript (default: %(default)s)")
    export.add_argument("--int8", action="store_true", help="store the linear layers in 8 bits (onnx)")
    export.add_argument("--out", metavar="FILE", help="file to write (default: MODEL-exitN.onnx, in this folder)")


def _predict(args: argparse.Namespace) -> None:
    from fedexit.support.placement import find_device

    low, high = _CONFIDENCES.get(args.rule, (-math.inf, math.inf))
    if args.threshold is not None and (args.threshold < low or args.threshold > high):
        raise FedexitError(f"--threshold {args.threshold} is outside {low} to {high}, the confidence of {args.rule}")
    model = _trained(args.model).to(find_device(args.device))
    table = model.predict(args.files, args.exit, args.rule, args.threshold)
    print(table.to_csv(index=False, lineterminator="\n", float_format="%.4f"), end="")


def _export(args: argparse.Namespace) -> None:
    from pathlib import Path

    from fedexit.devices.export import SUFFIXES, export

    model = _trained(args.model)
    exit = model.exits[-1] if args.exit is None else args.exit
    kind = ("-int8" if args.int8 else "") + SUFFIXES.get(args.to, "")
    file = args.out or f"{Path(args.model).resolve().name}-exit{exit}{kind}"
    done = export(model, exit, file, args.to, args.int8)
    measure = " Measure its error rate before you use it." if args.int8 else ""
    print(f"{file}: {done.bytes / 1e6:.2f} MB; its logits differ by at most {done.difference:.1g} (relative).{measure}")


def _trained(name: str):  # type: ignore[no-untyped-def]  # torch is imported by the commands that need it
    """Return the model in the folder `name`. Raises FedexitError for a backbone by name, and as `from_pretrained`."""
    from pathlib import Path

    from fedexit.model.backbone import PRESETS
    from fedexit.model.exits import MultiExitModel
    from fedexit.support.paths import backbone_folders

    if name in (*PRESETS, *backbone_folders()) and not Path(name).exists():
        raise FedexitError(
            f"{name} is a backbone, which gives no answers; train a model on it, and name the folder that "
            "model.save_pretrained(FOLDER) writes"
        )
    return MultiExitModel.from_pretrained(name)
