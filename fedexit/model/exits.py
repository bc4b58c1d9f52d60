"""Define the multi-exit model: a backbone with a prediction head on each exit (paper, sec. 2.1 and 3)."""

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedexit import __version__
from fedexit.data.batches import Example
from fedexit.data.checks import check_spelling_labels, checked_labels
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.inspection import check_clips
from fedexit.data.recordings import Recordings
from fedexit.model.backbone import Backbone, backbone_from_config, config_of, default_exits, state_hash
from fedexit.model.heads import AnyHead, HeadMaker, copy_norm, head_name, kind_of, make_head
from fedexit.model.lora import merged, with_lora
from fedexit.model.pretrained import model_folder, saved_config
from fedexit.support.checks import check_exits, misfits
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.files import write_text
from fedexit.support.placement import check_half
from fedexit.support.streams import seeded
from fedexit.support.tensors import read_tensors, write_tensors

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
        head: a name in `HEADS`: `pooled` for labels of whole clips, `ctc` or `ctc-bilstm` for texts; or a function or
            class of your own that makes a head (`fedexit.model.heads` has the contract and an example).
        shared_head: one head for all exits.
        targets: kind of the targets; default that of the head. `label`: a clip has the index of a label. `text`: it has
            character ids (`fedexit.data.text.characters`). `number` (regression): it has a float, and `labels` is the
            name of that number alone; numbers of about mean 0 and variance 1 are learned fastest. `multi-label`: it
            has 0 or 1 for each label.

    Raises:
        FedexitError: for another kind of backbone, an exit that it lacks, no exits, labels that are not a list, an
            unknown head or kind of targets, and a head that does not keep its contract.

    Example:
        >>> logits = MultiExitModel(load_backbone("nano"), ["yes", "no"])(*collate(clips)[:2])[12]  # (B, 2)
        >>> ages = MultiExitModel(load_backbone("nano"), ["age in decades"], targets="number")
        >>> federate(ages, [Client("ann", [(waveform, 4.2), (another, 6.9)], depth=3)], dev=[(third, 5.0)])
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: Iterable[str],
        exits: Iterable[int] | None = None,
        seed: int = 0,
        head: str | HeadMaker = "pooled",
        shared_head: bool = False,
        targets: str | None = None,
    ):
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise FedexitError(f"the backbone is a {type(backbone).__name__}; give one of load_backbone")
        self.backbone, self.head, self.shared_head = backbone, head, shared_head
        self.labels = checked_labels(labels)
        exits = default_exits(backbone.layers) if exits is None else exits
        self.exits = check_exits(exits, range(1, backbone.layers + 1), backbone.name)
        with seeded(seed, "heads"):
            names = ["shared"] if shared_head else map(str, self.exits)
            self.heads = nn.ModuleDict({name: make_head(head, backbone.width, len(self.labels)) for name in names})
        self.heads.to(device=backbone.model.device, dtype=backbone.model.dtype)
        made = list(self.heads.values())
        self.targets = kind_of(made, head_name(head), backbone.width, len(self.labels), targets)
        copy_norm(backbone.final_norm, made, head_name(head))
        if self.targets == "text":
            check_spelling_labels(self.labels)

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
            By exit: (B, labels), or (B, F, 1 + labels) for texts.
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
        heads = {depth: self._reading(depth) for depth in states}
        return {d: (head.reads(states[d], frames) - head.centre) / head.scale for d, head in heads.items()}

    def predict(
        self,
        recordings: Any,
        exit: int | None = None,
        rule: str | Callable | None = None,
        threshold: float | None = None,
        rate: int | None = None,
        batch_size: int = 8,
    ) -> pd.DataFrame:
        """Return the answer for each recording, at one exit or at the first that is confident enough.

        The model normalises its input, so loudness does not matter. It is put into evaluation mode.

        Args:
            recordings: one or a list of: audio files of any format and rate; waveforms (T,), tensors or arrays.
            exit: the exit that answers; default the deepest.
            rule: in place of `exit`: a name in `fedexit.model.early_exit.RULES`, or a function or callable object of
                your own, `rule(seen, labels)`: that module has the contract and an example.
            threshold: confidence, in the unit of `rule`, at which a clip stops; default the rule's own `threshold`.
            rate: rate of the waveforms in Hz; files state their own.
            batch_size: clips per batch; with a rule they run one by one.

        Returns:
            A row per recording: `clip` (path, or position of a waveform), the answer, `confidence` and `exit`. By
            `targets` the answer is `label`, `text`, `number`, or `labels` (a list of those with a probability above
            1/2). The confidence is the probability of the label; the mean over the frames that are not blank, 0 for an
            empty text; NaN for a number; the probability of the least certain of several labels.

        Raises:
            FedexitError: before any answer, for recordings that cannot be read (all are named), and wrong options.

        Example:
            >>> model.predict(["yes.mp3", "no.wav"], rule="probability", threshold=0.9)
        """
        from fedexit.model.answers import answered  # it imports this module

        nothing: dict[str, list[int]] = {"text": [], "multi-label": [0] * len(self.labels)}
        clips = Recordings(recordings, rate, nothing.get(self.targets, 0))
        return answered(self, clips, exit, rule, threshold, batch_size)

    def transcribe(self, recordings: Any, **options: Any) -> pd.DataFrame:
        """Return `predict(recordings, **options)` of a model of texts. Raises FedexitError for any other."""
        if self.targets != "text":
            raise FedexitError(f"the model predicts {self.targets}s, not texts; use predict")
        return self.predict(recordings, **options)

    def _reading(self, depth: int) -> AnyHead:
        """Return the head at `depth`. Raise FedexitError unless it has `reads`, `centre` and `scale`."""
        head = self.head_at(depth)
        if lacking := [name for name in ("reads", "centre", "scale") if not hasattr(head, name)]:
            raise FedexitError(f"head {head_name(self.head)} lacks {', '.join(lacking)}; see fedexit.model.heads.Head")
        return head

    def _asked(self, exits: Iterable[int] | None) -> list[int]:
        return self.exits if exits is None else check_exits(exits, self.exits, self.backbone.name)

    def check_clips(
        self, data: Sequence[Example], owner: str, spells: bool = False, start: int = 0
    ) -> tuple[list[int], bool]:
        """Check that this model can read all clips and targets of `data`; see `fedexit.data.inspection.check_clips`."""
        channels, frames = self.backbone.channels, self.backbone.frame_lengths
        return check_clips(data, owner, channels, frames, len(self.labels), self.targets, spells, start)

    @torch.no_grad()
    def standardise(self, waveforms: Tensor, lengths: Tensor) -> None:
        """Set `centre` and `scale` of each head so that its input has mean 0 and variance 1 over these clips.

        Pooled statistics are nearly the same for all clips: at random weights their mean is several times their spread.
        A head that reads them unscaled predicts the most frequent class for a long time. This is ours, not the paper's.
        No labels are needed. Arguments are those of `forward`. Raises FedexitError for one clip, which has no spread,
        and for heads of your own without `reads`, `centre` and `scale`.
        """
        states, frames = self.states(waveforms, lengths)
        for exits in [self.exits] if self.shared_head else [[depth] for depth in self.exits]:
            head = self._reading(exits[0])
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
        shallow = self.like(backbone, exits)
        heads = self.heads.state_dict()
        shallow.heads.load_state_dict({name: heads[name] for name in shallow.heads.state_dict()})
        return shallow

    def like(self, backbone: Backbone, exits: Iterable[int]) -> "MultiExitModel":
        """Return a model of `backbone` with new heads of the same kind at `exits`."""
        return MultiExitModel(
            backbone, self.labels, exits, head=self.head, shared_head=self.shared_head, targets=self.targets
        )

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
            found, _ = read_tensors(file)
            self.heads.load_state_dict({name: found[name.replace("shared.", last)] for name in self.heads.state_dict()})
        except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
            raise FedexitError(
                f"{file} holds no heads for exits {self.exits} of this model: {first_line(error)}"
            ) from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors`, with a checksum and a copy of the config, and `config.json` to `folder`."""
        config = {
            "backbone": config_of(self.backbone),
            "backbone_name": self.backbone.name,
            "pretrained": self.backbone.pretrained,
            "exits": self.exits,
            "labels": self.labels,
            "head": head_name(self.head),
            "targets": self.targets,
            "shared_head": self.shared_head,
            "lora": self.backbone.lora,
            "fedexit_version": __version__,
            **_INPUT,
        }
        text = json.dumps(config, indent=2) + "\n"
        _save_tensors(self.state_dict(), Path(folder) / "model.safetensors", {"config": text})
        write_text(Path(folder) / "config.json", text)

    @classmethod
    def from_pretrained(cls, name: str | Path, head: HeadMaker | None = None) -> "MultiExitModel":
        """Read a folder of `save_pretrained`, or a model with this hub id, in evaluation mode.

        A model with a head of your own needs its maker again, as `head`. Raises FedexitError for a missing, foreign or
        damaged model, weights that do not fit its config and other input.
        """
        try:
            folder = model_folder(name)
            config = saved_config(folder)
            weights, saved = read_tensors(folder / "model.safetensors", ("config",))
            if saved.get("config", text := (folder / "config.json").read_text()) != text:
                raise ValueError("config.json is not the one that was saved with model.safetensors")
            if other := {key: config[key] for key, own in _INPUT.items() if config.get(key, own) != own}:
                raise ValueError(f"it reads other waveforms than fedexit's: {other}")
            backbone = backbone_from_config(config["backbone"], config["backbone_name"], config["pretrained"])
            if config.get("lora"):
                with_lora(backbone, *config["lora"])
            shared, targets = config.get("shared_head", False), config.get("targets")  # older folders lack them
            maker = head or config["head"]
            model = cls(backbone, config["labels"], config["exits"], head=maker, shared_head=shared, targets=targets)
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
    """Raise FedexitError for a model with one label to choose from, a frozen head, or weights in float16."""
    if not isinstance(model, MultiExitModel):
        raise FedexitError(f"the model to train is a {type(model).__name__}; give a MultiExitModel")
    if model.targets == "label" and len(set(model.labels)) < 2:
        raise FedexitError(f"the model has {len(set(model.labels))} label(s), so there is nothing to learn; give two")
    if not all(parameter.requires_grad for parameter in model.heads.parameters()):
        raise FedexitError("a head of the model is frozen; let it train: model.heads.requires_grad_(True)")
    check_half(model.backbone.model.dtype)


def _save_tensors(tensors: dict[str, Tensor], file: Path, texts: dict[str, str] | None = None) -> None:
    try:
        write_tensors(file, tensors, texts)
    except OSError as error:
        raise FedexitError(f"{file} cannot be written ({first_line(error)}); name another place") from error
