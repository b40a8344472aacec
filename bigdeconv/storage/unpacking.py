"""Bounds on what a stored chunk unpacks to: a few kilobytes of a damaged or hostile file may claim gigabytes."""

from __future__ import annotations

import struct
import zlib

PIECE_BYTES = 2**20
_BLOSC_VERSION = 2
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_FIELDS = {0: "", 1: "<H", 2: "<I", 3: "<Q"}


def exceeds(data: bytes | memoryview, limit_bytes: int) -> bool:
    """Tell whether a chunk that is packed by Blosc, zstd, gzip or zlib unpacks to more than a limit.

    Blosc and zstd say so in their headers; the others are unpacked, a piece at a time, and counted.  Data of any other kind pass.

    Examples
    --------
    >>> exceeds(zlib.compress(bytes(5000)), 4000), exceeds(zlib.compress(bytes(5000)), 5000), exceeds(b"raw voxels", 0)
    (True, False, False)
    """
    # A checksum of four bytes may follow.
    if (
        len(data) >= 16
        and data[0] == _BLOSC_VERSION
        and struct.unpack_from("<I", data, 12)[0] in (len(data), len(data) - 4)
    ):
        return bool(struct.unpack_from("<I", data, 4)[0] > limit_bytes)
    if data[:4] == _ZSTD:
        return _zstd_bytes(data) > limit_bytes
    is_zlib = data[:1] == b"\x78" and len(data) > 1 and int.from_bytes(data[:2], "big") % 31 == 0
    return (is_zlib or data[:2] == b"\x1f\x8b") and _unpacks_to_more(data, limit_bytes)


def _zstd_bytes(data: bytes | memoryview) -> int:
    """Return the size in the header of a zstd frame, 0 where there is none (RFC 8878, section 3.1.1.1)."""
    if len(data) < 6:
        return 0
    descriptor = data[4]
    flag, is_single = descriptor >> 6, bool(descriptor & 0x20)
    place = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    field = "<B" if flag == 0 and is_single else _ZSTD_FIELDS[flag]
    if not field or len(data) < place + struct.calcsize(field):
        return 0
    size: int = struct.unpack_from(field, data, place)[0]
    return size + (256 if flag == 1 else 0)


def _unpacks_to_more(data: bytes | memoryview, limit_bytes: int) -> bool:
    unpacker = zlib.decompressobj(wbits=47)  # of gzip and zlib
    count = 0
    try:
        while data and not unpacker.eof:
            count += len(unpacker.decompress(data, PIECE_BYTES))
            data = unpacker.unconsumed_tail
            if count > limit_bytes:
                return True
    except zlib.error:  # it is of another kind, or damaged: the codec will tell
        return False
    return False
