import os
from pathlib import Path

import pytest
from hypothesis import settings
from small_project import Project

# Set before torch is imported. One thread is fastest for small tensors and gives bit-identical sums everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

# A slow machine must not fail a test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project of two notebooks in a temporary folder."""
    monkeypatch.setenv("FEDEXIT_ROOT", str(tmp_path))
    for name in ("FEDEXIT_RESULTS", "FEDEXIT_DATA", "FEDEXIT_OUT"):
        monkeypatch.delenv(name, raising=False)
    return Project(tmp_path)
