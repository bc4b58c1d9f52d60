"""Add a length to MP3 streams: libsndfile otherwise estimates it from the first frame and drops the rest."""

import struct
from collections.abc import Iterator

_BITRATES = {  # kbit/s of layer III, by whether the version is MPEG 1
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
_MEDIUM = 9  # index of a bitrate whose frames have room for a length header


def with_length(stream: bytes) -> bytes:
    """Return an MP3 stream of variable bitrate with a first frame that counts its frames; other streams unchanged."""
    start = _start(stream)
    if stream[start : start + 2] < b"\xff\xe2":
        return stream
    bitrates, count, first = set(), 0, stream[start : start + 4]
    for position, size in _frames(stream, start):
        if position + size <= len(stream):
            bitrates.add(stream[position + 2] >> 4)
            count += 1
    if len(bitrates) < 2:
        return stream
    header = bytes([0xFF, first[1] | 1, _MEDIUM << 4 | first[2] & 0x0C, first[3]])
    sides = (17, 32) if _is_first_version(first) else (9, 17)
    side = sides[first[3] >> 6 != 3]  # mono has less side information
    frame = header + bytes(side) + b"Xing" + struct.pack(">II", 1, count)
    return stream[:start] + frame.ljust(_size(header), b"\0") + stream[start:]


def _start(stream: bytes) -> int:
    """Return the byte at which the frames begin: after an ID3v2 tag, if there is one."""
    if stream[:3] != b"ID3" or len(stream) < 10:
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(stream[6:10], (21, 14, 7, 0), strict=True))


def _frames(stream: bytes, position: int) -> Iterator[tuple[int, int]]:
    """Yield position and size of the frames in a row from `position` on."""
    while size := _size(stream[position : position + 4]):
        yield position, size
        position += size


def _is_first_version(header: bytes) -> bool:
    return header[1] >> 3 & 3 == 3


def _size(header: bytes) -> int:
    """Return the size in bytes of the layer III frame with this 4-byte header; 0 for any other header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0
    hertz = _RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    kilobits = _BITRATES[version == 3][bitrate]
    return (144_000 if version == 3 else 72_000) * kilobits // hertz + (header[2] >> 1 & 1)
