"""Define what a model in pre-training predicts for each frame: codes, or the hidden states of a teacher.

Each target is read from the output of one layer by a linear head, which is thrown away after training.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

from safetensors import SafetensorError
from torch import Tensor, nn

from fedexit.central.codes import CODEBOOK_PARTS, Codebook, features_of, fit_codebook
from fedexit.central.pretraining import PRECISIONS, Pretraining
from fedexit.central.speech_pool import Rows, SpeechPool
from fedexit.central.teachers import TeacherStates, open_states
from fedexit.support.errors import FedexitError
from fedexit.support.progress import progress
from fedexit.support.tensors import read_tensors, write_tensors

FIT_BATCHES = 400


class Target(Protocol):
    """A target of a run."""

    @property
    def weight(self) -> float:
        """Return its weight in the loss."""
        ...

    @property
    def layer(self) -> int:
        """Return the layer of the model that it is read from."""
        ...

    def wanted(self, rows: Rows) -> Tensor:
        """Return what to predict for each frame of `rows`: (B, F) or (B, F, K)."""
        ...

    def head(self, width: int) -> nn.Linear:
        """Return a new head for hidden states of `width`."""
        ...

    def measures(self, predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and score (B, F) of the head's output (B, F, K)."""
        ...


class CodeTarget(NamedTuple):
    """The codes of a codebook; the loss is their cross-entropy in nats, the score is the accuracy."""

    book: Codebook
    weight: float
    layer: int

    def wanted(self, rows: Rows) -> Tensor:
        """Return the codes (B, F) int64."""
        return self.book(rows)

    def head(self, width: int) -> nn.Linear:
        """Return a classifier whose bias is the log frequency of the codes.

        Otherwise the model first learns these frequencies with one hidden state for all frames, and then takes long to
        learn anything else.
        """
        classifier = nn.Linear(width, len(self.book.centres))
        classifier.bias.data.copy_(self.book.frequencies.log())
        return classifier

    def measures(self, predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return cross-entropy and accuracy (B, F) of logits (B, F, K) for codes (B, F)."""
        loss = nn.functional.cross_entropy(predicted.transpose(1, 2), wanted, reduction="none")
        return loss, (predicted.argmax(-1) == wanted).float()


class StateTarget(NamedTuple):
    """Principal components of a teacher's layer; the loss is the share of their variance that is not predicted.

    Components count by the square root of their variance: by the variance itself the first few would decide alone, and
    with equal weights the many small ones.
    """

    states: TeacherStates
    teacher_layer: int
    size: int
    weight: float
    layer: int

    def wanted(self, rows: Rows) -> Tensor:
        """Return the components (B, F, size)."""
        return self.states.rows(rows, self.teacher_layer)[..., : self.size]

    def head(self, width: int) -> nn.Linear:
        """Return a projection."""
        return nn.Linear(width, self.size)

    def measures(self, predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the share of the variance that is not predicted, and that which is, (B, F), for (B, F, size)."""
        variances = self.states.variances[self.teacher_layer][: self.size]
        importance = (variances.sqrt() / variances.sqrt().sum()).to(predicted.device)
        loss = ((predicted - wanted).square() * importance).sum(-1)
        return loss, 1 - loss.detach()


def open_targets(
    settings: Pretraining, pools: tuple[SpeechPool, SpeechPool], file: Path, layers: int, workers: int
) -> tuple[dict[str, Target], dict[str, Target]]:
    """Return the targets of a run by name, for the training and for the development pool.

    Args:
        settings: the settings.
        pools: training and development speech.
        file: codebooks are read from it, or fitted on the training pool and written there.
        layers: number of layers of the model, from whose last one a target is read that names none.
        workers: processes that compute the teacher's states.

    Raises:
        FedexitError: when `file` is damaged or holds other codebooks, and when the pool is too small for the clusters.
    """
    states: list[TeacherStates | None] = [None, None]
    if settings.teacher:
        wanted, precision = settings.teacher_layers, PRECISIONS[settings.precision]
        states = [open_states(settings.teacher, wanted, pool, pools[0], precision, workers) for pool in pools]
    stored = _codebooks(settings, pools[0], states[0], file)
    train, dev = (_targets(settings, own, stored, layers) for own in states)
    return train, dev


def _targets(
    settings: Pretraining, states: TeacherStates | None, stored: dict[str, Tensor], layers: int
) -> dict[str, Target]:
    """Return the targets for the pool with the teacher's `states`, in the order of the settings."""
    targets: dict[str, Target] = {}
    for feature, size, weight, layer in settings.parsed:
        if feature.startswith("state"):
            assert states is not None  # the settings demand a teacher
            targets[feature] = StateTarget(states, int(feature.removeprefix("state")), size, weight, layer or layers)
        else:
            parts = [stored[f"{feature}.{part}"] for part in CODEBOOK_PARTS]
            targets[feature] = CodeTarget(Codebook(features_of(feature, states), *parts), weight, layer or layers)
    return targets


def _codebooks(settings: Pretraining, pool: SpeechPool, states: TeacherStates | None, file: Path) -> dict[str, Tensor]:
    """Return the tensors of all codebooks as `feature.part`; {} without any."""
    if not settings.books:
        return {}
    if not file.is_file():
        tensors = _fitted(settings, pool, states)
        write_tensors(file, tensors)
    try:
        stored, _ = read_tensors(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise FedexitError(f"codebooks {file} are damaged ({error}); delete the file and run again") from error
    for name, clusters, *_ in settings.books:
        if any(f"{name}.{part}" not in stored for part in CODEBOOK_PARTS) or len(stored[f"{name}.centres"]) != clusters:
            raise FedexitError(f"codebooks {file} hold no {name} with {clusters} clusters; delete the file")
    return stored


def _fitted(settings: Pretraining, pool: SpeechPool, states: TeacherStates | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, clusters, *_ in settings.books:
        numbers = progress(range(FIT_BATCHES), f"clustering {name}")
        batches = (pool.batch(settings.seconds, settings.seed, "k-means", number) for number in numbers)
        book = fit_codebook(features_of(name, states), batches, clusters, settings.seed)
        tensors |= {f"{name}.{part}": getattr(book, part).contiguous() for part in CODEBOOK_PARTS}
    return tensors
