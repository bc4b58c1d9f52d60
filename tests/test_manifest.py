"""Test that faults of nbs_ci.yml are reported in one line that names the notebook and the field."""

import copy

import pytest
import yaml

from fedexit.runner.manifest import load_manifest, select
from fedexit.runner.yaml_text import parse_yaml
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
    assert first.profiles["smoke"].parameters == {"rounds": 2}
    assert second.reads == ["01_a/tables/x.csv", "01_a/figures/f.csv"]  # never pictures


def broken(number: int, **fields) -> dict:
    raw = copy.deepcopy(GOOD)
    raw["notebooks"][number] |= fields
    return raw


def smoke(**fields) -> dict:
    return broken(0, profiles={"smoke": {"minutes": 1, "limit": 2, **fields}})


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (broken(1, colour="red"), "notebook 02_b, field colour: unknown field"),
        (broken(1, artifacts=["y.csv"]), "notebook 02_b, field artifacts.0: 'y.csv' does not fit"),
        (
            broken(0, profiles={"smoke": {"minutes": "1 h", "limit": 2}}),
            "01_a, field profiles.smoke.minutes: '1 h' does not fit: input should be a valid number",
        ),
        (broken(0, profiles={}), "notebook 01_a, field profiles"),
        (broken(0, id="01 a"), "notebook 01 a, field id"),
        (broken(0, needs=["02_b"]), "notebook 01_a, field needs: 02_b is not a notebook listed before it"),
        (broken(1, profiles={"huge": {"minutes": 1, "limit": 2}}), "field needs: 01_a has no profile huge"),
        (broken(2, artifacts=["figures/g.png"]), "notebook 03_c, .*figures/g.png is declared without the .csv"),
        (broken(2, measured=["tables/z.csv"]), "03_c, field measured: tables/z.csv is not among its artifacts"),
        (broken(2, profiles={"01_a": {"minutes": 1, "limit": 2}}), "results/01_a cannot hold the results of notebook"),
        (broken(2, profiles={"cells": {"minutes": 1, "limit": 2}}), "results/cells cannot hold the profile cells"),
        (broken(2, headline="tables/z.csv"), "notebook 03_c, .*tables/z.csv is used in checks or headline"),
        (broken(2, checks=[{"table": "tables/z.csv"}]), "notebook 03_c, .*tables/z.csv is used in checks"),
        (broken(2, id="02_b"), "notebook 02_b is listed more than once"),
        (broken(2, id="04_d"), "notebook 04_d has no file notebooks/04_d.ipynb"),
        ({"notebooks": GOOD["notebooks"][:2]}, "notebooks/03_c.ipynb is not listed"),
        ({"notebooks": ["01_a"]}, "notebook 1: '01_a' does not fit"),
        (broken(2, title=None), "03_c, field title: None does not fit"),
        (broken(2, needs=["01_a", "01_a"]), "03_c, field needs: 01_a is listed twice"),
        (broken(0, profiles={"smoke": {"minutes": True, "limit": 2}}), "01_a, field profiles.smoke.minutes: True"),
        (broken(0, profiles={"smoke": {"minutes": 1, "limit": float("inf")}}), "01_a, field profiles.smoke.limit"),
        (broken(0, profiles={"smoke": {"minutes": 1}}), "01_a, field profiles.smoke.limit: missing; add it"),
        (broken(0, profiles={"smoke": {"minutes": 1, "limit": 2, "data": "queen"}}), "profiles.smoke.data: 'queen'"),
        (broken(0, profiles={"smoke": {"minutes": 1, "limit": 2, "parameters": {"a": {}}}}), "smoke.parameters.a: {}"),
        (broken(0, profiles={"smoke": {"minutes": 1, "limit": 2, "parameters": {"a b": 1}}}), "parameters.a b"),
        ("notebooks: [", "nbs_ci.yml, line 1: not YAML"),
        ("notebooks: []\nnotebooks: []\n", "nbs_ci.yml, line 2: not YAML that can be used: notebooks is given twice"),
        ("notebooks:\n- {id: a, id: b}\n", "line 2: .*id is given twice"),
        ("notebooks: *no", "line 1: .*undefined alias"),
        ("notebooks: !!python/object:os.system {}", "line 1: .*could not determine a constructor"),
        ("", "nbs_ci.yml: None does not fit: input should be a valid mapping$"),
        (smoke(limit=1e300), "01_a, field profiles.smoke.limit: 1e.300 does not fit"),
        (smoke(parameters={"profile": "x"}), "the parameter profile is set by fedexit run; leave it out"),
        (smoke(parameters={"a": [1, {}]}), "smoke.parameters.a: {} does not fit: give a number, text, true, null or a"),
        (smoke(parameters={"a": float("nan")}), "smoke.parameters.a: nan does not fit: give a number"),
        (broken(0, checks=[{"table": "tables/x.csv", "min_rows": 3, "max_rows": 2}]), "min_rows 3 is above max_rows 2"),
    ],
)
def test_faults_are_named_in_one_line(load, raw, complaint):
    with pytest.raises(FedexitError, match=complaint) as caught:
        load(raw)
    assert "\n" not in str(caught.value)


def test_aliases_may_not_grow_without_bound(load):
    assert parse_yaml("{a: &a [1, 2], b: *a, c: {<<: {d: *a}}}", "x") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9)]
    for text in ("\n".join(["l0: &l0 x", *levels]), "&a [*a]", "a: &a {b: *a}"):
        with pytest.raises(FedexitError, match="more than 100,000 values"):
            load(text)


@pytest.mark.parametrize("text", ["!!bool x", "!!int x", "!!int ''", "!!float x", "!!timestamp x", "!!binary é"])
def test_a_value_must_fit_its_tag(text):
    with pytest.raises(FedexitError, match=r"^-p x.*: not YAML that can be used: "):
        parse_yaml(text, "-p x")


def test_hidden_notebooks_are_left_out(load):
    (load.root / "notebooks" / "._01_a.ipynb").write_text("")
    assert len(load(GOOD)) == 3


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
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("010", "010"),
        ("0", 0),
        ("-7", -7),
        (".5", 0.5),
        ("0x1F", "0x1F"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("~", None),
        ("", None),
        ("# only a comment", None),
    ],
)
def test_values_are_read_as_yaml_1_2(text, value):
    parsed = parse_yaml(text, "-p x")
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("@os.system('x')", "not an expression"),
        ("value.mean() > 1", r"value\.mean\(\)"),
        ("(lambda: 1)() > 0", "lambda"),
        ("[x for x in value]", "for x in value"),
        ("__class__ > 1", "__class__"),
        ("value.__class__ == 1", "value.__class__"),
        ("value[0] > 1", r"value\[0\]"),
        ("9 ** 9 ** 9 > value", r"9 \*\* 9"),
        ("(x := 1) > 0", "x := 1"),
        ("f'{value}' == 'a'", "f'"),
        ("value > 1; other", "not an expression"),
        ("", "not an expression"),
    ],
)
def test_queries_cannot_run_code(load, query, part):
    checks = [{"table": "tables/x.csv", "query": query}]
    with pytest.raises(FedexitError, match=f"notebook 01_a, field checks.0.query: the query .*{part}") as caught:
        load(broken(0, checks=checks))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("query", ["a < -1e-6", "a < 0 or b > 1", "not a in ['x', 'y']", "(a + b) / 2 <= c", "a & b"])
def test_comparisons_are_queries(load, query):
    load(broken(0, checks=[{"table": "tables/x.csv", "query": query}]))


def test_profiles_add_their_own_data_and_backbones(load):
    smoke = {"minutes": 1, "limit": 2}
    full = smoke | {"data": ["emodb"], "backbones": ["tiny"]}
    first = load(broken(0, data=["queen"], profiles={"smoke": smoke, "full": full}))[0]
    assert (first.data_in("smoke"), first.data_in("full")) == (["queen"], ["emodb", "queen"])
    assert (first.backbones_in("smoke"), first.backbones_in("full")) == ([], ["tiny"])


def test_the_manifest_must_be_utf_8(load):
    (load.root / "nbs_ci.yml").write_bytes(b"notebooks: \xff")
    with pytest.raises(FedexitError, match=r"nbs_ci\.yml is not UTF-8 \(byte 11\)"):
        load_manifest(load.root)
