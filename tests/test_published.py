"""Test published cells: they come back as they were, know the code that made them, and can be checked by training."""

import json
import math
import shutil
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpus import write_small_corpus
from test_recompute import rate_with_interval

from fedexit import FedexitError, cli
from fedexit.central.fine_tuning import Recipe
from fedexit.data import places
from fedexit.devices.dynamics import Dynamics, Faults
from fedexit.devices.policy import Need, Policy
from fedexit.devices.profiles import Calibration
from fedexit.federated import aggregation
from fedexit.federated.clients import LocalTraining
from fedexit.federated.regime import Regime
from fedexit.lab import grid, kept, published, spot_checks
from fedexit.lab.cells import Measured
from fedexit.lab.grid import run_grid, run_grids
from fedexit.lab.inference import difference
from fedexit.lab.kept import Origin, in_words, key_of, read_cell, write_cell
from fedexit.lab.layouts import Layout
from fedexit.lab.published import SCHEMAS, publish, read_published, setting_from
from fedexit.lab.setting import Cell, DataPart, FederationPart, ModelPart, Setting, StudyPart
from fedexit.runner import fingerprint, provenance
from fedexit.runner.cell_index import read_index, read_same_code
from fedexit.support.placement import lacks_bfloat16
from fedexit.support.reads import read_notes

CODE = "hash of the present code"
ONE, OTHER, CENTRAL = Cell("voice", "masked", 0), Cell("voice", "heterofl", 1), Cell("voice", "central", 0, 3)
PLAIN = Setting(
    DataPart("small", max_seconds=0.25, min_clips=4),
    FederationPart(3, "group", 0.5, LocalTraining(learning_rate=1e-3), evaluations=1),
    ModelPart("nano", (3, 6)),
    StudyPart(Recipe(epochs=2, crop=None), dev_clips=20),
)
ODD = ["NA", "", "0003", "a\rb", 'x,"y"\n', "nan", "é"]


@pytest.fixture(scope="module", autouse=True)
def present_code():
    """Use a known code hash."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "code_hash", lambda module: CODE)
        kept.present_code.cache_clear()
        yield
    kept.present_code.cache_clear()


def made_up(cell, seed=0):
    """Return tables with every column, odd names and odd numbers."""
    rng, rows = np.random.default_rng(seed), len(ODD)
    columns = {
        pa.float64(): [0.1 + 0.2, math.nan, 5e-324, math.inf, -0.0, 1 / 3, rng.random()],
        pa.int32(): [0, 1, -1, 2**31 - 1, 5, 6, int(rng.integers(100))],
        pa.int64(): [2**53 + 1, 1, 2, 3, 4, 5, 6],
    }
    tables = {}
    for kind, schema in SCHEMAS.items():
        table = {field.name: columns.get(field.type, ODD) for field in list(schema)[2:]}
        about = dict(method=cell.method, task=cell.task, seed=cell.seed)
        tables[kind] = pd.DataFrame(table | {name: [value] * rows for name, value in about.items()})
    if cell.method == "central":
        tables["ledger"] = pd.DataFrame(about, index=[])
    if cell.method != "heterofl":
        tables["ledger"] = tables["ledger"].drop(columns="width", errors="ignore")
    return Measured(**tables)


def keep(state, *cells, key="key", code=CODE, seed=0):
    origin = Origin(code, ("small", "sum of the corpus"), ("nano", "nano"))
    for cell in cells:
        write_cell(state / key, cell, made_up(cell, seed), PLAIN, origin, 1.25)
    return state


def assert_same(one, other):
    """Check that tables are equal, but for the wall times of a ledger, which are published to a millisecond."""
    for left, right in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(to_milliseconds(left), to_milliseconds(right), check_exact=True)


def to_milliseconds(table):
    return table.assign(seconds=table["seconds"].round(3)) if "seconds" in table else table


def test_published_cells_are_as_they_were(tmp_path):
    state = keep(tmp_path / "state", ONE, OTHER, CENTRAL)
    assert publish(state, tmp_path / "cells") == 3
    found = read_published(tmp_path / "cells", [("key", cell.name) for cell in (ONE, OTHER, CENTRAL)] + [("key", "no")])
    assert len(found) == 3
    for cell in (ONE, OTHER, CENTRAL):
        measured, verified = found["key", cell.name]
        expected, _ = read_cell(state / "key", cell)
        assert verified
        if cell is CENTRAL:
            assert measured.ledger.empty and {"method", "task", "seed"} <= {*measured.ledger}
            measured, expected = measured._replace(ledger=measured.errors), expected._replace(ledger=measured.errors)
        assert_same(measured, expected)
        signs = np.signbit(measured.errors["value"])
        assert signs.equals(np.signbit(made_up(cell).errors["value"]))
    assert "width" in found["key", OTHER.name][0].ledger and "width" not in found["key", ONE.name][0].ledger


def test_the_index_says_what_made_a_cell(tmp_path):
    publish(keep(tmp_path / "state", CENTRAL), tmp_path / "cells")
    [row] = pd.read_parquet(tmp_path / "cells" / "cells.parquet").to_dict("records")
    assert row["key"] == "key" and row["name"] == CENTRAL.name and row["depth"] == 3
    assert json.loads(row["setting"])["study"]["central"]["epochs"] == 2
    assert json.loads(row["versions"]).keys() == {*fingerprint.VERSIONS}
    assert row["corpus_checksum"] == "sum of the corpus" and row["code"] == CODE and row["seconds"] == 1.2
    assert row["processor"] == kept.processor() and row["weights"] == "é" and len(row["finished"]) == 10


def test_equal_cells_give_equal_rows_in_any_order(tmp_path):
    both = keep(keep(tmp_path / "both", ONE, OTHER), ONE, key="a key", seed=1)
    publish(both, tmp_path / "once")
    for part in (keep(tmp_path / "first", OTHER), keep(tmp_path / "second", ONE, key="a key", seed=1)):
        publish(part, tmp_path / "by_parts")
    publish(keep(tmp_path / "third", ONE, seed=2), tmp_path / "by_parts")
    publish(keep(tmp_path / "last", ONE), tmp_path / "by_parts")  # in place of the one before
    once, parts = (tmp_path / name for name in ("once", "by_parts"))
    assert (once / "cells.parquet").read_bytes() == (parts / "cells.parquet").read_bytes()
    names = sorted(file.name for file in parts.iterdir())
    assert names == ["cells.parquet", "errors.parquet", "items.parquet", "ledger.parquet", "spot.parquet"]
    for name in names:
        one, other = (pd.read_parquet(folder / name).astype(object) for folder in (once, parts))
        one, other = (table.sort_values(["key", "name"], kind="stable", ignore_index=True) for table in (one, other))
        pd.testing.assert_frame_equal(one, other)


def test_a_publication_leaves_the_bytes_of_the_earlier_ones(tmp_path):
    cells = tmp_path / "cells"
    publish(keep(tmp_path / "first", ONE, OTHER), cells)
    before = {kind: (cells / f"{kind}.parquet").read_bytes() for kind in SCHEMAS}
    publish(keep(tmp_path / "second", ONE, key="a key", seed=1), cells)
    for kind, old in before.items():
        new = (cells / f"{kind}.parquet").read_bytes()
        footer = int.from_bytes(old[-8:-4], "little") + 8
        assert len(old) > footer and new.startswith(old[:-footer])


def test_tables_that_changed_or_have_other_columns_are_not_published(tmp_path):
    state = keep(tmp_path / "state", ONE)
    table = state / "key" / f"{ONE.name}.items.csv.gz"
    pd.read_csv(table).assign(errors=0).to_csv(table, index=False)
    with pytest.raises(FedexitError, match=r"voice-masked-seed0: its tables changed since they were written; delete"):
        publish(state, tmp_path / "cells")
    table.unlink()
    assert publish(state, tmp_path / "cells") == 0  # it is not finished
    origin, tables = Origin(CODE, ("small", ""), ("nano", "nano")), made_up(ONE)
    for changed, said in (
        (tables.items.drop(columns="clip"), "the table items lacks column 'clip'"),
        (tables.items.assign(more=1), "the table items has an unknown column 'more'"),
        (tables.items.assign(errors=0.5), "the table items cannot be published"),
        (tables.items.assign(errors=2**40), "the table items cannot be published"),
        (tables.items.assign(errors=[math.nan, *range(6)]), "column errors has an empty value"),
    ):
        write_cell(state / "key", ONE, tables._replace(items=changed), PLAIN, origin, 1.0)
        with pytest.raises(FedexitError, match=said):
            publish(state, tmp_path / "cells")


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def without_a_column(file):
    table = pq.read_table(file)
    pq.write_table(table.drop_columns("name"), file)


@pytest.mark.parametrize("kind", ["cells", "items"])
@pytest.mark.parametrize("change", [cut, without_a_column, lambda file: file.write_text("?")])
def test_a_damaged_file_is_named_in_one_sentence(change, kind, tmp_path):
    publish(keep(tmp_path / "state", ONE), tmp_path / "cells")
    change(tmp_path / "cells" / f"{kind}.parquet")
    with pytest.raises(FedexitError, match=rf"^{kind}\.parquet is damaged \([^\n]*\); get the folder cells from git$"):
        read_published(tmp_path / "cells", [("key", ONE.name)])


def test_a_missing_file_is_named(tmp_path):
    publish(keep(tmp_path / "state", ONE), tmp_path / "cells")
    (tmp_path / "cells" / "spot.parquet").unlink()
    with pytest.raises(FedexitError, match=r"spot\.parquet is damaged \(.*\); get the folder cells from git"):
        read_published(tmp_path / "cells", [("key", ONE.name)])


# ---- which cells are verified ------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Return the folder of published cells, with two cells of other code."""
    monkeypatch.setenv("FEDEXIT_RESULTS", str(tmp_path))
    monkeypatch.setenv("FEDEXIT_READS", str(tmp_path / "notes"))
    publish(keep(tmp_path / "state", ONE, OTHER, code="other code"), tmp_path / "cells")
    (tmp_path / "notes").unlink()
    return tmp_path / "cells"


def verified(folder, cell=ONE):
    return read_published(folder, [("key", cell.name)])["key", cell.name][1]


def test_a_cell_of_other_code_is_unverified_until_a_check_is_recorded(results):
    assert not verified(results)
    file = results / "same_code.csv"
    file.write_text("code,gives,cells,processor,date\nan older code,other code,3,EPYC,2026-01-01\n")
    assert not verified(results)
    with file.open("a") as lines:
        lines.write(f"{CODE},other code,2,EPYC,2026-01-02\n")
    assert verified(results)
    file.write_text("code,gives,cells,processor,date\nb,other code,2,EPYC,2026-01-01\n")
    with file.open("a") as lines:
        lines.write(f"a,b,2,EPYC,2026-01-02\n{CODE},a,2,EPYC,2026-01-03\n")
    assert verified(results)  # the present code gives the cells of a, which gives those of b, which gives these
    file.write_text("code,gives\n1,2\n")
    with pytest.raises(FedexitError, match=r"same_code\.csv is damaged \(its columns are not code, gives"):
        verified(results)


def test_changed_rows_are_unverified_and_noted(results, tmp_path):
    (results / "same_code.csv").write_text(f"code,gives,cells,processor,date\n{CODE},other code,2,EPYC,2026-01-02\n")
    assert verified(results) and verified(results, OTHER)
    note = f"cells/key/{ONE.name}"
    before = read_notes(tmp_path / "notes")["cell"][note]
    assert before == {"checksum": read_index(results)["key", ONE.name]["checksum"], "code": "other code"}
    assert provenance._content(note) == before["checksum"]
    assert provenance._cells_compared({note: before}) == ([], [])
    table = pq.read_table(results / "items.parquet")
    errors = table["errors"].to_numpy().copy()
    errors[table["name"].to_pylist().index(ONE.name)] += 1
    where = table.schema.get_field_index("errors")
    pq.write_table(table.set_column(where, "errors", pa.array(errors)), results / "items.parquet")
    assert not verified(results) and verified(results, OTHER)
    after = read_notes(tmp_path / "notes")["cell"][note]
    assert after["checksum"] != before["checksum"] and after["code"] == ""


def test_a_replaced_published_cell_changes_the_provenance(results, tmp_path):
    verified(results)
    notes = read_notes(tmp_path / "notes")["cell"]
    assert provenance._cells_compared(notes)[1] == [
        f"1 of 1 kept cells were made by other code than the present (cells/key/{ONE.name})"
    ]
    publish(keep(tmp_path / "again", ONE, seed=3), results)
    assert provenance._cells_compared(notes)[0] == [f"1 of 1 kept cells changed (cells/key/{ONE.name})"]
    gone = {"cells/key/no": {"checksum": "c", "code": CODE}}
    assert provenance._cells_compared(gone)[0] == ["1 of 1 kept cells are gone (cells/key/no)"]


# ---- settings in words -------------------------------------------------------------------------------------------

NEEDS = {3: Need(1e6, 2.0, 3), 6: Need(math.inf, 4.5, 6)}
EVERYTHING = PLAIN.changed(
    training=LocalTraining(clip_norm=math.inf, optimiser="sgd", spec_augment=True, bfloat16=True),
    regime=Regime(heads_rounds=2, falling_rates=True, average=0.9),
    policy=Policy(NEEDS, 3, Calibration(1.5, 2e6), dynamics=Dynamics(ends=(0.2, 0.5)), faults=Faults(killed=0.1)),
    fleet=("phone low", "wearable"),
    speeds=(0.9, 1.0),
    shares=(0.25, 0.75),
    rotated=True,
    lora=4,
    head="pooled",
    central=Recipe(crop=75, clip_norm=math.inf, label_smoothing=0.1),
)


@pytest.mark.parametrize("setting", [PLAIN, EVERYTHING, PLAIN.changed(max_seconds=1, drop_out=0.5)])
def test_a_setting_is_rebuilt_from_its_words(setting):
    text = json.dumps(in_words(setting))
    assert setting_from(text) == setting
    assert json.dumps(in_words(setting_from(text))) == text
    origin = Origin("", ("", ""), ("", ""))
    for central in (True, False):
        assert key_of(setting_from(text), origin, central) == key_of(setting, origin, central)


def test_a_central_cell_needs_no_federation_in_words_and_unknown_options_are_refused():
    words = in_words(EVERYTHING)
    del words["federation"]
    assert setting_from(json.dumps(words)).study == EVERYTHING.study
    words["data"]["more"] = 1
    with pytest.raises(FedexitError, match="data has an unknown option 'more'; get the code that made the cell"):
        setting_from(json.dumps(words))
    del words["data"]["more"], words["data"]["corpus"]
    with pytest.raises(FedexitError, match=r"data lacks an option .*corpus"):
        setting_from(json.dumps(words))


# ---- trained cells -----------------------------------------------------------------------------------------------

CELLS = [ONE, Cell("voice", "stale", 0), CENTRAL]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a results folder with published cells, their setting, and what the grid gave."""
    root = tmp_path_factory.mktemp("trained")
    folder = write_small_corpus(root / "small", clips=10)
    setting = PLAIN.changed(corpus=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDEXIT_DATA", str(root / "data"))
        whole = run_grid(CELLS, setting, root / "state", workers=1)
        publish(root / "state", root / "results" / "cells")
    return root / "results", setting, whole


@pytest.fixture
def copy(trained, tmp_path, monkeypatch):
    """Return a copy of the results folder, which the project uses, and the setting of its cells."""
    shutil.copytree(trained[0], tmp_path / "results")
    monkeypatch.setenv("FEDEXIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("FEDEXIT_DATA", str(trained[0].parent / "data"))
    return tmp_path / "results", trained[1]


def test_published_cells_are_read_without_their_corpus(trained, copy, tmp_path, monkeypatch):
    results, setting = copy
    monkeypatch.setattr(places, "NAMES", (*places.NAMES, "small"))
    monkeypatch.setitem(places._HOW_TO_FETCH, "small", "run: fedexit data fetch small")
    absent = setting.changed(corpus="small")
    found = run_grids({"": (CELLS, absent)}, tmp_path / "state", 1, results / "cells")[""]
    for ours, theirs in zip(found, trained[2], strict=True):
        pd.testing.assert_frame_equal(
            ours[theirs.columns], to_milliseconds(theirs), check_exact=True, check_dtype=False
        )
    for cells, folder in ((CELLS, None), ([Cell("voice", "masked", 1)], results / "cells")):
        with pytest.raises(FedexitError, match="'small' is not there; run: fedexit data fetch small"):
            run_grids({"": (cells, absent)}, tmp_path / "state", 1, folder)


def test_grids_read_published_cells_and_train_only_the_others(trained, copy, tmp_path, monkeypatch):
    (results, setting), asked = copy, []
    monkeypatch.setattr(
        grid, "check_grids", lambda grids, _: asked.extend(cell for cells, _ in grids for cell in cells)
    )
    monkeypatch.setattr(grid, "on_workers", lambda function, jobs, *_: pytest.fail(f"{len(jobs)} cells are trained"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run_grids({"all": (CELLS, setting)}, tmp_path / "state", 1, results / "cells")["all"]
    assert not asked and not (tmp_path / "state").exists()
    for ours, theirs in zip(found, trained[2], strict=True):
        pd.testing.assert_frame_equal(
            ours[theirs.columns], to_milliseconds(theirs), check_exact=True, check_dtype=False
        )
    trains = []
    monkeypatch.setattr(grid, "on_workers", lambda function, jobs, *_: trains.extend(job[0] for job in jobs))
    new = Cell("voice", "masked", 1)
    with pytest.raises(
        FedexitError, match=r"voice-masked-seed1\.errors\.csv\.gz is damaged"
    ):  # no cell is trained here
        run_grids({"": ([ONE, new], setting)}, tmp_path / "state", 1, results / "cells")
    assert trains == asked == [new]
    with pytest.raises(FedexitError, match="a grid has no cells"):
        monkeypatch.undo()
        run_grids({"": ([], setting)}, tmp_path / "state", 1, results / "cells")


def test_grids_count_unverified_published_cells(copy, tmp_path, monkeypatch):
    results, setting = copy
    monkeypatch.setattr(published, "present_code", lambda: "newer code")
    with pytest.warns(
        UserWarning, match=r"unverified: 3 of 3 published cells .*; check them with: fedexit cells check"
    ):
        run_grids({"": (CELLS, setting)}, tmp_path / "state", 1, results / "cells")


def check(capsys, *options):
    code = cli.main(["cells", "check", *options])
    return code, capsys.readouterr().out.splitlines()


def test_a_check_finds_bit_identical_cells_and_records_them(copy, capsys, monkeypatch):
    results, _ = copy
    code, lines = check(capsys, "--record")
    assert code == 0 and len(lines) == 3  # the federations and the central cell have two keys
    assert all(line.endswith(": bit-identical") for line in lines[:2])
    assert lines[2].endswith("gives the cells of 0 other codes")
    assert read_same_code(results / "cells") == []
    for module in (published, spot_checks):
        monkeypatch.setattr(module, "present_code", lambda: "newer code")
    code, lines = check(capsys, "--cells", "9", "--whole", "--record")
    assert code == 0 and len(lines) == 4 and lines[-1].endswith("gives the cells of 1 other codes")
    [row] = read_same_code(results / "cells")
    assert row["code"] == "newer code" and row["gives"] == CODE and row["cells"] == "3"
    check(capsys, "--cells", "9", "--record")
    assert len(read_same_code(results / "cells")) == 1
    assert all(verified for _, verified in read_published(results / "cells", read_index(results / "cells")).values())


def test_another_turn_checks_another_cell(copy, capsys):
    checked = [check(capsys, "--cells", "1", "--turn", str(turn))[1][0] for turn in range(3)]
    assert len(set(checked)) == 3  # as many as there are


def depth_alone(update, method, exponent):
    return float(update.depth)


def test_a_check_notices_a_changed_line(copy, capsys, monkeypatch):
    results, _ = copy
    monkeypatch.setattr(aggregation, "client_weight", depth_alone)
    code, lines = check(capsys, "--cells", "3", "--record")
    assert code == 1 and len(lines) == 3
    assert sum(": differs: " in line and line.endswith("answers alike") for line in lines) >= 1
    assert not (results / "cells" / "same_code.csv").exists()


@pytest.mark.parametrize(
    ("fact", "value"), [("processor", "another processor"), ("lacks_bfloat16", not lacks_bfloat16())]
)
def test_on_another_processor_nearly_all_answers_must_be_alike(fact, value, copy, capsys, monkeypatch):
    results, _ = copy
    monkeypatch.setattr(spot_checks, fact, lambda: value)
    new = read_published(results / "cells", read_index(results / "cells"))
    [old] = [measured.spot for (_, name), (measured, _) in new.items() if name == ONE.name]
    row = next(row for row in read_index(results / "cells").values() if row["name"] == ONE.name)
    answers = old.drop_duplicates(["round", "exit", "clip"])
    for wrong, passed in ((0, True), (1, True), (2, len(answers) * 0.03 >= 2), (len(answers), False)):
        changed = answers.assign(weights="others", answer=["?"] * wrong + answers["answer"].tolist()[wrong:])
        found = spot_checks._compared(row, answers, changed)
        assert not found.identical and found.passed == passed, wrong
        assert f"{len(answers) - wrong} of {len(answers)} answers alike" in str(found)
        assert ("differs" in str(found)) != passed
    with pytest.raises(FedexitError, match="nothing is recorded, because all cells were made on other processors"):
        spot_checks.record(results / "cells", [found])
    monkeypatch.undo()
    with pytest.raises(FedexitError, match="nothing is recorded, because voice-masked-seed0 is not bit-identical"):
        spot_checks.record(results / "cells", [found])


def test_a_few_cells_are_of_this_kind_of_processor_where_there_are_any(copy, capsys, monkeypatch):
    monkeypatch.setattr(spot_checks, "_made_elsewhere", lambda row: row["name"] != ONE.name)
    found = [check(capsys, "--cells", "1", "--turn", str(turn))[1][0] for turn in range(3)]
    assert len(set(found)) == 1 and ONE.name in found[0]
    assert len(check(capsys)[1]) == 2  # one of every key
    monkeypatch.setattr(spot_checks, "_made_elsewhere", lambda row: True)
    assert len(check(capsys, "--cells", "2")[1]) == 2


@pytest.mark.parametrize("lacks", [False, True])
@pytest.mark.parametrize("cell", [ONE, CENTRAL])
def test_a_processor_without_bfloat16_leaves_out_cells_that_need_it(cell, lacks, monkeypatch):
    monkeypatch.setattr(spot_checks, "lacks_bfloat16", lambda: lacks)
    half = LocalTraining(bfloat16=True), Recipe(epochs=1, crop=None, bfloat16=True)
    settings = [PLAIN, PLAIN.changed(training=half[0]), PLAIN.changed(central=half[1])]
    rows = [{**in_words(cell), "setting": json.dumps(in_words(setting))} for setting in settings]
    needs, said = rows[2 if cell is CENTRAL else 1], []
    assert spot_checks._in_own_precision(rows, said.append) == [row for row in rows if not lacks or row is not needs]
    assert said == (["1 cells are not checked: they were trained in bfloat16, which this processor lacks"] * lacks)


def test_checks_are_spread_over_experiments_and_methods():
    rows = [dict(key=k, name=f"{m}{s}", method=m, task="t") for k in "ab" for m in ("eq1", "masked") for s in (0, 1)]
    chosen = spot_checks._chosen(rows, 4)
    assert [(row["key"], row["method"]) for row in chosen] == [
        ("a", "eq1"),
        ("b", "masked"),
        ("a", "masked"),
        ("b", "eq1"),
    ]
    assert len(spot_checks._chosen(rows, 99)) == 8


def test_a_check_needs_the_corpus_with_its_content(trained, copy, capsys, tmp_path, monkeypatch):
    results, _ = copy
    [row, *_] = read_index(results / "cells").values()
    with pytest.raises(FedexitError, match="was made from another content of the corpus small"):
        spot_checks._trained(row | {"corpus_checksum": "another"}, False)
    publish(keep(tmp_path / "made_up", ONE), tmp_path / "empty" / "cells")  # its corpus `small` is a name
    monkeypatch.setenv("FEDEXIT_RESULTS", str(tmp_path / "empty"))
    assert cli.main(["cells", "check"]) == 2
    found = capsys.readouterr()
    assert "1 cells are not checked: corpus 'small' is not there" in found.out
    assert "has no cell to check" in found.err


def test_commands_publish_and_list(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FEDEXIT_RESULTS", str(tmp_path))
    assert cli.main(["cells", "list"]) == 2
    assert "has no cells; publish some with: fedexit cells publish" in capsys.readouterr().err
    assert cli.main(["cells", "publish", str(tmp_path / "nothing")]) == 2
    assert "has no finished cell" in capsys.readouterr().err
    assert cli.main(["cells", "publish", str(trained[0].parent / "state")]) == 0
    assert "3 cells of" in capsys.readouterr().out
    assert cli.main(["cells", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].split() == ["key", "task", "corpus", "backbone", "cells", "verified", "hours"]


# ---- recomputing without fedexit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("tested", [1.0, 0.6])
def test_the_interval_without_fedexit_is_that_of_the_package(seeds, tested):
    rng = np.random.default_rng(seeds)
    n = rng.integers(1, 9, (seeds, 7)) * (rng.random((seeds, 7)) <= tested)
    n[:, 0], n[0] = 3, 4  # no seed and no cluster is without clips
    errors = rng.binomial(n, 0.3)
    rows = [(s, c, errors[s, c], n[s, c]) for s in range(seeds) for c in range(7) if n[s, c]]
    found = rate_with_interval(pd.DataFrame(rows, columns=["seed", "cluster", "errors", "n"]))
    expected = difference(Layout(errors.astype(float), n.astype(float)))
    assert found == pytest.approx((expected.difference, expected.low, expected.high), nan_ok=True)
