"""Pre-train by masked prediction as in HuBERT (Hsu et al. 2021), or by distillation, as the backbones here were.

A run has a folder. Its subfolder work/ keeps settings, codebooks, checkpoint and loss curve. At the end the folder is a
model in the Hugging Face format, with a model card and, in training/, the settings and the curve of each stage. If a
run is killed, the same call resumes it with bit-identical results.
"""

import json
import math
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.hubert.modeling_hubert import _compute_mask_indices

from fedexit.central.fine_tuning import load_moments, moments_of, schedule
from fedexit.central.model_card import read_stages, write_card
from fedexit.central.pretraining import PRECISIONS, Pretraining, check_models, start_folder, start_model
from fedexit.central.run_folder import FINISHED, check_claim, is_finished, make_claim, make_folder
from fedexit.central.speech_pool import SpeechPool, augmented, open_pool, open_speech
from fedexit.central.targets import Target, open_targets
from fedexit.model.pretrained import quiet_transformers
from fedexit.support.checkpoints import load_checkpoint, save_checkpoint
from fedexit.support.errors import FedexitError
from fedexit.support.files import file_hash, weights_hash, write_bytes, write_text
from fedexit.support.locks import owned, sweep
from fedexit.support.placement import Device, find_device, moved
from fedexit.support.progress import progress
from fedexit.support.streams import seeded

_CHECKPOINT, _CODEBOOKS = "checkpoint.safetensors", "codebooks.safetensors"
_DEV_BATCHES = 8
_BETAS, _DECAY, _CLIP_NORM = (0.9, 0.98), 0.01, 1.0  # HuBERT's


class MaskedPrediction(nn.Module):
    """A speech model with one linear head per target, on the layer that must predict it."""

    def __init__(self, model: PreTrainedModel, targets: dict[str, Target], precision: str = "float32"):
        super().__init__()
        self.model, self.precision, self.targets = model, PRECISIONS[precision], targets
        self.heads = nn.ModuleList(target.head(model.config.hidden_size) for target in targets.values())

    def forward(self, waveforms: Tensor, wanted: list[Tensor], mask: Tensor) -> Tensor:
        """Return the measures (4, C) of each target.

        They are the loss of masked and of seen frames, then the score of both (see `Target.measures`).

        Args:
            waveforms: (B, T).
            wanted: (B, F) or (B, F, K) for each target.
            mask: (B, F) bool, True where the mask vector replaces the input.
        """
        with torch.autocast(waveforms.device.type, self.precision, enabled=self.precision is not torch.float32):
            found = self.model(waveforms, mask_time_indices=mask, output_hidden_states=True)
        # With LayerDrop, layers are missing in `hidden_states`, and then all targets are read from the last.
        last = self.model.config.num_hidden_layers
        states = {layer: state.float() for layer, state in enumerate(found.hidden_states)}
        states[last] = found.last_hidden_state.float()
        pairs = [
            target.measures(head(states[target.layer]), own)
            for target, head, own in zip(self.targets.values(), self.heads, wanted, strict=True)
        ]
        losses, scores = (torch.stack(each) for each in zip(*pairs, strict=True))  # (C, B, F)
        rows = [(each * frames).sum((1, 2)) / frames.sum() for each in (losses, scores) for frames in (mask, ~mask)]
        return torch.stack(rows)


def pretrain(
    settings: Pretraining,
    out: str | Path,
    minutes: float = math.inf,
    checkpoint_every: int = 100,
    device: Device = "cpu",
    workers: int = 1,
) -> bool:
    """Pre-train in the folder `out`, or resume its run; return whether all updates are done.

    Everything that the settings name is checked before work starts. If a check fails, `out` holds no files.

    Args:
        settings: the settings, which a resumed run must repeat.
        out: folder of the run; at the end it is a model folder.
        minutes: stop at the first checkpoint after this time.
        checkpoint_every: updates between checkpoints, where the curve has a line (`log_every`).
        device: where the model is trained: `auto`, `cpu`, `cuda` or `mps`. Results differ slightly between them.
        workers: processes that compute the states of a teacher, and threads that prepare batches for a GPU.

    Raises:
        FedexitError: for unusable settings or devices, a folder with another run, other data or another model, a
            damaged checkpoint, and a loss that is not finite.
    """
    if not minutes >= 0 or checkpoint_every < 1:
        raise FedexitError(
            f"minutes must be >= 0 and checkpoint_every >= 1, not minutes={minutes} and {checkpoint_every}"
        )
    place = find_device(device)
    out, deadline = Path(out), time.monotonic() + 60 * minutes
    claim: dict[str, Any] = {"settings": asdict(settings)}
    check_claim(out, claim)
    make_folder(out)
    with owned(out / "work"):
        for folder in (out, out / "work", out / "training"):
            sweep(folder)
        return _pretrained(settings, out, claim, deadline, checkpoint_every, place, workers)


def _pretrained(
    settings: Pretraining,
    out: Path,
    claim: dict[str, Any],
    deadline: float,
    checkpoint_every: int,
    device: torch.device,
    workers: int,
) -> bool:
    """Do what is left of the run in `out`; return whether all updates are done."""
    corpora = open_speech(settings.corpora)
    claim |= {"corpora": [corpus.checksum for corpus in corpora], **check_models(settings)}
    make_claim(out, claim)
    if is_finished(out):
        return True
    pools = open_pool(corpora, "train"), open_pool(corpora, "dev")
    run = _Run(settings, out / "work", pools, device, workers)
    bar = progress(range(run.done, settings.updates), "pre-training")
    bar.initial, bar.total = run.done, settings.updates
    for update, batch in zip(bar, run.batches(range(run.done, settings.updates)), strict=True):
        run.update(update, batch)
        last = run.done == settings.updates
        if last or run.done % settings.log_every == 0:
            run.log(last)
            if last or run.done % checkpoint_every == 0 or time.monotonic() > deadline:
                run.checkpoint()
                if time.monotonic() > deadline:
                    break
    if run.done == settings.updates:
        run.finish(out)
    return run.done == settings.updates


def mask_frames(shape: tuple[int, int], probability: float, span: int, *name: str | int) -> Tensor:
    """Return a mask (B, F) bool of spans that may overlap; at least one frame of the batch stays unmasked.

    With probability 0.65 and spans of 10 about half of the frames are masked (HuBERT: 0.8 and 10). This is the only
    caller of the private function of `transformers` that draws such masks.

    Args:
        shape: (B, F).
        probability: masked share if spans did not overlap; a row has probability F / span spans, at least one.
        span: frames per span, fewer than F.
        name: the name of the random stream.
    """
    with seeded(*name):
        mask = torch.from_numpy(_compute_mask_indices(shape, probability, span, min_masks=1))
    if mask.all():
        mask[-1, -1] = False
    return mask


class _Batch(NamedTuple):
    """Waveforms (B, T) with mixed-in sounds, and the values to predict per target, computed from the clean ones."""

    waveforms: Tensor
    wanted: list[Tensor]


class _Run:
    """A run in its working folder: model, optimiser, data and the curve so far."""

    def __init__(
        self,
        settings: Pretraining,
        work: Path,
        pools: tuple[SpeechPool, SpeechPool],
        device: torch.device,
        workers: int,
    ):
        self.settings, self.work, self.device, self.workers = settings, work, device, workers
        self.pools = dict(zip(("train", "dev"), pools, strict=True))
        with seeded(settings.seed, "pre-training", "start"):
            model = start_model(settings)
        found = open_targets(settings, pools, work / _CODEBOOKS, model.config.num_hidden_layers, workers)
        self.targets = dict(zip(self.pools, found, strict=True))
        with seeded(settings.seed, "pre-training", "heads"):
            self.task = MaskedPrediction(model, self.targets["train"], settings.precision).train().to(device)
        self.optimiser = torch.optim.AdamW(
            self.task.parameters(), settings.learning_rate, _BETAS, weight_decay=_DECAY, fused=True
        )
        self.weights = torch.tensor([target.weight for target in self.targets["train"].values()], device=device)
        self.done, self.rows, self.sums = 0, list[dict](), list[Tensor]()
        self.seconds, self.since = 0.0, time.monotonic()
        # The folder's claim holds settings and data; the codebooks lie beside it and could be exchanged.
        self.identity = {"claim": file_hash(work / "settings.json"), "codebooks": file_hash(work / _CODEBOOKS)}
        self._restore()

    def batches(self, numbers: range) -> Iterator[_Batch]:
        """Yield the training batches `numbers`. For a GPU they are prepared ahead, by threads."""
        if self.device.type == "cpu":
            yield from map(partial(self._prepared, "train"), numbers)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: deque[Future] = deque()
            for number in numbers:
                waiting.append(pool.submit(self._prepared, "train", number))
                if len(waiting) > 2 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def update(self, number: int, batch: _Batch) -> None:
        """Do one update on the training batch `number`."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * schedule(number, self.settings.updates)
        measures = self._predict("train", number, batch)
        self.optimiser.zero_grad()
        ((measures[0] + self.settings.seen_weight * measures[1]) * self.weights).sum().backward()
        nn.utils.clip_grad_norm_(self.task.parameters(), _CLIP_NORM)
        self.optimiser.step()
        self.sums.append(measures.detach())
        self.done = number + 1

    def log(self, last: bool) -> None:
        """Add a line to the curve: means since the previous line and, every `dev_every`, those on development speech.

        Raises:
            FedexitError: when the loss is not finite.
        """
        means = torch.stack(self.sums).mean(0).cpu().numpy()
        if not np.isfinite(means[:2]).all():
            raise FedexitError(
                f"the loss is {means[:2].sum()} at update {self.done}; lower learning_rate, in a new folder"
            )
        row = {"update": self.done} | self._named("train", means)
        self.sums = []
        if last or self.done % self.settings.dev_every == 0:
            self.task.eval()
            with torch.no_grad():
                predicted = [
                    self._predict("dev", number, self._prepared("dev", number)) for number in range(_DEV_BATCHES)
                ]
            self.task.train()
            row |= self._named("dev", torch.stack(predicted).mean(0).cpu().numpy())
        self.rows.append(row)

    def checkpoint(self) -> None:
        """Write everything that resuming needs, and the curve."""
        tensors = {**self.task.state_dict(), **moments_of(self.task, self.optimiser)}
        self.seconds, self.since = self.seconds + time.monotonic() - self.since, time.monotonic()
        state = {"update": self.done, "rows": self.rows, "seconds": self.seconds}
        write_text(self.work / "curve.csv", self._curve())
        save_checkpoint(self.work / _CHECKPOINT, self.identity, state, tensors)

    def finish(self, out: Path) -> None:
        """Make `out` a model folder with the record of this stage and of the stages of its start, if it has any."""
        save_model(self.task.model, out)
        record, stage = out / "training", 1
        if self.settings.start and (earlier := start_folder(self.settings.start) / "training").is_dir():
            stage += len(read_stages(earlier))
            for file in sorted(earlier.glob("*.*")):
                write_bytes(record / file.name, file.read_bytes())
        facts: dict[str, Any] = {"minutes": round(self.seconds / 60, 1), "threads": torch.get_num_threads()}
        facts |= {"codebooks": list(self.settings.chosen)}
        text = json.dumps(asdict(self.settings) | facts, indent=1, sort_keys=True) + "\n"
        write_text(record / f"stage{stage}.csv", self._curve())
        write_text(record / f"stage{stage}.json", text)
        write_card(out)
        write_text(self.work / FINISHED, weights_hash(out))

    def _curve(self) -> str:
        return pd.DataFrame(self.rows).to_csv(index=False, lineterminator="\n")

    def _restore(self) -> None:
        if found := load_checkpoint(self.work / _CHECKPOINT, self.identity):
            state, tensors = found
            self.done, self.rows, self.seconds = state["update"], state["rows"], state["seconds"]
            self.task.load_state_dict({name: tensors[name] for name in self.task.state_dict()})
            load_moments(self.task, self.optimiser, tensors)

    def _prepared(self, part: str, number: int) -> _Batch:
        """Return batch `number` of the training or development speech. It draws from its own streams only."""
        name = (self.settings.seed, part, number)
        clean = self.pools[part].batch(self.settings.seconds, *name, speeds=self.settings.speeds)
        # Targets are those of clean speech: the model must ignore sounds that are mixed in.
        wanted = [target.wanted(clean) for target in self.targets[part].values()]
        return _Batch(augmented(clean.waveforms, *name, "augmentation"), wanted)

    def _predict(self, part: str, number: int, batch: _Batch) -> Tensor:
        """Return the measures (4, C) of batch `number` of the training or development speech."""
        settings, stream = self.settings, (self.settings.seed, part, number, "mask and dropout")
        clips, frames = batch.wanted[0].shape[:2]
        mask = mask_frames((clips, frames), settings.mask_probability, settings.mask_frames, *stream)
        heard, *wanted = (moved(tensor, self.device) for tensor in (batch.waveforms, *batch.wanted))
        with seeded(*stream):
            return self.task(heard, wanted, moved(mask, self.device))

    def _named(self, part: str, values: np.ndarray) -> dict[str, float]:
        measures = ("masked_loss", "seen_loss", "masked_score", "seen_score")
        return {
            f"{part}_{measure}_{name}": round(float(value), 5)
            for measure, line in zip(measures, values, strict=True)
            for name, value in zip(self.targets["train"], line, strict=True)
        }


def save_model(model: PreTrainedModel, out: Path) -> None:
    """Write `model` to the folder `out` in the Hugging Face format and half precision; `model` does not change."""
    half = type(model)(model.config)
    half.load_state_dict({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    with quiet_transformers(), tempfile.TemporaryDirectory() as made:
        half.half().save_pretrained(made)
        for file in sorted(Path(made).iterdir(), reverse=True):  # config.json last, without which it is no model
            write_bytes(out / file.name, file.read_bytes())
