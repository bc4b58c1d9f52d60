"""The fleet file and the plan, which need no Flower."""

import pytest

from fedexit import FedexitError, LocalTraining, MultiExitModel, cli, load_backbone
from fedexit.devices.profiles import profiles
from fedexit.federated.ledger import client_costs
from fedexit.flower.fleet import Node, clients_of, read_fleet, write_fleet
from fedexit.flower.local import facts_of
from fedexit.flower.plan import depths_by_policy, layers_trained, plan, summary

WEAK, STRONG = "phone low", "laptop"
NODES = [Node("ann", 3, 8, "weak", WEAK, "ANN1.DOG", "ecdsa-sha2-nistp384 AAAA"), Node("ben, b", 6, 20, device=STRONG)]


@pytest.fixture(scope="module")
def model() -> MultiExitModel:
    return MultiExitModel(load_backbone("nano"), ["yes", "no"])


def test_a_fleet_file_comes_back_from_csv_and_toml(tmp_path):
    write_fleet(NODES, tmp_path / "fleet.csv")
    assert read_fleet(tmp_path / "fleet.csv") == NODES
    tables = [f"[[client]]\nclient = '{n.client}'\ndepth = {n.depth}\nexamples = {n.examples}\n" for n in NODES]
    (tmp_path / "fleet.toml").write_text("\n".join(tables))
    found = read_fleet(tmp_path / "fleet.toml")
    assert [(n.client, n.depth, n.examples, n.key) for n in found] == [("ann", 3, 8, ""), ("ben, b", 6, 20, "")]
    clients = clients_of(NODES)
    assert [(len(one.data), one.depth, one.tier) for one in clients] == [(8, 3, "weak"), (20, 6, "")]
    with pytest.raises(FedexitError, match="clips of client ann are on its device"):
        clients[0].data[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("client,depth\nann,3\n", "column 'examples' is missing"),
        ("client,depth,examples,colour\nann,3,4,red\n", "unknown column 'colour'"),
        ("client,depth,examples\nann,deep,4\n", "client 'ann': depth must be a whole number, not 'deep'"),
        ("client,depth,examples\nann,3,0\n", "examples=0"),
        ("client,depth,examples\n,3,4\n", "name is empty"),
        ("client,depth,examples\nann,3,4\nann,6,4\n", "fleet.csv: two clients have the client 'ann'"),
        ("client,depth,examples,key\nann,3,4,ec AA x\nben,6,4,ec AA y\n", "have the key 'ec AA'"),
        ("client,depth,examples\n", "the fleet has no client"),
        ("client,depth,examples,memory\nann,3,4,-5\n", "unknown column 'memory'"),
        ("client,depth,examples\nann,3\n", "client 1 has 2 values for 3 columns"),
        ("client,depth,depth,examples\nann,3,3,4\n", "column 'depth' is there twice"),
        ("client,depth,examples\nann,3,99999999999\n", "less than or equal to 1000000"),
        ("", "it is empty"),
        (b"\xff\xfec\0", "is not UTF-8 text"),
        (None, "cannot be read"),
    ],
)
def test_a_fleet_file_with_an_error_is_refused_in_one_line(tmp_path, text, says):
    if text is not None:
        (tmp_path / "fleet.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FedexitError, match=says):
        read_fleet(tmp_path / "fleet.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"no table \[\[client\]\]"),
        ("[[client]\n", "it is not TOML"),
        ("[[client]]\nclient = 'ann'\ndepth = 3.7\nexamples = 4\n", "depth must be a whole number, not 3.7"),
        ("deep = " + "[" * 100_000 + "]" * 100_000, r"it is not TOML \(.*recursion.*\); see docs/fleet.md"),
        ("deep = " + "{a = " * 100_000, r"it is not TOML \(.*recursion.*\); see docs/fleet.md"),
        ("[[client]]\nexamples = " + "9" * 5_000, r"it is not TOML \(Exceeds the limit.*\); see docs/fleet.md"),
        (f"[[client]]\nclient = 'ann'\ndepth = 0x{'f' * 5_000}\nexamples = 4\n", "a number is too large"),
        (f"[[client]]\nclient = 0x{'f' * 5_000}\ndepth = 3\nexamples = 4\n", "a number is too large"),
        (f"[[client]]\nclient = 'ann'\ndepth = 3\nexamples = 4\ntier = 0x{'f' * 5_000}\n", "a number is too large"),
    ],
)
def test_a_toml_file_with_an_error_is_refused_in_one_line(tmp_path, text, says):
    (tmp_path / "fleet.toml").write_text(text)
    with pytest.raises(FedexitError, match=says) as caught:
        read_fleet(tmp_path / "fleet.toml")
    assert str(caught.value).startswith(f"fleet file {tmp_path / 'fleet.toml'}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("mark", [";", "\t", ", "])
def test_a_spreadsheets_csv_is_read(tmp_path, mark):
    rows = ["\ufeffclient,depth,examples", "ann,3,8", ""]
    (tmp_path / "fleet.csv").write_text("\r\n".join(rows).replace(",", mark), encoding="utf-8")
    assert read_fleet(tmp_path / "fleet.csv") == [Node("ann", 3, 8)]


def test_the_plan_has_the_costs_of_the_ledger_and_names_what_is_wrong(model):
    table = plan(NODES, model, rounds=5, seconds=1.0)
    costs = client_costs(model, 3, [16_000] * 8, LocalTraining())
    [ann, ben] = table.to_dict("records")
    assert (ann["depth"], ann["limit"], ben["depth"]) == (3, "fleet", 6)
    assert (ann["memory"], ann["bytes"], ann["bytes_total"]) == (
        costs["memory_training"], 2 * costs["bytes"], 10 * costs["bytes"],
    )  # fmt: skip
    device = profiles()[WEAK].device
    compute = (costs["macs_forward"] + costs["macs_backward"]) / device.macs_per_second
    link = 8 * costs["bytes"] * (1 / device.down_bits_per_second + 1 / device.up_bits_per_second)
    assert ann["seconds"] == pytest.approx(compute + link)
    assert list(table["straggler"]) == [ann["seconds"] > ben["seconds"], ann["seconds"] < ben["seconds"]]
    layers = layers_trained(table, NODES, 12)
    assert layers["clients"].tolist() == [2] * 3 + [1] * 3 + [0] * 6
    told = summary(table, layers, 5)
    assert "Nobody trains layers 7, 8, 9, 10, 11, 12" in told and f"{table['bytes_total'].sum() / 1e6:.1f} MB" in told


def test_a_device_on_which_nothing_fits_has_depth_0(model):
    table = plan(NODES, model, rounds=1, seconds=1.0, deadline=1e-6)
    assert table["depth"].tolist() == [0, 0] and set(table["limit"]) == {"time"} and not table["straggler"].any()
    assert "No exit fits ann, ben, b" in summary(table, layers_trained(table, NODES, 12), 1)


def test_the_policy_of_a_fleet_never_exceeds_its_file(model):
    depths = depths_by_policy(NODES, model, LocalTraining(), seed=0)
    assert depths(1) == {"ann": 3, "ben, b": 6}


@pytest.mark.parametrize(
    ("nodes", "changes", "says"),
    [
        ([Node("ann", 3, 4, device="Cray")], {}, "unknown device 'Cray'"),
        ([Node("ann", 4, 4, device=WEAK)], {}, "client ann has depth 4; the model has exits"),
        (NODES, {"rounds": 0}, "rounds must be >= 1"),
        (NODES, {"seconds": 0.0}, "length of a clip must be > 0"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(model, nodes, changes, says):
    with pytest.raises(FedexitError, match=says):
        plan(nodes, model, **{"rounds": 1, **changes})


def test_the_command_prints_the_plan(tmp_path, capsys):
    write_fleet(NODES, tmp_path / "fleet.csv")
    assert cli.main(["fleet", "plan", str(tmp_path / "fleet.csv"), "--rounds", "5", "--backbone", "nano"]) == 0
    out = capsys.readouterr().out
    assert "straggler" in out and "5 rounds take" in out and "Nobody trains layers 7, 8" in out
    assert cli.main(["fleet", "plan", str(tmp_path / "none.csv")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_a_folder_without_a_readable_fleet_is_refused_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "fleet.json").write_bytes(content)
    with pytest.raises(FedexitError, match=r"^[^\n]* holds no fleet \([^\n]+\); start one: fedexit fleet up$"):
        facts_of(tmp_path)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["plan", "fleet.csv", "--task", "keywrod"], "unknown task 'keywrod'; known: "),
        (["plan", "fleet.csv", "--seconds", "1e308"], "--seconds must be > 0 and at most 3600, not 1e+308"),
        (["plan", "fleet.csv", "--seconds", "nan"], "--seconds must be > 0 and at most 3600, not nan"),
        (["run", "--folder", ".", "--minutes", "nan"], "--minutes must be > 0, not nan"),
        (["run", "--folder", ".", "--minutes", "-1"], "--minutes must be > 0, not -1"),
        (["down", "--folder", "misspelt"], "misspelt holds no fleet ("),
    ],
)
def test_the_commands_refuse_wrong_input_in_one_line(command, says, tmp_path, monkeypatch, capsys):
    def submitted(*given, **named):
        raise AssertionError("the run was submitted")

    monkeypatch.setattr("fedexit.flower.local.submit", submitted)
    monkeypatch.chdir(tmp_path)
    write_fleet(NODES, tmp_path / "fleet.csv")
    (tmp_path / "fleet.json").write_text('{"simulated": false}')
    assert cli.main(["fleet", *command]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fedexit: {says}") and err.count("\n") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"fleet.csv", "fleet.json"}
    assert cli.main(["fleet", "down", "--folder", "."]) == 0 and capsys.readouterr().out == "0 processes ended\n"
