"""Read the published tables, so that no notebook contains a number of the paper.

Source: Guo et al., "Adaptive Federated Fine-Tuning of Self-Supervised Speech Representations", Interspeech 2026,
DOI 10.21437/Interspeech.2026-2122, Tables 1 to 3. `depthfl`: Kim et al., "DepthFL", ICLR 2023, Table 3.
"""

from importlib.resources import files

import pandas as pd

from fedexit.support.errors import FedexitError

REFERENCE = "Guo et al., Interspeech 2026"


def published(table: int) -> pd.DataFrame:
    """Return Table 1 (error by task, setting and depth), 2 (mixed depths) or 3 (memory in MB) in long form.

    Raises:
        FedexitError: `table` is not 1, 2 or 3.
    """
    if table not in (1, 2, 3):
        raise FedexitError(f"the paper has tables 1, 2 and 3, not {table}")
    with (files("fedexit.lab") / "paper_tables" / f"table{table}.csv").open() as file:
        return pd.read_csv(file)


def depthfl() -> pd.DataFrame:
    """Return the accuracy in % on CIFAR-100 of DepthFL's four exits: columns `place` (1 is shallow), `last` and `all`.

    `last`: trained at the last exit of each client only (their row InclusiveFL). `all`: trained at all of its exits
    (DepthFL, FedAvg).
    """
    with (files("fedexit.lab") / "paper_tables" / "depthfl.csv").open() as file:
        return pd.read_csv(file)
