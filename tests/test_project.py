"""Test that dependencies, sizes, imports, prose and README agree, and that no machine left a trace."""

import ast
import gzip
import os
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import soundfile
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

import fedexit
from fedexit import cli
from fedexit.data.places import corpus_checksum
from fedexit.lab import readme
from fedexit.runner.fingerprint import VERSIONS
from fedexit.runner.manifest import load_manifest, select
from fedexit.runner.provenance import NOT_HERE, state_of
from fedexit.support.errors import FedexitError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
[ALL] = [Requirement(text) for text in EXTRAS["all"]]
# `teacher` makes a backbone; nobody needs it to use one. `flower` needs older releases than the lock (docs/fleet.md).
# `book` and `browser` are for the website alone.
INSTALLED = {*EXTRAS} - {"all", "teacher", "flower", "book", "browser"}
LOCKED = {*EXTRAS} - {"all", "flower"}
DIRECT = [Requirement(text) for name in LOCKED for text in PROJECT["dependencies"] + EXTRAS[name]]
USUAL = [Requirement(text) for name in INSTALLED for text in PROJECT["dependencies"] + EXTRAS[name]]
CONDA_NAMES = {"torch": "pytorch", "soundfile": "pysoundfile"}  # where conda-forge differs from PyPI
MODULES = sorted({*(ROOT / "fedexit").rglob("*.py")} - {*(ROOT / "fedexit/flower/template").iterdir()})
BINARY = {".parquet", ".png", ".safetensors"}


def project_files() -> list[Path]:
    """Return the files in git and new files that git would not ignore."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in sorted(filter(None, listed.split("\0"))) if (path := ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """Return the text of a file or of a compressed table."""
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_lock_pins_every_direct_dependency_within_its_range():
    locked = {canonicalize_name(name): version for name, version in pins().items()}
    for need in DIRECT:
        assert canonicalize_name(need.name) in locked, f"requirements.lock lacks {need.name}"
        assert need.specifier.contains(locked[need.name]), f"{need}, but requirements.lock pins {locked[need.name]}"


def test_lock_is_sorted_and_without_the_project():
    names = list(pins())
    assert names == sorted(names, key=str.lower)
    assert "fedexit" not in names


def test_conda_environment_has_the_same_dependencies():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    by_pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    conda = {text for text in listed if isinstance(text, str)} | set(by_pip) - {"-e ."}
    assert conda - {"pip", "python=3.11"} == {
        f"{CONDA_NAMES.get(need.name, need.name)}{need.specifier}" for need in USUAL
    }


def test_every_package_and_its_files_are_installed():
    settings = PYPROJECT["tool"]["setuptools"]
    found = settings["packages"]["find"]
    assert found == {"include": ["fedexit*"], "namespaces": False}
    packages = {name: ROOT.joinpath(*name.split(".")) for name in find_packages(str(ROOT), include=found["include"])}
    assert set(packages.values()) == {module.parent for module in MODULES}, "a folder lacks __init__.py"
    installed = {
        path for name, patterns in settings["package-data"].items() for p in patterns for path in packages[name].glob(p)
    }
    assert installed == {path for path in project_files() if path.is_relative_to(ROOT / "fedexit")} - set(MODULES)


def test_extras_and_conda_follow_the_readme_and_makefile():
    """`make` installs the usual extras, and flashlight-text, which has no wheel for Python 3.13, is only an extra."""
    assert '".[all,dev]"' in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert ALL.name == "fedexit" and ALL.extras == INSTALLED - {"dev"}
    assert EXTRAS["beam"] == ["flashlight-text>=0.0.7; python_version < '3.13'"]
    assert not any("flashlight" in text for text in PROJECT["dependencies"])


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == fedexit.__version__ == str(citation["version"])


def test_modules_are_short():
    sizes = {module: len(module.read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert {module.name: lines for module, lines in sizes.items() if lines > 350} == {}
    assert sum(lines for module, lines in sizes.items() if module.parent.name in ("model", "federated")) <= 4150


def prose(module: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring, message and comment of `module`."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, " ".join(node.value.split())
    with tokenize.open(module) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


DIALECT = re.compile(
    r"\b(?:mend(?:s|ed|ing)?|told|hears?|go(?:es)? on (?:with|from)|the (?:very )?same bits|by far|surely|hardly)\b"
    r"|\bha(?:s|ve) not(?= (?:an?|any|the|its|their)\b|[.,;:)]|$)",
    re.IGNORECASE,
)
NOT_A_VERB = re.compile(
    r"(?:An?|The|One|Two|Each|Every|All|Any|No|Not|Its?|This|That|These|Those|There|Everything|Nothing|Something|If|Of|In"
    r"|For|By|With|To|As|From|At|On|What|Which|Who|Whose|How|Where|When|Why|Whether|(?!Partition)\w+tion|\w+ness|\w+[^\Ws]s)\b"
)


BEGINS_A_CLAUSE = re.compile(r"(?:What|Which|Who|Whose|Those|How|Where|When|Why|Whether)\b")


def test_docstrings_and_messages_are_plain_english():
    found = [
        f"{module.relative_to(ROOT)}:{line}: {match.group()!r}"
        for module in MODULES
        for line, text in prose(module)
        for match in DIALECT.finditer(text)
    ]
    assert found == [], "use the ordinary words of the field: fix, resume, bit-identical, lack ..."


def test_docstrings_start_with_a_verb():
    """For a class a noun phrase is ordinary English, so only words that begin a clause are refused there."""
    wrong = dict.fromkeys((ast.FunctionDef, ast.AsyncFunctionDef), NOT_A_VERB) | {ast.ClassDef: BEGINS_A_CLAUSE}
    found = []
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if type(node) in wrong else None
            if text and (not re.match(r"[A-Z]\w*", text) or wrong[type(node)].match(text)):
                found.append(f"{module.relative_to(ROOT)}: {node.name}: {text.splitlines()[0]}")
    assert found == [], 'start with "Return", "Train", "Average" ...'


WITHOUT_UNIX = """
import builtins, multiprocessing, pkgutil, runpy, sys
true_import, true_context = builtins.__import__, multiprocessing.get_context
unix = {"fcntl", "termios", "resource", "pwd", "grp"}

def missing(name, globals=None, *rest, **named):
    if name in unix and (globals or {}).get("__name__", "").startswith("fedexit"):
        raise ImportError(f"no module named {name!r} here")
    return true_import(name, globals, *rest, **named)

def context(method=None):
    if method in ("fork", "forkserver"):
        raise ValueError(f"cannot find context for {method!r}")
    return true_context(method)

builtins.__import__, multiprocessing.get_context = missing, context
multiprocessing.get_all_start_methods = lambda: ["spawn"]
import fedexit
peers = ("fedexit.bench.pfl_engine", "fedexit.bench.flower_engine", "fedexit.bench.fleet_engine", "fedexit.__main__")
needs_flower = tuple(f"fedexit.flower.{name}" for name in ("app", "certificates", "client", "server", "wire"))
names = [module.name for module in pkgutil.walk_packages(fedexit.__path__, "fedexit.")]
for name in names:
    if name not in peers and name not in needs_flower:
        __import__(name)
assert all(getattr(fedexit, name) is not None for name in fedexit.__all__)
sys.argv = ["fedexit", "--help"]
runpy.run_module("fedexit", run_name="__main__")
"""


def test_every_module_and_the_help_load_without_fcntl_and_forkserver():
    """Windows lacks both. Modules that need another engine's packages are left out."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_UNIX], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: fedexit")


def test_no_traces_of_one_machine_or_unfinished_work():
    forbidden = {  # the patterns do not match this file
        "machine path": re.compile(r"/(?:root|home|work|tmp|farm|Users)/[A-Za-z]"),
        "recording": re.compile(r"data:aud[i]o/"),
        "pickle": re.compile(r"pickle\.load|torch\.load\("),
        "unfinished": re.compile(r"\b(?:TO[D]O|FIX[M]E|X[X]X)\b"),
    }
    found = []
    for path in project_files():
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth"}, f"{path.name} is a pickle; use safetensors"
        text = "" if path.suffix in BINARY else text_of(path)
        text = re.sub(r'"image/png": "[^"]*"', "", text)  # base64 of a picture can contain any word
        found += [
            f"{path.relative_to(ROOT)}: {kind}: {m.group()}" for kind, p in forbidden.items() for m in p.finditer(text)
        ]
    assert found == []


def test_public_names_can_be_imported():
    for name in fedexit.__all__:
        assert getattr(fedexit, name) is not None


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_readme_names_targets_of_the_makefile():
    offered = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^make ([a-z]+)", offered, re.M))
    named = set(re.findall(r"(?:^    |`)make ([a-z]+)", README, re.M))
    assert {"reproduce", "test"} <= named <= targets
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in script and os.access(ROOT / ".ci" / "run", os.X_OK)


def test_readme_commands_exist(capsys):
    commands = re.findall(r"(?:^    |`)(?:\.venv/bin/)?fedexit ((?:data )?[a-z]+)", README, re.M)
    assert len(commands) >= 3
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            cli.main([*command.split(), "--help"])
        assert stop.value.code == 0, f"README.md: fedexit {command}: {capsys.readouterr().err}"


def test_readme_has_a_row_for_every_floor():
    floors = {path.parent.name for path in (ROOT / "fedexit").glob("*/__init__.py")}
    assert set(re.findall(r"^\| \[fedexit/(\w+)/\]", README, re.M)) == floors


def test_readme_links_resolve():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("https:")]
    assert [link for link in links if not (ROOT / link).exists()] == []


def own_recordings(folder: Path) -> None:
    """Write two low and two high tones of half a second for each of twelve speakers, and their manifest."""
    folder.mkdir()
    rows = []
    for speaker in range(12):
        for take in range(4):
            label, step = (("low", 0.02), ("high", 0.3))[take % 2]
            tone = torch.sin(torch.arange(8000) * step) * (1 + take) / 10
            soundfile.write(folder / f"{speaker}_{take}.wav", tone.numpy(), 16000)
            rows.append((f"{speaker}_{take}.wav", f"speaker{speaker}", label, ""))
    table = pd.DataFrame(rows, columns=["path", "speaker", "label", "transcript"])
    table.to_csv(folder / "manifest.csv", index=False)


def test_readme_example_learns_on_own_recordings_and_predicts_a_file(tmp_path, monkeypatch, capsys):
    own_recordings(tmp_path / "my_recordings")
    monkeypatch.chdir(tmp_path)
    [command] = re.findall(r"^    fedexit (data convert .*)$", README, re.M)
    assert cli.main(command.split()) == 0
    [example] = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(example, names)
    errors = names["result"].table.pivot(index="round", columns="exit", values="value")
    assert [*errors.columns] == [3, 6, 9, 12] and errors.loc[5, [3, 12]].sum() < errors.loc[0, [3, 12]].sum()
    assert {"low", "high"} & {*capsys.readouterr().out.splitlines()[-1].split()}, "it does not end with a prediction"


CHOICE, SPEED, FOUND, SAID, LASTS = (
    [f"<!-- {name}:{end} -->" for end in ("begin", "end")]
    for name in ("recommendation", "speed", "findings", "claims", "minutes")
)
TABLE = [f"<!-- table:{end} -->" for end in ("begin", "end")]
UNWRITTEN = "above\n" + "".join(f"{begin}\nold\n{end}\n" for begin, end in (FOUND, SAID, LASTS, CHOICE, SPEED)) + "end"
UNWRITTEN_TABLE = f"above\n{TABLE[0]}\nold\n{TABLE[1]}\nend"


def test_readme_tables_are_those_of_the_committed_results():
    """A run of the notebooks may change results, but never the README; only `fedexit readme` writes its tables."""
    git = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "results", "nbs_ci.yml"]
    try:
        changed = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    if changed:
        pytest.skip(f"results differ from the committed ones: {changed.split()[1]} ...")
    assert readme.render(README, ROOT) == README, "run: fedexit readme"
    table = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert readme.render_results(table, ROOT) == table, "run: fedexit readme"


def test_every_published_result_is_of_the_present_code():
    """Notebooks, parameters, modules, cells and weights are the present ones; versions of packages may differ."""
    try:
        corpus_checksum("queen")
    except FedexitError as error:
        pytest.skip(f"the corpus is missing: {error}")
    stale = {}
    for notebook in select(load_manifest(ROOT), "default", []):
        state = state_of(notebook, "default", {**notebook.profiles["default"].parameters, "profile": "default"})
        allowed = {NOT_HERE} | {why for why in state.reasons if why.startswith(tuple(VERSIONS))}
        if reasons := set(state.reasons) - allowed:
            stale[notebook.id] = sorted(reasons)
    assert not stale, "run: make reproduce, fedexit publish"


def test_reproduce_only_runs_notebooks():
    """It must not write files that git tracks; `fedexit run` is tested in test_publish.py."""
    rule = re.search(r"^reproduce:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert [line.strip() for line in rule[1].splitlines() if "echo" not in line] == ["@$(PY) -m fedexit run --jobs 2"]
    assert not (ROOT / "results" / "default").exists() and not (ROOT / "results" / "kept").exists()


def test_readme_table(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name in ("01_a", "02_b"):
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("{}")
    profiles = {name: {"minutes": 3, "limit": 9} for name in ("default", "full")}
    entry = {"title": "t", "artifacts": ["tables/x.csv", "figures/y.png", "figures/y.csv"], "profiles": profiles}
    manifest = [{"id": "01_a", "headline": "tables/x.csv", **entry}, {"id": "02_b", **entry}]
    (tmp_path / "nbs_ci.yml").write_text(yaml.safe_dump({"notebooks": manifest}))
    for folder in ("01_a", "full/01_a"):
        done = tmp_path / "results" / folder
        (done / "tables").mkdir(parents=True)
        (done / "provenance.json").write_text("{}")
        (done / "tables" / "x.csv").write_text('says\n"**Two** of 3, clearly."\nthe rest\n')
    tables = tmp_path / "results" / "bench" / "tables"
    tables.mkdir(parents=True)
    head = "engine,kind,processes,quantity,unit,median,ratio,equal_weights"
    quantities = ("round", "startup_and_first_round", "peak_memory")
    rows = [
        f"fedexit,full,1,{name},x,{value},1.0{value},True" for name, value in zip(quantities, (4, 5, 6), strict=True)
    ]
    wrong = [row.replace("fedexit", "other").replace("True", "False") for row in rows]
    (tables / "engine.csv").write_text("\n".join([head, *rows, *wrong]))
    written = readme.render(UNWRITTEN, tmp_path)
    below = written.index(SPEED[0])
    table = readme.render_results(UNWRITTEN_TABLE, tmp_path)
    first, second = table.splitlines()[-4:-2]
    links = "[y](01_a/figures/y.png) | [1](01_a/tables)"
    ended = "`fedexit run 01_a` | about 3 | **Two** of 3, clearly. |"
    assert first == f"| [01_a](../notebooks/01_a.ipynb): t | {links} | {ended}"
    assert second == "| [02_b](../notebooks/02_b.ipynb): t | y | 1 | `fedexit run 02_b` | about 3 |  |"
    assert "full" not in table
    assert written[below:].splitlines()[-3] == "| fedexit | full | 1 | 4 | 1.04 | 1.05 | 6 |"
    assert (
        written.startswith("above\n")
        and written.endswith("\nend")
        and "\nold\n" not in written
        and "other" not in written
    )
    assert readme.render(written, tmp_path) == written
    (done.parents[1] / "01_a" / "tables" / "x.csv").unlink()  # run before the notebook had that table
    assert "`fedexit run 01_a` | about 3 |  |" in readme.render_results(table, tmp_path)


def test_the_readme_command_writes_the_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDEXIT_ROOT", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_a.ipynb").write_text('{"cells": []}')
    entry = {"id": "01_a", "title": "t", "artifacts": [], "profiles": {"default": {"minutes": 1, "limit": 2}}}
    (tmp_path / "nbs_ci.yml").write_text(yaml.safe_dump({"notebooks": [entry]}))
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(UNWRITTEN)
    (tmp_path / "results" / "README.md").write_text(UNWRITTEN_TABLE)
    assert cli.main(["readme"]) == 0
    written = (tmp_path / "results" / "README.md").read_text()
    assert written == readme.render_results(UNWRITTEN_TABLE, tmp_path) != UNWRITTEN_TABLE
    assert (tmp_path / "README.md").read_text() == readme.render(UNWRITTEN, tmp_path) != UNWRITTEN
    assert "has not been run" in (tmp_path / "notebooks" / "01_a.ipynb").read_text()
    (tmp_path / "README.md").write_text("no markers")
    assert cli.main(["readme"]) == 2 and "README.md lacks <!-- findings:begin -->" in capsys.readouterr().err


def test_readme_recommends_the_arm_that_is_best_on_dev(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_a.ipynb").write_text("{}")
    entry = {"id": "01_a", "title": "t", "artifacts": [], "profiles": {"smoke": {"minutes": 1, "limit": 2}}}
    (tmp_path / "nbs_ci.yml").write_text(yaml.safe_dump({"notebooks": [entry]}))

    def recommended():
        written = readme.render(UNWRITTEN, tmp_path)
        return written[written.index(CHOICE[0]) : written.index(CHOICE[1])].splitlines()[1:]

    assert recommended() == ["The published results hold no search for a recipe yet."]
    tables = tmp_path / "results" / "14_local_objectives" / "tables"
    tables.mkdir(parents=True)
    arms = ["voice,last,layerwise,9.1,False", "voice,all,layerwise-all,8.2,True", "keyword,last,layerwise,7.3,True"]
    (tables / "choice.csv").write_text("\n".join(["task,arm,method,error,best", *arms]))
    head = "task,exit,one,other,difference,low,high,seeds,verdict"
    rows = ["voice,3,best on dev,shallow,-5.04,-8.0,-2.0,8,better", "voice,3,all,last,1,1,1,8,worse"]
    rows += ["keyword,3,best on dev,shallow,0.3,-1.2,1.8,8,not resolved"]
    (tables / "verdicts.csv").write_text("\n".join([head, *rows]))
    assert recommended()[-2:] == [
        "| voice | all | `layerwise-all` | shallow | 3 | 8 | -5.0 | -8.0 to -2.0 | better |",
        "| keyword | last | `layerwise` | shallow | 3 | 8 | +0.3 | -1.2 to +1.8 | not resolved |",
    ]
    assert recommended()[0].startswith("Of the arms **last** and **all**, notebook 14 takes")
    mixed = tmp_path / "results" / "11_heterogeneous_depth" / "tables"
    mixed.mkdir(parents=True)
    deep = "*keyword*, at exit 12: **last** makes 2.0 points fewer errors than **everyone at 3, exit 3** (8 seeds)."
    (mixed / "says.csv").write_text(f'says\n"{deep.replace("12", "3")}"\n"{deep}"\n')
    assert recommended()[-1] == f"- {deep}"


def test_readme_table_needs_its_markers(tmp_path):
    with pytest.raises(FedexitError, match=r"README\.md lacks <!-- table:begin -->"):
        readme.render_results(" ".join(reversed(TABLE)), tmp_path)


def test_findings_and_claims_are_sentences_and_numbers_of_tables(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_a.ipynb").write_text("{}")
    entry = {"id": "01_a", "title": "t", "artifacts": [], "profiles": {"default": {"minutes": 1, "limit": 2}}}
    (tmp_path / "nbs_ci.yml").write_text(yaml.safe_dump({"notebooks": [entry]}))
    assert readme.render(UNWRITTEN, tmp_path).count(readme.NOT_YET) == 8
    tables = tmp_path / "results" / "11_heterogeneous_depth" / "tables"
    tables.mkdir(parents=True)
    said = "*voice*, at exit 3: **Eq. (1)** makes 2.5 points {} errors than **{}** (x)."
    rows = [said.format("more", other) for other in ("masked", "everyone at 3")]
    pd.DataFrame({"says": rows}).to_csv(tables / "says.csv", index=False)
    (depth := tmp_path / "results" / "10_depth_by_task" / "tables").mkdir(parents=True)
    chosen = [f"*{task}*: the exit chosen on dev is **{exit}** federated." for task, exit in (("a", 12), ("b", 3))]
    pd.DataFrame({"says": [*chosen, "*a*: another sentence."]}).to_csv(depth / "says.csv", index=False)
    (savings := tmp_path / "results" / "12_cost_of_depth" / "tables").mkdir(parents=True)
    head = "source,of,saved\n"
    shares = [("forward", "base, a", 0.1), ("forward", "base, b", 0.2), ("training", "base, a", 0.5)]
    shares += [("training", "base, b", 0.6), ("forward", "tiny, a", 0.01), ("training", "tiny, a", 0.9)]
    lines = [f'"{kind}, model","{of}",{saved}' for kind, of, saved in shares]
    (savings / "savings.csv").write_text(head + "\n".join(lines))
    written = readme.render(UNWRITTEN, tmp_path).splitlines()
    assert f"1. *What do weak devices lose in a mixed fleet?* {rows[1]}" in written
    claims = [line for line in written if "(Table " in line]
    assert f"| {' '.join(chosen)} |" in claims[0]
    assert "by 0.42 to 2.20 points" in claims[1] and "-9.47 to +2.70 points" in claims[2]  # Table 2 of the paper
    assert "10 to 43 %" in claims[3] and "50 to 60 % of the memory of training and 10 to 20 %" in claims[3]
