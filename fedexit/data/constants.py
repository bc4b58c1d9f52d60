"""Numbers that every corpus obeys, in a module that imports nothing."""

SAMPLE_RATE = 16_000  # Hz
MIN_SAMPLES = 400  # one frame of wav2vec 2.0 and its kin: 25 ms
