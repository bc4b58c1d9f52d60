"""Write a small corpus of tones: four voices, each with two groups in train, one in dev and one in test."""

from pathlib import Path

import pandas as pd
import torch

from fedexit.data.audio import write_audio
from fedexit.data.folder import COLUMNS

VOICES = {"ANN": 300.0, "BEN": 800.0, "CID": 1700.0, "DOT": 3000.0}
WORDS = ["yes we can", "no you cannot", "what is it"]


def write_small_corpus(folder: Path, clips: int = 6) -> Path:
    """Write the corpus folder `folder` with `clips` clips per group and return it."""
    rows, generator = [], torch.Generator().manual_seed(0)
    (folder / "clips").mkdir(parents=True)
    for voice, pitch in VOICES.items():
        for part, split in enumerate(("train", "train", "dev", "test"), 1):
            for number in range(clips):
                name = f"{voice}{part}-{number}"
                wave = 0.3 * torch.sin(2 * torch.pi * pitch * torch.arange(4000) / 16000)
                write_audio(folder / "clips" / f"{name}.flac", wave + 0.05 * torch.randn(4000, generator=generator))
                text = WORDS[number % len(WORDS)]
                rows.append([name, f"clips/{name}.flac", voice, f"{voice}{part}.DOG", text, "", 0.25, split])
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "manifest.csv", index=False)
    return folder
