"""Prediction heads on the exits, and the multi-exit model they make with a backbone (paper, sec. 2.1 and 3)."""

import copy
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedexit.model.backbone import Backbone, backbone_from_config, config_of, default_exits
from fedexit.model.heads import HEADS
from fedexit.model.lora import merged, with_lora
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.streams import seeded


class MultiExitModel(nn.Module):
    """A backbone with an independent head on each exit, or a `shared_head` for all of them.

    `labels` are the class names, in the order of the logits; `head`, one of `HEADS`, is what reads them. Parameters are
    named `backbone.model.encoder.layers.{l-1}.*` and `heads.{exit}.*`, or `heads.shared.*`, the same at every depth:
    aggregation goes by them. Raises FedexitError for an exit that the backbone has not and an unknown head.
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
        if head not in HEADS:
            raise FedexitError(f"unknown head {head!r}; known: {', '.join(HEADS)}")
        self.backbone, self.labels, self.head, self.shared_head = backbone, list(labels), head, shared_head
        self.exits = sorted(exits) if exits is not None else default_exits(backbone.layers)
        for depth in self.exits:
            check_exit(depth, range(1, backbone.layers + 1), backbone.name)
        with seeded(seed, "heads"):
            names = ["shared"] if shared_head else map(str, self.exits)
            self.heads = nn.ModuleDict({name: HEADS[head](backbone.width, len(self.labels)) for name in names})

    def head_at(self, depth: int) -> nn.Module:
        """The head that reads exit `depth`."""
        return self.heads["shared" if self.shared_head else str(depth)]

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, exits: Iterable[int] | None = None
    ) -> dict[int, Tensor]:
        """Logits at each of `exits` (default all), in one pass that stops at the deepest of them.

        (B, labels) each; by a CTC head (B, frames, 1 + labels).

        waveforms: (B, T) float32 at 16 kHz, zero-padded; lengths: (B,) samples. Raises FedexitError for unknown exits.
        """
        asked = self._asked(exits)
        states, frames = self.backbone.hidden_states(waveforms, lengths, depth=max(asked))
        return {depth: self.head_at(depth)(states[depth], frames) for depth in asked}

    @torch.no_grad()
    def embeddings(
        self, waveforms: Tensor, lengths: Tensor | None = None, exits: Iterable[int] | None = None
    ) -> dict[int, Tensor]:
        """What the linear layer reads at each of `exits`: standardised pooled statistics (B, 2D), for verification.

        Arguments and errors as for `forward`.
        """
        asked = self._asked(exits)
        states, frames = self.backbone.hidden_states(waveforms, lengths, depth=max(asked))
        heads = {depth: self.head_at(depth) for depth in asked}
        return {d: (head.reads(states[d], frames) - head.centre) / head.scale for d, head in heads.items()}

    def _asked(self, exits: Iterable[int] | None) -> list[int]:
        asked = self.exits if exits is None else sorted(exits)
        for depth in asked:
            check_exit(depth, self.exits, self.backbone.name)
        return asked

    @torch.no_grad()
    def standardise(self, waveforms: Tensor, lengths: Tensor) -> None:
        """Let each head read what has mean 0 and variance 1 over these clips (B, T), (B,) at its exit, or all of them.

        Pooled statistics are nearly the same for all clips (at random weights their mean is several times their
        spread), so a head that reads them raw learns the most frequent class first and stays there for long. Ours, not
        the paper's. No labels are needed. Raises FedexitError for one clip, which has no spread.
        """
        states, frames = self.backbone.hidden_states(waveforms, lengths, depth=max(self.exits))
        for name, head in self.heads.items():
            exits = self.exits if self.shared_head else [int(name)]
            read = torch.cat([head.reads(states[depth], frames) for depth in exits])
            if len(read) < 2:
                raise FedexitError("a head cannot be standardised on one clip: give two or more, the more the better")
            head.centre.copy_(read.mean(0))
            head.scale.copy_(read.std(0) + 1e-3)

    def client_model(self, depth: int, exits: Iterable[int] | None = None) -> "MultiExitModel":
        """What a client of this depth holds, as a copy of its own: layers 1..depth and the heads of `exits`.

        These are, unless given, `depth` alone. Raises FedexitError for what is no exit, or lies deeper.
        """
        exits = self._asked([depth] if exits is None else exits)
        backbone = self.backbone.truncated(depth)
        shallow = MultiExitModel(backbone, self.labels, exits, head=self.head, shared_head=self.shared_head)
        heads = self.heads.state_dict()
        shallow.heads.load_state_dict({name: heads[name] for name in shallow.heads.state_dict()})
        return shallow

    def merged(self) -> "MultiExitModel":
        """A copy with its LoRA adapters in the weights (`lora.merged`). Raises FedexitError without any."""
        plain = copy.deepcopy(self)
        plain.backbone = merged(self.backbone)
        return plain

    def trainable_weights(self) -> dict[str, Tensor]:
        """The weights that training changes, by name, detached but not copied: what a client receives and sends."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy in those of `weights` (by name) that the model holds. Raises KeyError when one of its own is missing."""
        with torch.no_grad():
            for name, parameter in self.trainable_weights().items():
                parameter.copy_(weights[name])

    def checksum(self) -> str:
        """SHA-256 of all weights and their names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save_heads(self, file: str | Path) -> None:
        """Write the heads of all exits to a safetensors file."""
        save_file({k: v.contiguous() for k, v in self.heads.state_dict().items()}, file)

    def load_heads(self, file: str | Path) -> None:
        """Take the exits' heads from a file of `save_heads`, a shared one from that of the deepest exit.

        Raises FedexitError when they do not fit.
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
        """Write `config.json` and `model.safetensors` to `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "backbone": config_of(self.backbone),
            "backbone_name": self.backbone.name,
            "pretrained": self.backbone.pretrained,
            "exits": self.exits,
            "labels": self.labels,
            "head": self.head,
            "shared_head": self.shared_head,
            "lora": self.backbone.lora,
        }
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "MultiExitModel":
        """Read back what `save_pretrained` wrote. Raises FedexitError for a missing, foreign or damaged folder."""
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text())
            backbone = backbone_from_config(config["backbone"], config["backbone_name"], config["pretrained"])
            if config.get("lora"):
                with_lora(backbone, *config["lora"])
            kind = dict(head=config["head"], shared_head=config.get("shared_head", False))  # older folders lack it
            model = cls(backbone, config["labels"], config["exits"], **kind)
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise FedexitError(
                f"{folder} is not a multi-exit model written by save_pretrained: {first_line(error)}"
            ) from error
        return model.eval()


def check_exit(depth: int, known: Iterable[int], name: str) -> None:
    """Raise FedexitError when `depth` is not among the `known` exits of the model `name`."""
    if depth not in known:
        raise FedexitError(f"exit {depth} does not exist in {name}; known: {', '.join(map(str, known))}")
