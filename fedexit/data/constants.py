"""Define constants of every corpus. This module imports nothing."""

SAMPLE_RATE = 16_000  # Hz
MIN_SAMPLES = 400  # 25 ms: one frame of wav2vec 2.0, HuBERT and WavLM
