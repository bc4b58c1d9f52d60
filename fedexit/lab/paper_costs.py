"""Estimate what the tables of the paper cost before anything is trained: the dry run of the profile `paper`.

Bytes, multiply-accumulates and memory come from the cost model, for the clients that the real run samples. Hours are
those of a device whose speed is ASSUMED: they are no measurement.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import pandas as pd

from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.tasks import make_task, task_options
from fedexit.data.tasks.contract import Clips, Task
from fedexit.federated.ledger import client_costs
from fedexit.federated.partition import device_of, make_clients
from fedexit.federated.rounds import sample
from fedexit.lab.cells import Measured, start
from fedexit.lab.material import tiers_of
from fedexit.lab.paper import published
from fedexit.lab.paper_profile import EXITS, ROWS, Grids, cells_of_row
from fedexit.lab.paper_sizes import audio_bytes, corpus_of, geometry
from fedexit.lab.setting import HOMOGENEOUS, Cell, Setting
from fedexit.model.costs import clip_macs, memory
from fedexit.model.exits import MultiExitModel
from fedexit.model.features import stored_bytes
from fedexit.support.cache import limit
from fedexit.support.errors import FedexitError

_FLOPS = 2  # operations of a multiply-accumulate
_MOMENTS = 2  # tensors of its size that the checkpoint of a central model keeps per weight
_TABLE_3 = {"KWS": "KWS-12", "ASR": "ASR", "ER": "ER", "SID": "SID"}  # its name of each row
_MIB = 2**20


class Work(NamedTuple):
    """The costs of one model, or the sums over several.

    macs: multiply-accumulates of training, forward and backward.
    evaluation: multiply-accumulates of all evaluations on dev and on test.
    sent: bytes that clients send in all rounds; they receive as many.
    memory: bytes of the client, or the central process, that needs most in training.
    checkpoint: bytes of the largest checkpoint.
    """

    macs: int
    evaluation: int
    sent: int
    memory: int
    checkpoint: int


class Material(NamedTuple):
    """The clips of a row's task.

    task: the task.
    samples: length of each clip after the cut, by id.
    cached: whether the output of the convolutions is stored, so that each clip is convolved once.
    stored: bytes of that store; 0 if it does not fit (`FEDEXIT_CACHE_GB`).
    clients: clips of each client, by the seed that deals them.
    """

    task: Task
    samples: dict[str, int]
    cached: bool
    stored: int
    clients: dict[int, dict[str, Counter[int]]]


@cache
def material_of(cell: Cell, setting: Setting) -> Material:
    """Return the clips of the task of `cell`, from its corpus or its stand-in."""
    corpus, _ = corpus_of(setting.data.corpus)
    seconds = setting.data.max_seconds
    options = {"max_seconds": seconds} if "max_seconds" in task_options(cell.task) else {}
    task = make_task(cell.task, corpus, **options)
    clips = Clips(corpus, task.rows, seconds)
    size = stored_bytes(clips, geometry(setting.model.backbone))
    cached = size <= limit()
    return Material(task, dict(zip(clips.ids, clips.lengths, strict=True)), cached, cached * size, {})


def work_of(cell: Cell, setting: Setting, material: Material) -> Work:
    """Return the costs of training and evaluating the model of `cell`, without training it."""
    model = start(cell, setting, material.task, geometry(setting.model.backbone))
    weights = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    evaluation = _evaluation(cell, setting, material, model)
    if cell.federated:
        macs, sent, largest = _federation(cell, setting, material, model)
        return Work(macs, evaluation, sent, largest, weights)
    recipe, lengths = setting.study.central, _lengths(material, "train")
    macs = recipe.epochs * _training(lengths, material, model, cell.depth)
    held = memory(model, max(lengths), recipe.batch_size, cell.depth, cached=material.cached)
    return Work(macs, evaluation, 0, held.training, (1 + _MOMENTS) * weights)


def _federation(cell: Cell, setting: Setting, material: Material, model: MultiExitModel) -> tuple[int, int, int]:
    """Return multiply-accumulates, bytes sent and the largest memory of a client, for the clients that are sampled."""
    plan, tiers = setting.federation, tiers_of(material.task, setting, cell.seed)
    depths = dict.fromkeys(tiers, cell.depth) if cell.method == HOMOGENEOUS else tiers
    clients, drawn = _clients(material, setting, cell.seed), Counter[str]()
    for number in range(1, plan.rounds + 1):
        drawn.update(sample(list(clients), plan.fraction, cell.seed, number))  # type: ignore[arg-type]
    macs = sent = largest = 0
    for depth in set(depths.values()):
        lengths, batches = Counter[int](), dict[int, int]()  # the longest clip by size of the batch
        own = {name: drawn[name] for name in clients if drawn[name] and depths[device_of(name)] == depth}
        for name, times in own.items():
            lengths.update({length: times * count for length, count in clients[name].items()})
            size = min(plan.training.batch_size, clients[name].total())
            batches[size] = max(*clients[name], batches.get(size, 0))
        for size, longest in batches.items():
            length = model.backbone.frame_lengths(longest) if material.cached else longest
            costs = client_costs(model, depth, [length] * size, plan.training, material.cached)
            largest = max(largest, costs["memory_training"])
        sent += sum(own.values()) * (costs["bytes"] if own else 0)
        macs += plan.training.epochs * _training(lengths, material, model, depth)
    return macs, sent, largest


def _clients(material: Material, setting: Setting, seed: int) -> dict[str, Counter[int]]:
    """Return the lengths of the clips of each client, in the order of the federation's clients."""
    plan = setting.federation
    dealt = seed if plan.partition != "group" else 0
    if dealt not in material.clients:
        depths = tiers_of(material.task, setting, seed)
        made = make_clients(material.task, depths, plan.partition, setting.data.min_clips, seed=seed, alpha=plan.alpha)
        material.clients[dealt] = {
            client.name: Counter(material.samples[clip] for clip in client.data.ids)  # type: ignore[attr-defined]
            for client in made
        }
    return material.clients[dealt]


def _training(lengths: Counter[int], material: Material, model: MultiExitModel, depth: int) -> int:
    """Return the multiply-accumulates of one pass of training over clips, whose `lengths` are counted."""
    total = 0
    for length, count in lengths.items():
        clip = clip_macs(model.backbone, length, depth, model.head_at(depth))
        total += count * (clip.trained + clip.backward + (0 if material.cached else clip.frozen))
    return total


def _evaluation(cell: Cell, setting: Setting, material: Material, model: MultiExitModel) -> int:
    """Return the multiply-accumulates of all exits on dev during training, and on dev and test after it."""
    rounds, often = setting.federation.rounds, setting.federation.evaluations
    if not cell.federated:
        rounds, often = setting.study.central.epochs, setting.study.evaluations
    due = {number for number in range(rounds + 1) if number % max(1, rounds // often) == 0 or number == rounds}
    heads, macs = [model.head_at(exit) for exit in model.exits], {"dev": 0, "test": 0}
    for split in macs:
        for length, count in _lengths(material, split).items():
            clip = clip_macs(model.backbone, length, max(model.exits), *heads)
            macs[split] += count * (clip.trained + (0 if material.cached else clip.frozen))
    share = min(1.0, setting.study.dev_clips / _lengths(material, "dev").total())
    return round((len(due) + 1) * share * macs["dev"]) + macs["test"]


def _lengths(material: Material, split: str) -> Counter[int]:
    return Counter(material.samples[clip] for clip in material.task.rows.query("split == @split")["id"])


def costs(grids: Grids, tables: Sequence[int], tflops: float) -> pd.DataFrame:
    """Return the costs of the rows of Tables 1 and 2, then the sum of each table, and of both without what they share.

    Args:
        grids: from `paper_profile.grids_of`.
        tables: 1, 2 or both.
        tflops: speed that the device is assumed to sustain, in 10^12 floating-point operations per second.

    Returns:
        Columns `table, row, models, GPU hours, sent GB, received GB, memory GB, disk GB`. `memory` is that of the
        client or central process that needs most. `disk` is the audio, the stored features and the largest checkpoint.

    Raises:
        FedexitError: `tflops` is not above 0; a corpus that has no published size is missing.
    """
    if not 0 < tflops < float("inf"):
        raise FedexitError(f"the assumed speed is {tflops} TFLOP/s; give a number above 0, such as 5")
    works: dict[str, dict[Cell, Work]] = {}
    disk: dict[str, dict[str, int]] = {}
    for name, (cells, setting) in grids.items():
        material = material_of(cells[0], setting)
        works[name] = _works(cells, setting, material)
        disk[name] = {setting.data.corpus: audio_bytes(setting.data.corpus), name: material.stored}
    rows, seeds = [], sorted({cell.seed for cells, _ in grids.values() for cell in cells})
    for table in tables:
        wanted = {name: set(cells_of_row(ROWS[name], table, seeds)) for name in grids}
        own = {name: [works[name][cell] for cell in wanted[name]] for name in grids}
        rows += [_sum(f"Table {table}", name, own[name], [disk[name]], tflops) for name in grids]
        together = [work for each in own.values() for work in each]
        rows.append(_sum(f"Table {table}", "all", together, disk.values(), tflops))
    if len(tables) > 1:
        every = [work for each in works.values() for work in each.values()]
        rows.append(_sum("both", "all", every, disk.values(), tflops))
    return pd.DataFrame(rows)


def _works(cells: Sequence[Cell], setting: Setting, material: Material) -> dict[Cell, Work]:
    """Return the work of each model; those that differ only in what costs nothing are computed once."""
    known: dict[tuple, Work] = {}
    for cell in cells:
        kind = (cell.federated, cell.depth, cell.seed if cell.federated else 0)  # methods of mixed depths cost the same
        known[kind] = known.get(kind) or work_of(cell, setting, material)
    return {cell: known[cell.federated, cell.depth, cell.seed if cell.federated else 0] for cell in cells}


def _sum(table: str, row: str, works: Sequence[Work], disk: Iterable[Mapping[str, int]], tflops: float) -> dict:
    macs, sent = sum(work.macs + work.evaluation for work in works), sum(work.sent for work in works)
    files = {name: size for each in disk for name, size in each.items()}  # a corpus of several rows counts once
    return {
        "table": table,
        "row": row,
        "models": len(works),
        "GPU hours": _FLOPS * macs / (tflops * 1e12) / 3600,
        "sent GB": sent / 1e9,
        "received GB": sent / 1e9,
        "memory GB": max(work.memory for work in works) / 1e9,
        "disk GB": (sum(files.values()) + max(work.checkpoint for work in works)) / 1e9,
    }


def beside_ledger(found: Mapping[str, Measured], grids: Grids) -> pd.DataFrame:
    """Return the planned costs of each federation beside those of its ledger.

    Returns:
        Columns `row, method, depth, seed, sent, sent_planned, macs, macs_planned, memory, memory_planned`, in bytes and
        multiply-accumulates of training. Manifests round seconds to 1 ms, so `macs` may differ by a frame per clip.
    """
    rows = []
    for name, (cells, setting) in grids.items():
        works = _works(cells, setting, material_of(cells[0], setting))
        ledgers = found[name].ledger
        for cell in (cell for cell in cells if cell.federated):
            own = ledgers.query("method == @cell.method and seed == @cell.seed")
            if cell.depth:
                own = own.query("depth == @cell.depth")
            macs, plan = own["macs_forward"].sum() + own["macs_backward"].sum(), works[cell]
            pairs = own["bytes"].sum(), plan.sent, macs, plan.macs, own["memory_training"].max(), plan.memory
            rows.append((name, cell.method, cell.depth, cell.seed, *map(int, pairs)))
    kinds = [f"{kind}{end}" for kind in ("sent", "macs", "memory") for end in ("", "_planned")]
    return pd.DataFrame(rows, columns=["row", "method", "depth", "seed", *kinds])


def memory_beside_paper(grids: Grids) -> pd.DataFrame:
    """Return the memory of a client by task and exit beside Table 3 of the paper, in MiB.

    Returns:
        Columns `task, depth, paper, forward, training, batch, seconds`. `forward` and `training` are the peaks of one
        batch of the longest clips by the memory model. The paper states neither its batches nor what it measured.
    """
    rows = []
    for task, name in _TABLE_3.items():
        if name in grids:
            cells, setting = grids[name]
            material, batch = material_of(cells[0], setting), setting.federation.training.batch_size
            backbone, longest = geometry(setting.model.backbone), max(material.samples.values())
            model = MultiExitModel(backbone, material.task.labels, EXITS, head=setting.model.head or material.task.head)
            for depth in EXITS:
                held = memory(model, longest, batch, depth)
                rows.append((task, depth, held.forward / _MIB, held.training / _MIB, batch, longest / SAMPLE_RATE))
    ours = pd.DataFrame(rows, columns=["task", "depth", "forward", "training", "batch", "seconds"])
    theirs = published(3).rename(columns={"memory_mb": "paper"})
    return theirs.merge(ours, on=["task", "depth"])


def dry_run(grids: Grids, tables: Sequence[int], tflops: float) -> str:
    """Return the costs of the tables as a text, with what they assume. Nothing is trained. Raises as `costs` does."""
    found, third = costs(grids, tables, tflops), memory_beside_paper(grids)
    backbone = next(setting.model.backbone for _, setting in grids.values())
    seeds = len({cell.seed for cells, _ in grids.values() for cell in cells})
    lines = [
        f"Costs of the paper's tables with {backbone} and {seeds} seed(s), from the cost model: nothing was trained.",
        f"GPU hours ASSUME a device that sustains {tflops:g} TFLOP/s (--tflops). They are no measurement.",
        "",
        found.to_string(index=False, float_format="{:,.2f}".format),
        "",
        "Table 3, memory of one client in MiB: `paper` as published, `forward` and `training` for our largest batch",
        third.to_string(index=False, float_format="{:,.1f}".format),
        "",
    ]
    for name in dict.fromkeys(setting.data.corpus for _, setting in grids.values()):
        missing = corpus_of(name)[1]
        lines.append(f"{name}: " + (f"published size, because the {missing}" if missing else "counted in its manifest"))
    stored = [name for name, (cells, setting) in grids.items() if material_of(cells[0], setting).cached]
    lines.append(
        f"Convolutions are computed once and stored for: {', '.join(stored) or 'no row'}; FEDEXIT_CACHE_GB is "
        f"{limit() / 1e9:g}, and the other rows compute them in every pass."
    )
    return "\n".join(lines)
