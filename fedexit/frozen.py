"""The frozen convolutions' output, computed once per clip: fine-tuning never changes it, so no round repeats it."""

from collections.abc import Sequence
from functools import cache

from torch import Tensor, tensor

from fedexit.backbone import Backbone
from fedexit.clients import Example, normalised
from fedexit.tasks import Clips


class FrozenFeatures(Sequence[Example]):
    """The same examples as `clips`, with `backbone.convolve`'s output (C, F) in the waveform's place.

    Each clip is convolved alone, so what it gives does not depend on a batch. `store` keeps the features by clip; all
    datasets of the same corpus, cut and backbone may share it (4 C F bytes a clip: 19 kB for 1.5 s of `tiny`).
    """

    def __init__(self, clips: Clips, backbone: Backbone, store: dict[str, Tensor]):
        self.clips, self.backbone, self.store = clips, backbone, store

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    def __getitem__(self, index: int) -> Example:
        """Features (C, F) of clip `index`, and its label."""
        clip = self.clips.ids[index]
        if clip not in self.store:
            waveform = normalised(self.clips[index][0])
            self.store[clip] = self.backbone.convolve(waveform[None], tensor([len(waveform)]))[0]
        return self.store[clip], self.clips.targets[index]


@cache
def shared_store(checksum: str, backbone: str, seconds: float) -> dict[str, Tensor]:
    """This process's store for one corpus (by checksum), backbone (by name) and cut of the clips."""
    return {}
