"""Use the package without its extras, from recordings to an exported model. Run as: python core_use.py FOLDER."""

import pkgutil
import sys
from pathlib import Path

import soundfile
import torch

import fedexit
from fedexit import Client, FedexitError, MultiExitModel, cli, federate, load_backbone, open_corpus
from fedexit.data.text import CHARACTERS, characters
from fedexit.federated.regime import Regime

# they need other engines
PEERS = ("fedexit.bench.pfl_engine", "fedexit.bench.flower_engine", "fedexit.bench.fleet_engine")


def use(folder: Path) -> None:
    """Go from a folder of recordings to a prediction on a file, by labels and by texts."""
    for speaker in ("ann", "ben", "cid", "dan", "eve"):
        (folder / "raw" / speaker).mkdir(parents=True)
        for take, step in enumerate((0.02, 0.3)):
            tone = torch.sin(torch.arange(8000) * step)
            soundfile.write(folder / "raw" / speaker / f"{take}.wav", tone.numpy(), 16000)
    assert cli.main(["data", "convert", str(folder / "raw"), str(folder / "corpus")]) == 0
    corpus = open_corpus(folder / "corpus")
    clips = [(corpus.waveform(clip), number % 2) for number, clip in enumerate(corpus.manifest["id"])]
    model = MultiExitModel(load_backbone("tiny-distilled"), ["low", "high"])
    clients = [Client("ann", clips[:4], depth=3), Client("ben", clips[4:8], depth=12)]
    trained = federate(model, clients, rounds=1, dev=clips[8:], regime=Regime(heads_rounds=1)).model
    trained.save_pretrained(folder / "model")
    file = folder / "raw" / "ann" / "0.wav"
    assert list(MultiExitModel.from_pretrained(folder / "model").predict(file)["clip"]) == [str(file)]
    assert cli.main(["predict", str(folder / "model"), str(file), "--rule", "entropy", "--threshold", "-0.5"]) == 0
    exported = ["--exit", "3", "--to", "torchscript", "--out", str(folder / "exit3.pt")]
    assert cli.main(["export", str(folder / "model"), *exported]) == 0 and (folder / "exit3.pt").stat().st_size > 1e6

    spelling = MultiExitModel(load_backbone("nano"), list(CHARACTERS), head="ctc")
    said = [(clip, characters("no")) for clip, _ in clips[:2]]
    federate(spelling, [Client("ann", said, depth=3)], rounds=1).model.save_pretrained(folder / "speller")
    assert len(MultiExitModel.from_pretrained(folder / "speller").transcribe(file)) == 1


def modules_that_need_an_extra() -> dict[str, str]:
    """Import every module and return the message of those that need an extra."""
    missing = {}
    for module in pkgutil.walk_packages(fedexit.__path__, "fedexit."):
        if module.name not in (*PEERS, "fedexit.__main__"):
            try:
                __import__(module.name)
            except FedexitError as error:
                missing[module.name] = str(error)
    return missing


if __name__ == "__main__":
    use(Path(sys.argv[1]))
    print(*(f"{module}: {message}" for module, message in modules_that_need_an_extra().items()), sep="\n")
