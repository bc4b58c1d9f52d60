"""Repair the outer structure of audio files before libsndfile decodes them.

Programs that write to a pipe cannot fill in sizes, so every size in a header is a hint here: a placeholder, a zero or a
wrong size means "to the end of the data". A file counts as cut short in two cases: its sizes agree with each other, are
below 1 GiB (placeholders are larger) and exceed the file; or its last Ogg page is incomplete.
"""

import itertools
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from fedexit.data.mp3 import with_length
from fedexit.support.errors import FedexitError

_PLACEHOLDER = 1 << 30  # bytes; a larger size that exceeds the file comes from a program that wrote to a pipe
_GARBAGE = 4096  # bytes; a shorter rest after consistent sizes is not sound
_TAGS = (b"LIST", b"bext", b"id3 ", b"ID3", b"TAG", b"APETAGEX", b"iXML", b"JUNK", b"cue ", b"smpl")
_W64 = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"  # follows the four letters of a Wave64 chunk's name
_WHOLE_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # marker and header of the first block
_OGG_START = re.compile(rb"OggS\x00[\x02\x06]")  # a page that begins a stream
_XING = rb"(?:Xing|Info)\x00\x00\x00[\x00-\x0f]"  # the length of an MP3, at one of three places in its first frame
_MP3_START = re.compile(rb"\xff[\xe2-\xff](?:.{11}|.{19}|.{34})" + _XING, re.DOTALL)
_SPHERE_COUNT = re.compile(rb"sample_count -i (\d+)")
_AGAIN = "copy or fetch it again"


class _Form(NamedTuple):
    """The layout of a kind of chunked container.

    start: bytes before the first chunk.
    name: bytes of a chunk's name.
    size: `struct` format of a chunk's size.
    own: bytes of the chunk's header that its size counts.
    align: chunks begin at multiples of this many bytes.
    data: name of the chunk that holds the samples.
    outer: position of the container's own size; None if it has none.
    """

    start: int
    name: int
    size: str
    own: int
    align: int
    data: bytes
    outer: int | None


_FORMS = {
    b"RIFF": _Form(12, 4, "<I", 0, 2, b"data", 4),
    b"RIFX": _Form(12, 4, ">I", 0, 2, b"data", 4),
    b"RF64": _Form(12, 4, "<I", 0, 2, b"data", 4),
    b"BW64": _Form(12, 4, "<I", 0, 2, b"data", 4),
    b"FORM": _Form(12, 4, ">I", 0, 2, b"SSND", 4),
    b"caff": _Form(8, 4, ">Q", 0, 1, b"data", None),
    b"riff": _Form(40, 16, "<Q", 24, 8, b"data" + _W64, 16),
}


class _Chunk(NamedTuple):
    """A chunk: its name, and where it, its content and its claimed content begin and end (bytes of the file)."""

    name: bytes
    begin: int
    start: int
    end: int


def recordings(content: bytes, name: str) -> list[bytes]:
    """Return the recordings in an audio file in their order, with corrected sizes.

    An ordinary file is returned unchanged. Chained Ogg streams and joined FLAC, MP3 or WAV files give several
    recordings. Raises FedexitError, naming the file `name`, if it is cut short.
    """
    form = _FORMS.get(content[:4])
    if form and content[:4] == b"FORM" and content[8:12] in (b"8SVX", b"16SV"):
        form = form._replace(data=b"BODY")
    if form and (content[:4] != b"FORM" or content[8:12] in (b"AIFF", b"AIFC", b"8SVX", b"16SV")):
        return _chunked(content, form, name)
    if content[:2] == b"\xf0\x7e" and content[3:4] == b"\x01":
        return [_sample_dump(content, name)]
    if content[:4] in (b".snd", b"dns."):
        return [_au(content, name)]
    if content[:4] == b"OggS":
        return [_ogg(part, name) for part in _split(content, _ogg_starts(content))]
    flac = [match.start() for match in _WHOLE_FLAC.finditer(content)]
    if content[:4] == b"fLaC" or (content[:3] == b"ID3" and flac):
        return _split(content, flac)
    starts = [match.start() for match in _MP3_START.finditer(content)]
    return _split(content, starts) if starts else [with_length(content)]


def promised_frames(recording: bytes, form: str, frames: int) -> int:
    """Return the number of frames that the header of a recording promises; 0 if the header gives none.

    Args:
        recording: its bytes.
        form: libsndfile's name of its format.
        frames: number of frames by libsndfile. It is an estimate for an MP3 without a length header, 2**63 - 1 for a
            stream of unknown length, and the number in the file for a cut SPHERE or AVR file.
    """
    if form == "MP3" and not _MP3_START.search(recording, 0, 1 << 16):
        return 0
    if form == "NIST" and (count := _SPHERE_COUNT.search(recording, 0, 1024)):
        return int(count[1])
    if form == "AVR":
        return struct.unpack_from(">I", recording, 26)[0]
    return frames if frames < 1 << 40 else 0


def _split(content: bytes, starts: list[int]) -> list[bytes]:
    """Cut `content` at all `starts` but the first: what comes before the first belongs to it."""
    cuts = [0, *starts[1:], len(content)]
    return [content[start:end] for start, end in itertools.pairwise(cuts)]


def _cut_short(name: str, claimed: int, held: int) -> FedexitError:
    return FedexitError(f"{name}: cut short, its header promises {claimed} bytes and {held} are there; {_AGAIN}")


# ---- chunks: WAV, RF64, AIFF, CAF, Wave64 ------------------------------------------------------------------------


def _chunks(content: bytes, form: _Form, position: int) -> Iterator[_Chunk]:
    """Yield the chunks from `position` on; the last one may claim more than the file holds."""
    header = form.name + struct.calcsize(form.size)
    while position + header <= len(content):
        (size,) = struct.unpack_from(form.size, content, position + form.name)
        start = position + header
        end = start + max(size - form.own, 0)
        yield _Chunk(content[position : position + form.name], position, start, end)
        position = end + -end % form.align


def _chunked(content: bytes, form: _Form, name: str) -> list[bytes]:
    before = []
    if len(content) >> 32:
        return [content]  # its sizes do not fit into a rebuilt header
    for chunk in _chunks(content, form, form.start):
        if chunk.name == form.data:
            break
        before.append(chunk)
    else:
        return [content]  # no samples at all: libsndfile names the fault
    outer = _outer_end(content, form)
    if content[:4] in (b"RF64", b"BW64"):
        outer, chunk = _long_sizes(content, before, outer, chunk)
    end, rest = _end_of_data(content, form, chunk, outer, name)
    behind = [other for other in _chunks(content, form, end + -end % form.align) if other.end <= len(content)]
    late = [other for other in behind if other.name in (b"fmt ", b"COMM")] if rest == b"" else []
    more = recordings(rest, name) if rest else []
    if not more and not late and end == chunk.end and content[:4] not in (b"RF64", b"BW64"):
        return [content]
    kept = [content[one.begin : one.end + -one.end % form.align] for one in before + late if one.name != b"ds64"]
    return [_rebuilt(content, form, b"".join(kept), content[chunk.start : end]), *more]


def _outer_end(content: bytes, form: _Form) -> int | None:
    """Return where the container claims to end; None if it does not say."""
    if form.outer is None or len(content) < form.start:
        return None
    (size,) = struct.unpack_from(form.size, content, form.outer)
    return size if form.own else size + 8


def _long_sizes(content: bytes, before: list[_Chunk], outer: int | None, chunk: _Chunk) -> tuple[int | None, _Chunk]:
    """Return the end of the container and the data chunk with the 64-bit sizes that the chunk `ds64` gives."""
    for other in before:
        if other.name == b"ds64" and other.start + 16 <= len(content):
            riff, data = struct.unpack_from("<QQ", content, other.start)
            claims = chunk.end - chunk.start
            return riff + 8, chunk._replace(end=chunk.start + data) if claims == 0xFFFFFFFF else chunk
    return outer, chunk


def _end_of_data(content: bytes, form: _Form, chunk: _Chunk, outer: int | None, name: str) -> tuple[int, bytes]:
    """Return where the samples end, and the bytes that follow them if these are another recording."""
    claimed, held = chunk.end - chunk.start, len(content) - chunk.start
    if claimed > held:
        agrees = outer is None or chunk.end <= outer < _PLACEHOLDER
        if claimed < _PLACEHOLDER and agrees:
            raise _cut_short(name, claimed, held)
        return _end_of_unknown(content, form, chunk)
    aligned = chunk.end + -chunk.end % form.align
    places = (aligned, chunk.end)
    again = _header_pattern(content, form).search(content, chunk.start)
    if again and claimed and again.start() in places:
        return chunk.end, content[again.start() :]
    agrees = claimed > 0 and outer in (None, *places)
    explained = any(_filled(content, form, place) for place in places) or content[aligned:].startswith(_TAGS)
    if explained or (agrees and (held - claimed < _GARBAGE or not content[aligned:].strip(b"\0"))):
        return chunk.end, b""
    return _end_of_unknown(content, form, chunk)


def _end_of_unknown(content: bytes, form: _Form, chunk: _Chunk) -> tuple[int, bytes]:
    """Return where samples of unknown size end: at another header, at chunks that fill the rest, or with the file."""
    if again := _header_pattern(content, form).search(content, chunk.start):
        rest = content[again.start() :]
        return again.start(), rest if len(rest) > chunk.start + 4 else b""  # a header alone: the writer's second try
    places = (content.rfind(tag.ljust(4), chunk.start) for tag in _TAGS)
    ends = [place for place in places if place >= 0 and _filled(content, form, place)]
    return min(ends, default=len(content)), b""


def _header_pattern(content: bytes, form: _Form) -> re.Pattern[bytes]:
    """Return a pattern for a second header of the same kind, of a joined file or of a writer that was stopped."""
    parts = [content[: form.start + 4]]
    if form.outer is not None:
        parts = [content[: form.outer], content[form.outer + struct.calcsize(form.size) : form.start + 4]]
    return re.compile((b".{%d}" % struct.calcsize(form.size)).join(map(re.escape, parts)), re.DOTALL)


def _filled(content: bytes, form: _Form, position: int) -> bool:
    """Return whether chunks with readable names fill the file from `position` to its end."""
    end = position
    for chunk in _chunks(content, form, position):
        if not chunk.name[:4].isascii() or not chunk.name[:4].decode().isprintable():
            return False
        end = chunk.end
    return end <= len(content) <= end + form.align - 1


def _rebuilt(content: bytes, form: _Form, chunks: bytes, data: bytes) -> bytes:
    """Return the container with its samples last and its sizes right; RF64 becomes RIFF."""
    magic = b"RIFF" if content[:4] in (b"RF64", b"BW64") else content[:4]
    name = form.data + struct.pack(form.size, len(data) + form.own)
    whole = bytearray(magic + content[4 : form.start] + chunks + name + data + bytes(-len(data) % form.align))
    if form.outer is not None:
        struct.pack_into(form.size, whole, form.outer, len(whole) if form.own else len(whole) - 8)
    return bytes(whole)


def _au(content: bytes, name: str) -> bytes:
    """Return an AU file in which a wrong size is replaced by "unknown": libsndfile then reads to the end."""
    order = ">" if content[:4] == b".snd" else "<"
    if len(content) < 24:
        return content
    start, size = struct.unpack_from(order + "II", content, 4)
    held = len(content) - start
    if held < size < _PLACEHOLDER:
        raise _cut_short(name, size, held)
    if size == held or (size and 0 < held - size < _GARBAGE):
        return content
    return content[:8] + b"\xff\xff\xff\xff" + content[12:]


def _sample_dump(content: bytes, name: str) -> bytes:
    """Return a MIDI sample dump (SDS) if its packets are all there: libsndfile fills up what is missing by silence."""
    header, packet = 21, 127  # bytes; a packet holds 120 bytes of samples, 7 bits in each
    if len(content) >= header:
        frames = content[10] | content[11] << 7 | content[12] << 14
        claimed = header + packet * -(-frames * max(2, -(-content[6] // 7)) // 120)
        if claimed > len(content):
            raise _cut_short(name, claimed, len(content))
    return content


# ---- Ogg ---------------------------------------------------------------------------------------------------------


def _ogg_starts(content: bytes) -> list[int]:
    """Return where each link of a chained Ogg file begins; adjacent first pages belong to one link."""
    starts, end = [], -1
    for match in _OGG_START.finditer(content):
        if match.start() != end:
            starts.append(match.start())
        end = _page_end(content, match.start())
    return starts


def _page_end(content: bytes, start: int) -> int:
    segments = content[start + 26] if start + 26 < len(content) else 0
    table = content[start + 27 : start + 27 + segments]
    return start + 27 + segments + sum(table)


def _ogg(link: bytes, name: str) -> bytes:
    """Return one link of an Ogg file with an end mark: libsndfile needs it, and a stopped recorder leaves none."""
    last = position = 0
    while link[position : position + 4] == b"OggS":
        last, position = position, _page_end(link, position)
        if position > len(link):
            raise FedexitError(f"{name}: cut short, its last Ogg page is not whole; {_AGAIN}")
    if b"OggS" in link[position:]:
        return link  # damaged in its middle
    if link[last + 5] & 4:
        return link[:position]
    page = bytearray(link[last:position])
    page[5] |= 4
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", _ogg_checksum(page))
    return link[:last] + bytes(page)


def _ogg_checksum(page: bytes | bytearray) -> int:
    """Return the CRC of an Ogg page (polynomial 0x04C11DB7, most significant bit first)."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ 0x04C11DB7 if value & 0x80000000 else value << 1
        table.append(value & 0xFFFFFFFF)
    checksum = 0
    for byte in page:
        checksum = (checksum << 8 & 0xFFFFFFFF) ^ table[checksum >> 24 ^ byte]
    return checksum
