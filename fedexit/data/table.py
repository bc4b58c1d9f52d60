"""Read CSV tables in any common dialect without guessing, and write one that every reader understands."""

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from fedexit.support.errors import FedexitError
from fedexit.support.files import write_text

SEPARATORS = ",;\t|"
_QUOTING = 'put a text that holds quotes, line ends or separators in double quotes, and write "" for a quote inside'


def read_table(path: Path, known: Sequence[str]) -> pd.DataFrame:
    r"""Read a CSV file as strings; empty fields are "" and a text "None" or "NA" stays text.

    The separator is a comma, a semicolon, a tab or `|`, as the header shows. A byte order mark, any line ends, blanks
    after separators, capitals in the header, blank rows and an index column without a name are accepted.

    Args:
        path: file in UTF-8 (or UTF-16 with its byte order mark).
        known: column names; the header must hold at least two of them.

    Raises:
        FedexitError: the file cannot be read as such a table; the message names the line.
    """
    text = _text(path)
    separator = _separator(path, text, known)
    rows = _rows(path, text, separator)
    header = [name.strip().lower() for name in rows[0][1]]
    padded = any(name != name.strip() for name in rows[0][1][1:])
    while header and not header[-1]:
        header.pop()
    for name in header:
        if name and header.count(name) > 1:
            raise FedexitError(f"{path}: column {name!r} occurs twice in the header; rename or remove one")
    kept = []
    for line, row in rows[1:]:
        if padded:
            row = [field.strip() for field in row]
        while len(row) > len(header) and not row[-1].strip():
            row.pop()
        if not any(field.strip() for field in row):
            continue
        if len(row) != len(header):  # columns are shifted
            raise FedexitError(
                f"{path}: line {line} has {len(row)} field{'s' * (len(row) > 1)} but the header has {len(header)}; "
                f"{_QUOTING}"
            )
        kept.append((line, row))
    _check_quotes(path, header, kept, separator)
    table = pd.DataFrame([row for _, row in kept], columns=range(len(header)), dtype=object).astype(str)
    for position, name in enumerate(header):
        if not name and position and (table[position].str.strip() != "").any():
            raise FedexitError(f"{path}: column {position + 1} has no name but holds text; name it in the header")
    table = table[[position for position, name in enumerate(header) if name]]
    return table.set_axis([name for name in header if name], axis=1)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write `table` of strings as UTF-8 CSV with commas and LF line ends, completely or not at all.

    A carriage return in a text is quoted like a line feed, so it survives reading.

    Raises:
        FedexitError: a text is not valid Unicode.
        OSError: the file cannot be written.
    """
    lines = [",".join(map(_field, row)) for row in [table.columns, *table.itertuples(index=False, name=None)]]
    try:
        write_text(path, "\n".join(lines) + "\n")
    except UnicodeEncodeError as error:
        bad = error.object[max(0, error.start - 20) : error.end + 20]
        raise FedexitError(f"{path}: {bad!a} is not valid Unicode; rename the file or fix the text") from error


def _field(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if re.search(r'[,"\r\n]', text) else text


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FedexitError(f"{path}: not readable as a CSV table ({error.strerror}); check the path") from error
    encoding, name = ("utf-16", "UTF-16") if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "UTF-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FedexitError(
            f"{path}: not readable as a CSV table (line {line} is not {name}); save it as UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise FedexitError(f"{path}: line {line} holds a NUL character; save the file as UTF-8")
    if not text.strip():
        raise FedexitError(f"{path}: not readable as a CSV table (it is empty); write a header and one row per clip")
    first = re.match(r'\s*"?sep=.?"?[\r\n]+', text)  # a hint for Excel
    return text[first.end() :] if first else text.lstrip("\r\n")


def _separator(path: Path, text: str, known: Sequence[str]) -> str:
    """Return the separator by which the header has the most `known` names."""
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    found = {}
    for separator in SEPARATORS:
        names = next(csv.reader([first], delimiter=separator, skipinitialspace=True), [])
        found[separator] = len({name.strip().lower() for name in names} & set(known))
    best = max(SEPARATORS, key=found.__getitem__)
    if found[best] < 2:
        raise FedexitError(
            f"{path}: the first line {first[:80]!r} is no header of a manifest; expected columns such as "
            "path,speaker,label,transcript, separated by commas, semicolons or tabs"
        )
    return best


def _rows(path: Path, text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Return every row with the number of its first line; the header comes first."""
    if re.match(r"[^\r\n]*\r?\n", text):  # lines end in LF or CRLF, so a lone carriage return belongs to a text
        text = re.sub(r"\r(?![\r\n])", "\0", text)
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    blanks = bool(re.search(re.escape(separator) + r' "?\w', first))
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=blanks)
    rows, line = [], 1
    try:
        for row in reader:
            rows.append((line, [field.replace("\0", "\r") for field in row]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise FedexitError(f"{path}: the row that begins in line {line} is not CSV ({error}); {_QUOTING}") from error
    return rows


def _check_quotes(path: Path, header: list[str], rows: list[tuple[int, list[str]]], separator: str) -> None:
    """Refuse a text that holds what looks like further rows: an unmatched quote has swallowed them.

    A line looks like a row if its field `path` has the ending of a row's file, or names a file that is there.
    """
    place = header.index("path") if "path" in header else 0
    endings = {PurePosixPath(row[place]).suffix for _, row in rows} - {""}
    long = ((line, text) for line, row in rows for text in row if "\n" in text or "\r" in text)
    for line, text in long:
        for number, more in enumerate(_lines(text)[1:], 1):
            fields = more.split(separator)
            file = fields[place].strip('" ') if len(fields) > max(1, place) else ""
            if file and (PurePosixPath(file).suffix in endings or os.path.isfile(path.parent / file)):
                raise FedexitError(
                    f"{path}: the text that begins in line {line} holds {more[:60]!r}, which looks like a row "
                    f"({number} below); close the quote in line {line}, or remove it"
                )


def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\r|\n", text)
