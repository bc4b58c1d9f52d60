"""The multi-exit model: a backbone with a prediction head on each exit (paper, sec. 2.1 and 3)."""

import copy
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedexit import __version__
from fedexit.data.batches import Example
from fedexit.data.checks import checked_labels
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.inspection import check_clips
from fedexit.data.recordings import Recordings
from fedexit.model.backbone import Backbone, backbone_from_config, config_of, default_exits, state_hash
from fedexit.model.heads import HEADS, AnyHead
from fedexit.model.lora import merged, with_lora
from fedexit.model.pretrained import model_folder
from fedexit.support.checks import check_exits, misfits
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.files import replacing, write_text
from fedexit.support.streams import seeded

_INPUT = {"sampling_rate": SAMPLE_RATE, "do_normalize": True}  # as `transformers` calls them: mean 0, variance 1


class MultiExitModel(nn.Module):
    """A backbone with an independent head on each exit, or one head for all of them.

    Parameters are named `backbone.model.encoder.layers.{l-1}.*` and `heads.{exit}.*`, or `heads.shared.*`, the same at
    every depth: aggregation relies on the names.

    Args:
        backbone: the layers that the exits read; it is not copied.
        labels: names of the classes, or characters, in the order of the logits. NumPy scalars become Python ones.
        exits: layers (from 1) with a head; default the four quarter depths.
        seed: draws the heads' weights.
        head: a name in `HEADS`: `pooled` for labels of whole clips, `ctc` or `ctc-bilstm` for texts.
        shared_head: one head for all exits.

    Raises:
        FedexitError: for another kind of backbone, an exit that it lacks, no exits, labels that are not a list, and an
            unknown head.

    Example:
        >>> logits = MultiExitModel(load_backbone("nano"), ["yes", "no"])(*collate(clips)[:2])[12]  # (B, 2)
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: Iterable[str],
        exits: Iterable[int] | None = None,
        seed: int = 0,
        head: str = "pooled",
        shared_head: bool = False,
    ):
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise FedexitError(f"the backbone is a {type(backbone).__name__}; give one of load_backbone")
        if head not in list(HEADS):
            raise FedexitError(f"unknown head {head!r}; known: {', '.join(HEADS)}")
        self.backbone, self.head, self.shared_head = backbone, head, shared_head
        self.labels = checked_labels(labels, head != "pooled")
        exits = default_exits(backbone.layers) if exits is None else exits
        self.exits = check_exits(exits, range(1, backbone.layers + 1), backbone.name)
        with seeded(seed, "heads"):
            names = ["shared"] if shared_head else map(str, self.exits)
            self.heads = nn.ModuleDict({name: HEADS[head](backbone.width, len(self.labels)) for name in names})
        for own in self.heads.values():
            own.norm = copy.deepcopy(backbone.final_norm).requires_grad_(True)
        self.heads.to(backbone.model.dtype)

    def head_at(self, depth: int) -> AnyHead:
        """Return the head that reads exit `depth`."""
        return self.heads["shared" if self.shared_head else str(depth)]  # type: ignore[return-value]  # of ModuleDict

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, exits: Iterable[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the logits at each of `exits`, from one pass that stops at the deepest of them.

        Args:
            waveforms: as for `Backbone.hidden_states`, which also names the errors.
            lengths: as for `Backbone.hidden_states`, too.
            exits: some of the model's exits; default all.

        Returns:
            By exit: (B, labels), or (B, F, 1 + labels) of a CTC head.
        """
        states, frames = self.states(waveforms, lengths, exits)
        return {depth: self.head_at(depth)(state, frames) for depth, state in states.items()}

    def states(
        self, waveforms: Tensor, lengths: Tensor | None = None, exits: Iterable[int] | None = None
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Return what the heads of `exits` (default all) read: (B, F, D) by exit, and the frame lengths (B,).

        Arguments and errors are those of `forward`.
        """
        asked = self._asked(exits)
        states, frames = self.backbone.layer_by_layer(waveforms, lengths)
        found = list(itertools.islice(states, max(asked) + 1))
        return {depth: found[depth] for depth in asked}, frames

    @torch.no_grad()
    def embeddings(
        self, waveforms: Tensor, lengths: Tensor | None = None, exits: Iterable[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the linear layer's input at each of `exits`: standardised pooled statistics (B, 2D), for verification.

        Arguments and errors are those of `forward`.
        """
        states, frames = self.states(waveforms, lengths, exits)
        heads = {depth: self.head_at(depth) for depth in states}
        return {d: (head.reads(states[d], frames) - head.centre) / head.scale for d, head in heads.items()}

    def predict(
        self,
        recordings: Any,
        exit: int | None = None,
        rule: str | None = None,
        threshold: float | None = None,
        rate: int | None = None,
        batch_size: int = 8,
    ) -> pd.DataFrame:
        """Return the label or text of each recording, at one exit or at the first that is confident enough.

        The model normalises its input, so loudness does not matter. It is put into evaluation mode.

        Args:
            recordings: one or a list of: audio files of any format and rate; waveforms (T,), tensors or arrays.
            exit: the exit that answers; default the deepest.
            rule: in place of `exit`: a confidence rule in `fedexit.model.early_exit.RULES`.
            threshold: confidence, in the unit of `rule`, at which a clip stops.
            rate: rate of the waveforms in Hz; files state their own.
            batch_size: clips per batch; with a rule they run one by one.

        Returns:
            A row per recording: `clip` (path, or position of a waveform), `label` or `text`, `confidence` (probability
            of the label, or mean over the frames that are not blank; 0 for an empty text) and `exit`.

        Raises:
            FedexitError: before any answer, for recordings that cannot be read (all are named), and wrong options.

        Example:
            >>> model.predict(["yes.mp3", "no.wav"], rule="probability", threshold=0.9)
        """
        from fedexit.model.answers import answered  # it imports this module

        clips = Recordings(recordings, rate, 0 if self.head == "pooled" else [])
        return answered(self, clips, exit, rule, threshold, batch_size)

    def transcribe(self, recordings: Any, **options: Any) -> pd.DataFrame:
        """Return `predict(recordings, **options)` of a CTC model. Raises FedexitError for a model of labels."""
        if self.head == "pooled":
            raise FedexitError("the model predicts labels, not texts; use predict")
        return self.predict(recordings, **options)

    def _asked(self, exits: Iterable[int] | None) -> list[int]:
        return self.exits if exits is None else check_exits(exits, self.exits, self.backbone.name)

    def check_clips(
        self, data: Sequence[Example], owner: str, spells: bool = False, start: int = 0
    ) -> tuple[list[int], bool]:
        """Check that this model can read all clips and targets of `data`; see `fedexit.data.inspection.check_clips`."""
        channels, frames, texts = self.backbone.channels, self.backbone.frame_lengths, self.head != "pooled"
        return check_clips(data, owner, channels, frames, len(self.labels), texts, spells, start)

    @torch.no_grad()
    def standardise(self, waveforms: Tensor, lengths: Tensor) -> None:
        """Set `centre` and `scale` of each head so that its input has mean 0 and variance 1 over these clips.

        Pooled statistics are nearly the same for all clips: at random weights their mean is several times their spread.
        A head that reads them unscaled predicts the most frequent class for a long time. This is ours, not the paper's.
        No labels are needed. Arguments are those of `forward`. Raises FedexitError for one clip, which has no spread.
        """
        states, frames = self.states(waveforms, lengths)
        for exits in [self.exits] if self.shared_head else [[depth] for depth in self.exits]:
            head = self.head_at(exits[0])
            read = torch.cat([head.reads(states[depth], frames) for depth in exits])
            if len(read) < 2:
                raise FedexitError("a head cannot be standardised on one clip; give two or more")
            head.centre.copy_(read.mean(0))
            head.scale.copy_(read.std(0) + 1e-3)

    def client_model(self, depth: int, exits: Iterable[int] | None = None) -> "MultiExitModel":
        """Return an independent copy for a client: layers 1..depth and the heads of `exits` (default `depth` alone).

        Raises FedexitError for a depth or exit that the model lacks, and for an exit deeper than `depth`.
        """
        exits = self._asked([depth] if exits is None else exits)
        backbone = self.backbone.truncated(depth)
        shallow = MultiExitModel(backbone, self.labels, exits, head=self.head, shared_head=self.shared_head)
        heads = self.heads.state_dict()
        shallow.heads.load_state_dict({name: heads[name] for name in shallow.heads.state_dict()})
        return shallow

    def merged(self) -> "MultiExitModel":
        """Return a copy with its LoRA adapters merged (`lora.merged`). Raises FedexitError without any."""
        plain = copy.deepcopy(self)
        plain.backbone = merged(self.backbone)
        return plain

    def trainable_weights(self) -> dict[str, Tensor]:
        """Return the weights that training changes, by name, not copied. A client receives and sends these."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy in those of `weights` (by name) that the model holds.

        Raises FedexitError, and copies nothing, if one of its own is missing or has another shape.
        """
        own = self.trainable_weights()
        for name, parameter in own.items():
            if name not in weights or weights[name].shape != parameter.shape:
                raise FedexitError(f"the weights to load lack {name} in the shape {tuple(parameter.shape)}")
        for name, parameter in own.items():
            parameter.copy_(weights[name])

    def checksum(self) -> str:
        """Return the SHA-256 of all weights and their names."""
        return state_hash(self)

    def save_heads(self, file: str | Path) -> None:
        """Write the heads of all exits to a safetensors file."""
        _save_tensors(self.heads.state_dict(), Path(file))

    def load_heads(self, file: str | Path) -> None:
        """Read the exits' heads from a file of `save_heads`; a shared head is that of the deepest exit.

        Raises FedexitError if they do not fit.
        """
        last = f"{self.exits[-1]}."
        try:
            found = load_file(file)
            self.heads.load_state_dict({name: found[name.replace("shared.", last)] for name in self.heads.state_dict()})
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise FedexitError(
                f"{file} holds no heads for exits {self.exits} of this model: {first_line(error)}"
            ) from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to `folder`, each completely or not at all."""
        config = {
            "backbone": config_of(self.backbone),
            "backbone_name": self.backbone.name,
            "pretrained": self.backbone.pretrained,
            "exits": self.exits,
            "labels": self.labels,
            "head": self.head,
            "shared_head": self.shared_head,
            "lora": self.backbone.lora,
            "fedexit_version": __version__,
            **_INPUT,
        }
        text = json.dumps(config, indent=2) + "\n"
        _save_tensors(self.state_dict(), Path(folder) / "model.safetensors")
        write_text(Path(folder) / "config.json", text)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "MultiExitModel":
        """Read a folder of `save_pretrained`, or a model with this hub id, in evaluation mode.

        Raises FedexitError for a missing, foreign or damaged model, weights that do not fit its config and other input.
        """
        try:
            folder = model_folder(name)
            config = json.loads((folder / "config.json").read_text())
            if other := {key: config[key] for key, own in _INPUT.items() if config.get(key, own) != own}:
                raise ValueError(f"it reads other waveforms than fedexit's: {other}")
            backbone = backbone_from_config(config["backbone"], config["backbone_name"], config["pretrained"])
            if config.get("lora"):
                with_lora(backbone, *config["lora"])
            kind = dict(head=config["head"], shared_head=config.get("shared_head", False))  # older folders lack it
            model = cls(backbone, config["labels"], config["exits"], **kind)
            weights = load_file(folder / "model.safetensors")
            own = model.state_dict()
            shapes = {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
            if wrong := misfits(own.keys() - weights.keys(), weights.keys() - own.keys(), shapes):
                raise ValueError(f"its weights do not fit its config.json: {wrong}")
            if bad := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
                raise ValueError(f"{bad[0]} holds NaN or infinity")
            model.to(next(weights[name] for name in own if name.startswith("heads.")).dtype).load_state_dict(weights)
        except Exception as error:  # the libraries raise many kinds of error for a damaged or foreign folder
            raise FedexitError(
                f"{name} is not a multi-exit model written by save_pretrained: {first_line(error)}"
            ) from error
        return model.eval()


def check_trainable(model: MultiExitModel) -> None:
    """Raise FedexitError for a model with fewer than two labels, a frozen head, or weights in float16."""
    if not isinstance(model, MultiExitModel):
        raise FedexitError(f"the model to train is a {type(model).__name__}; give a MultiExitModel")
    if model.head == "pooled" and len(set(model.labels)) < 2:
        raise FedexitError(f"the model has {len(set(model.labels))} label(s), so there is nothing to learn; give two")
    if not all(parameter.requires_grad for parameter in model.heads.parameters()):
        raise FedexitError("a head of the model is frozen; let it train: model.heads.requires_grad_(True)")
    if model.backbone.model.dtype == torch.float16:
        raise FedexitError("the model is in float16, too coarse for training; convert it: model.float()")


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        with replacing(file) as part:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
    except OSError as error:
        raise FedexitError(f"{file} cannot be written ({first_line(error)}); name another place") from error
