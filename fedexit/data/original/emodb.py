"""Read EMO-DB (Burkhardt et al. 2005): `wav/<speaker><sentence><emotion><version>.wav`, for example 03a01Wa.wav."""

from pathlib import Path

from fedexit.data.original.release import Note, bare, files_below, refuse_missing
from fedexit.support.errors import FedexitError
from fedexit.support.files import file_hash

MARKS = ("03a01Wa.*|*/03a01Wa.*|*/*/03a01Wa.*",)
_EMOTIONS = {"W": "anger", "F": "happiness", "N": "neutral", "T": "sadness"}  # initials of the German words
_FEMALE = ("08", "09", "13", "14", "16")
_SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def read(root: Path, parts: list[str], note: Note) -> list[dict[str, str]]:
    """Return the rows of the prepared manifest for the clips `parts`; a file's name states speaker, text and emotion.

    The prepared `emodb4.tar` names folders by emotion (`dataset/Angry`), the release has one folder `wav`; clips are
    found by their names in either. This was checked on a copy of the release that has the names and not the original
    audio, so it is not verified that the audio of the release gives the checksum of `emodb4.tar`.

    Raises FedexitError if a clip is missing, or two different files have its name.
    """
    places: dict[str, list[str]] = {}
    for path in files_below(root, [".wav"]):
        places.setdefault(Path(bare(path)).name, []).append(path)
    missing = [part for part in parts if Path(part).name not in places]
    refuse_missing(missing, len(parts), root)
    return [_row(part, _chosen(root, places[Path(part).name])) for part in parts]


def _row(part: str, source: str) -> dict[str, str]:
    name = Path(part).name
    speaker, sentence, emotion = name[:2], name[2:5], name[5]
    return {
        "source": source,
        "path": f"{part}.flac",
        "speaker": speaker,
        "label": _EMOTIONS[emotion],
        "transcript": _SENTENCES[sentence],
        "sentence": sentence,
        "gender": "f" if speaker in _FEMALE else "m",
    }


def _chosen(root: Path, paths: list[str]) -> str:
    """Return one of several files with the same name: that in a folder `wav`, or any if all are identical."""
    inside = [path for path in paths if Path(path).parent.name == "wav"] or paths
    if len({file_hash(root / path) for path in inside} if len(inside) > 1 else inside) > 1:
        raise FedexitError(
            f"{root}: {inside[0]} and {inside[1]} differ, but have one name; give the folder of one release"
        )
    return inside[0]
