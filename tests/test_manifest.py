"""nbs_ci.yml is refused in one line that names the notebook and the field."""

import copy

import pytest
import yaml

from fedexit.runner.manifest import load_manifest, parse_yaml, select
from fedexit.support.errors import FedexitError

GOOD = {
    "notebooks": [
        {
            "id": "01_a",
            "title": "A",
            "artifacts": ["tables/x.csv", "figures/f.png", "figures/f.csv"],
            "profiles": {
                "smoke": {"minutes": 1, "limit": 2, "parameters": {"rounds": 2}},
                "big": {"minutes": 9, "limit": 9},
            },
        },
        {
            "id": "02_b",
            "title": "B",
            "needs": ["01_a"],
            "artifacts": [],
            "profiles": {"smoke": {"minutes": 1, "limit": 2}},
        },
        {"id": "03_c", "title": "C", "artifacts": [], "profiles": {"smoke": {"minutes": 1, "limit": 2}}},
    ]
}


@pytest.fixture
def load(tmp_path):
    """Write entries as nbs_ci.yml beside the three notebook files and load it."""
    (tmp_path / "notebooks").mkdir()
    for entry in GOOD["notebooks"]:
        (tmp_path / "notebooks" / f"{entry['id']}.ipynb").write_text("{}")

    def load(raw: object) -> list:
        (tmp_path / "nbs_ci.yml").write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
        return load_manifest(tmp_path)

    load.root = tmp_path
    return load


def test_good_manifest(load):
    first, second, _ = load(GOOD)
    assert first.path == load.root / "notebooks/01_a.ipynb"
    assert first.profiles["smoke"]["parameters"] == {"rounds": 2}
    assert second.reads == ["01_a/tables/x.csv", "01_a/figures/f.csv"]  # never pictures


def broken(number: int, **fields) -> dict:
    raw = copy.deepcopy(GOOD)
    raw["notebooks"][number] |= fields
    return raw


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (broken(1, colour="red"), "notebook 02_b: .*'colour' was unexpected"),
        (broken(1, artifacts=["y.csv"]), "notebook 02_b, field artifacts.0: 'y.csv' does not match"),
        (broken(0, profiles={"smoke": {"minutes": "1 h", "limit": 2}}), "01_a, field profiles.smoke.minutes: '1 h'"),
        (broken(0, profiles={}), "notebook 01_a, field profiles"),
        (broken(0, id="01 a"), "notebook 01 a, field id"),
        (broken(0, needs=["02_b"]), "notebook 01_a, field needs: 02_b is not a notebook listed before it"),
        (broken(1, profiles={"huge": {"minutes": 1, "limit": 2}}), "field needs: 01_a has no profile huge"),
        (broken(2, artifacts=["figures/g.png"]), "notebook 03_c, .*figures/g.png is declared without the .csv"),
        (broken(2, headline="tables/z.csv"), "notebook 03_c, .*tables/z.csv is used in checks or headline"),
        (broken(2, checks=[{"table": "tables/z.csv"}]), "notebook 03_c, .*tables/z.csv is used in checks"),
        (broken(2, id="02_b"), "notebook 02_b is listed more than once"),
        (broken(2, id="04_d"), "notebook 04_d has no file notebooks/04_d.ipynb"),
        ({"notebooks": GOOD["notebooks"][:2]}, "notebooks/03_c.ipynb is not listed"),
        ({"notebooks": ["01_a"]}, "notebook 1: '01_a' is not of type 'object'"),
        ("notebooks: [", "nbs_ci.yml, line 1: not YAML"),
        ("", "nbs_ci.yml: None is not of type 'object'"),
    ],
)
def test_faults_are_named_in_one_line(load, raw, complaint):
    with pytest.raises(FedexitError, match=complaint) as caught:
        load(raw)
    assert "\n" not in str(caught.value)


def test_select_keeps_the_order_and_adds_needs(load):
    notebooks = load(GOOD)
    assert [n.id for n in select(notebooks, "smoke", [])] == ["01_a", "02_b", "03_c"]
    assert [n.id for n in select(notebooks, "smoke", ["02_b"])] == ["01_a", "02_b"]
    assert [n.id for n in select(notebooks, "big", [])] == ["01_a"]
    with pytest.raises(FedexitError, match="03_c has no profile big; it has: smoke"):
        select(notebooks, "big", ["03_c"])
    with pytest.raises(FedexitError, match=r"unknown profile paper; nbs_ci\.yml has: big, smoke"):
        select(notebooks, "paper", [])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2E+2", 200.0),
        ("1.5e3", 1500.0),
        ("12", 12),
        ("[1, a]", [1, "a"]),
        ("queen", "queen"),
        ("e3", "e3"),
    ],
)
def test_numbers_with_exponents_are_numbers(text, value):
    parsed = parse_yaml(text, "-p x")
    assert parsed == value and type(parsed) is type(value)
