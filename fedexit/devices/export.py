"""Export a model, cut at one exit, to one file that other programs run: ONNX or TorchScript.

The file reads waveforms of any loudness and answers with logits; it normalises each clip itself. It is written under
its name only if it gives the logits of the model.

ONNX files come from torch's tracing exporter (`dynamo=False`). The newer exporter gives the same numbers, but takes
twenty times as long and needs two more libraries. TorchScript still works, but torch no longer develops it.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedexit import __version__
from fedexit.data.constants import SAMPLE_RATE
from fedexit.model.ctc import within
from fedexit.model.exits import MultiExitModel
from fedexit.model.heads import head_name
from fedexit.model.pretrained import quiet_transformers
from fedexit.support.checks import check_exit, whole_number
from fedexit.support.errors import FedexitError, reason
from fedexit.support.files import replacing
from fedexit.support.streams import seeded

Batch = tuple[Tensor, Tensor]
Runner = Callable[[Tensor, Tensor], list[Tensor]]
SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt"}
TOLERANCE = 1e-5  # of the logits, relative to the largest, or absolute if that is below 1
_INT8_TOLERANCE = 0.5  # an upper limit that only a broken file exceeds
_TRIALS = ([0.5], [1.0, 0.0, 0.7], [2.5], [0.3, 1.7, 1.1, 0.9])  # seconds of the clips of each batch; 0: the shortest


class Exported(NamedTuple):
    """A file that was written and checked.

    file: its path.
    bytes: its size.
    difference: largest difference of its logits from the model's, relative to the largest logit, or absolute if that is
        below 1.
    """

    file: Path
    bytes: int
    difference: float


def export(model: MultiExitModel, exit: int, file: str | Path, to: str = "onnx", int8: bool = False) -> Exported:
    """Write the layers up to `exit` and its head to `file`, in single precision, and check them against the model.

    The graph has the inputs `waveforms` (B, T), float32 at 16 kHz, zero-padded, of any loudness, and `lengths` (B,),
    int64 samples of each clip. B and T are free. It has the output `logits` (B, labels); of a CTC head it has `logits`
    (B, F, 1 + labels), whose class 0 is the blank, and `frames` (B,). LoRA adapters are merged. A graph cannot refuse
    input: a clip below `shortest_samples` or with NaN gives logits without meaning, or an error of the runtime.

    Metadata, as texts: `labels` (JSON list, in the order of the logits), `head`, `exit`, `sample_rate`,
    `shortest_samples`, `backbone`, `precision` and `fedexit_version`. An ONNX file has them in its metadata, a
    TorchScript file as extra files.

    Args:
        model: the model; it does not change.
        exit: one of its exits.
        file: the file to write.
        to: `onnx` or `torchscript`.
        int8: store the matrices of linear layers in 8 bits and multiply in integers, for ONNX. Scales are found for
            each batch while it runs, so no data are needed. Convolutions stay in single precision.

    Raises:
        FedexitError: for an unknown exit or format, int8 of TorchScript, a missing library, a file that cannot be
            written, and a file that does not give the model's logits (nothing is left then).

    Example:
        >>> export(model, 3, "yes_or_no.onnx")
        Exported(file=PosixPath('yes_or_no.onnx'), bytes=4060123, difference=4.2e-07)
    """
    _check_request(model, exit, to, int8)
    _check_ending(file, to)
    cut = model.client_model(exit).cpu().float().eval().requires_grad_(False)
    shortest = _shortest(cut)
    about = {
        "labels": json.dumps(cut.labels, ensure_ascii=False),
        "head": head_name(cut.head),
        "targets": cut.targets,
        "exit": str(exit),
        "sample_rate": str(SAMPLE_RATE),
        "shortest_samples": str(shortest),
        "backbone": cut.backbone.name,
        "precision": "int8" if int8 else "float32",
        "fedexit_version": __version__,
    }
    trials = _trials(shortest)
    expected = [cut(*batch)[exit] for batch in trials]
    graph = ExitGraph(cut).eval()
    try:
        with replacing(file) as part:
            if to == "onnx":
                _write_onnx(graph, trials[1], part, about, int8)
            else:
                _write_torchscript(graph, trials[1], part, about)
            run = load_onnx(part) if to == "onnx" else _load_torchscript(part)
            difference = max(_difference(cut, run, *pair) for pair in zip(trials, expected, strict=True))
            if not difference <= (_INT8_TOLERANCE if int8 else TOLERANCE):  # NaN fails as well
                raise FedexitError(
                    f"the {to} file of exit {exit} differs from the model by {difference:.1g} of its logits, so it was "
                    "removed; choose the other format, or leave out int8"
                )
    except OSError as error:
        raise FedexitError(f"{file} cannot be written ({reason(error)}); name another place") from error
    return Exported(Path(file), Path(file).stat().st_size, difference)


class ExitGraph(nn.Module):
    """The layers of `cut`, a model with one exit, and its head, as a tracer can follow them."""

    def __init__(self, cut: MultiExitModel):
        super().__init__()
        self.cut = cut.merged() if cut.backbone.lora else cut

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Return the logits, and the frame lengths (B,) of texts, for waveforms (B, T) of `lengths` (B,)."""
        states, frames = self.cut.backbone.traced_states(waveforms, lengths)
        *_, last = states
        logits = self.cut.head_at(self.cut.exits[0])(last, frames)
        return (logits, frames) if self.cut.targets == "text" else (logits,)


def onnx_available() -> bool:
    """Return whether ONNX files can be written and run: this needs onnx and onnxruntime, optional libraries."""
    return all(map(find_spec, ("onnx", "onnxruntime")))


def load_onnx(file: str | Path, threads: int = 1) -> Runner:
    """Return a function that runs an ONNX file of `export`: (waveforms, lengths) to a list of its outputs.

    Raises FedexitError without onnxruntime.
    """
    _check_libraries()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(waveforms: Tensor, lengths: Tensor) -> list[Tensor]:
        inputs = {"waveforms": waveforms.numpy(), "lengths": lengths.numpy()}
        return [torch.from_numpy(output) for output in session.run(None, inputs)]

    return run


def _load_torchscript(file: Path) -> Runner:
    with _quiet():
        traced = torch.jit.load(file)
    return lambda waveforms, lengths: list(traced(waveforms, lengths))


def _check_request(model: MultiExitModel, exit: int, to: str, int8: bool) -> None:
    if not isinstance(model, MultiExitModel):
        raise FedexitError(f"the model to export is a {type(model).__name__}; give a MultiExitModel")
    check_exit(whole_number(exit, "exit"), model.exits, model.backbone.name)
    if to not in list(SUFFIXES):
        raise FedexitError(f"unknown format {to!r}; known: {', '.join(SUFFIXES)}")
    if int8 and to != "onnx":
        raise FedexitError(f"int8 exists for onnx only, not for {to}; export to onnx, or leave out int8")
    if to == "onnx":
        _check_libraries()


def _check_ending(file: str | Path, to: str) -> None:
    for other, ending in SUFFIXES.items():
        if other != to and Path(file).suffix == ending:
            raise FedexitError(
                f"{file} has the ending of {other}, not of {to}; name it *{SUFFIXES[to]}, or give {other}"
            )


def _check_libraries() -> None:
    if not onnx_available():
        raise FedexitError('ONNX files need onnx and onnxruntime; install them: pip install "fedexit[export]"')


def _shortest(model: MultiExitModel) -> int:
    """Return the fewest samples that give one frame."""
    samples, config = 1, model.backbone.model.config
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        samples = (samples - 1) * stride + kernel
    return samples


def _trials(shortest: int) -> list[Batch]:
    """Return batches of noise (B, T) with lengths (B,), the first clip with an offset that normalising removes."""
    with seeded("export"):
        lengths = [torch.tensor([max(shortest, int(SAMPLE_RATE * clip)) for clip in clips]) for clips in _TRIALS]
        return [(0.1 * torch.randn(len(own), int(own.max())) + 0.05 * (own == own[0])[:, None], own) for own in lengths]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings about shapes in a trace, which the check covers, and about newer exporters."""
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        yield


def _write_torchscript(graph: ExitGraph, example: Batch, file: Path, about: dict[str, str]) -> None:
    with _quiet():
        traced = torch.jit.freeze(torch.jit.trace(graph, example, check_trace=False))
        torch.jit.save(traced, file, _extra_files=about)


def _write_onnx(graph: ExitGraph, example: Batch, file: Path, about: dict[str, str], int8: bool) -> None:
    import onnx

    axes = {"waveforms": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}, "logits": {0: "batch"}}
    if graph.cut.head != "pooled":
        axes |= {"logits": {0: "batch", 1: "frames"}, "frames": {0: "batch"}}
    inputs, outputs = list(axes)[:2], list(axes)[2:]
    with _quiet():
        torch.onnx.export(
            graph, example, file, input_names=inputs, output_names=outputs, dynamic_axes=axes, dynamo=False
        )
    if int8:
        _quantise(file)
    written = onnx.load(file)
    onnx.helper.set_model_props(written, about)
    onnx.save(written, file)


def _quantise(file: Path) -> None:
    """Replace the linear layers of an ONNX file by 8-bit ones, with a scale for each output.

    The weights are unsigned: processors without 8-bit dot products (AVX2) overflow in products with signed ones.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(file, file, skip_symbolic_shape=True)
    quantize_dynamic(file, file, ["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QUInt8)


def _difference(cut: MultiExitModel, run: Runner, batch: Batch, expected: Tensor) -> float:
    """Return the `difference` of `Exported` on one batch; infinity for outputs of another shape or other frames."""
    logits, *frames = run(*batch)
    if logits.shape != expected.shape or not all(torch.equal(cut.backbone.frame_lengths(batch[1]), f) for f in frames):
        return float("inf")
    largest = (expected if cut.head == "pooled" else expected[within(expected)]).abs().max()
    return float((logits - expected).abs().max() / largest.clamp(min=1))
