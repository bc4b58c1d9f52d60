import os

from hypothesis import settings

# Set before torch is imported. One thread is fastest for small tensors and gives bit-identical sums everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

# A slow machine must not fail a test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
