"""Damage to files, by format: what a broken disk, another program or somebody hostile makes of them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np

Mutation = Callable[[bytes, Random], bytes]
ESCAPES = ("../../../escaped", "..", ".", "/", "/tmp/escaped", "a/../../escaped", "..\\escaped", "\x00", "")
_DEEP = 10_000
# JSON texts that stand in for a value, whatever it was.
WILD = (
    "[" * _DEEP + "]" * _DEEP,
    '{"a":' * _DEEP + "1" + "}" * _DEEP,
    "[" * _DEEP,
    *("1e999", "-1e999", "NaN", "Infinity", "1e308", "-0.0", "0.5", "0", "-1", "1", "255", "256"),
    *(str(2**31), str(2**63), str(2**64), str(2**70), str(-(2**70)), "9" * 400, "9" * 5000),
    *("null", "true", "false", "[]", "{}", "[[]]", "[null]", "[1,2]", '{"a":1}', '{"":{"":[]}}'),
    *('"\\ud800"', '"a\\u0000b"', '"a\\nb"', '"\\u001b[2J"', '"x"', '"nan"', '"1"', f'"{"x" * 100_000}"'),
    *(json.dumps(text) for text in ESCAPES),
)
_MARK = "\x02wild\x02"


def cut_or_flipped(data: bytes, draw: Random) -> bytes:
    """Cut, flip, overwrite, insert, repeat or remove bytes, up to four times."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(found) + 1)
        some = draw.choice((1, 1, 2, 4, 8, 64))
        kind = draw.randrange(6)
        if kind == 0:
            del found[at:]
        elif kind == 1:
            found[at : at + 1] = bytes(b ^ (1 << draw.randrange(8)) for b in found[at : at + 1])
        elif kind == 2:
            found[at : at + some] = draw.choice((b"\x00", b"\xff", draw.randbytes(1))) * some
        elif kind == 3:
            found[at:at] = draw.randbytes(some)
        elif kind == 4:
            found[at:at] = found[at : at + some]
        else:
            del found[at : at + some]
    return bytes(found)


def other_json(data: bytes, draw: Random) -> bytes:
    """Put a wild value in the place of one of the JSON's, rename, repeat or remove a key."""
    value = json.loads(data)
    places = list(_places(value))
    if not places or not draw.randrange(20):
        return draw.choice(WILD).encode()
    holder, key = draw.choice(places)
    kind = draw.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice((*ESCAPES, "\ud800", "x", "a\nb"))] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.insert(key, draw.choice(holder))
    else:
        holder[key] = _MARK
    return json.dumps(value).replace(json.dumps(_MARK), draw.choice(WILD)).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (list or object, place in it) of a JSON value."""
    if isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(entry)


def other_arrays(data: bytes, draw: Random) -> bytes:
    """Give an array of an .npz another type, shape or header, leave it out, or change its text."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(entries))
    kind = draw.randrange(6)
    if kind == 0:
        del entries[name]
    elif kind == 1:
        entries[draw.choice((*ESCAPES[:-1], "x.npy", "a\nb"))] = entries.pop(name)
    elif kind == 2:
        entries[name] = _other_header(entries[name], draw)
    elif kind == 3:
        entries[name] = cut_or_flipped(entries[name], draw)
    else:
        array = np.load(io.BytesIO(entries[name]), allow_pickle=False)
        changed = _other_text(array, draw) if array.ndim == 1 and kind == 4 else _other_array(array, draw)
        buffer = io.BytesIO()
        np.save(buffer, changed)
        entries[name] = buffer.getvalue()
    return _zipped(entries, draw)


def _other_header(entry: bytes, draw: Random) -> bytes:
    descr = draw.choice(("'<f8'", "'|u1'", "'<U0'", "'|O'", "'<M8[s]'", "[('a','<i4')]", "-" * 9000 + "1"))
    shape = draw.choice(("(4000000000,)", "(-1,)", "(0, 9223372036854775807)", "(1e9,)", "(" * 500, "()"))
    order = draw.choice((True, False))
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    start = b"\x93NUMPY" + draw.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00"))
    size = struct.pack("<H" if start[6] == 1 else "<I", draw.choice((len(header), 0xFFFF)))
    return start + size + header + entry[128:]


def _other_array(array: np.ndarray, draw: Random) -> np.ndarray:
    changes: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a.astype(draw.choice((np.float64, np.int64, np.uint8, np.complex64, "U3", "S2", "?"))),
        lambda a: a.view(np.int8) if a.dtype == np.uint8 else a,
        lambda a: a.ravel(),
        lambda a: a[None],
        lambda a: a[..., None],
        lambda a: a[:-1] if a.ndim else a,
        lambda a: a[..., :-1] if a.ndim else a,
        lambda a: a[:0] if a.ndim else a,
        lambda a: np.concatenate([a, a]) if a.ndim else a,
        lambda a: a.T,
        lambda a: a[::-1] if a.ndim else a,
        lambda a: np.array(0, a.dtype),
        lambda a: -a if a.dtype.kind in "if" else a,
        lambda a: a + 7 if a.dtype.kind in "iuf" else a,
        lambda a: a.astype(a.dtype.newbyteorder(">")),
    ]
    return np.asarray(draw.choice(changes)(array))


def _other_text(array: np.ndarray, draw: Random) -> np.ndarray:
    if array.dtype != np.uint8:
        return _other_array(array, draw)
    lines = bytes(array).split(b"\n")
    other = draw.choice((*(e.encode() for e in ESCAPES), b"\xff", b"\n", b"[" * _DEEP, b"x" * 300, lines[0]))
    lines[draw.randrange(len(lines))] = other
    return np.frombuffer(b"\n".join(lines), np.uint8)


def other_entry(data: bytes, draw: Random) -> bytes:
    """Damage one entry of a zip archive whose sums hold again afterwards."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(entries))
    entries[name] = cut_or_flipped(entries[name], draw)
    return _zipped(entries, draw)


def _zipped(entries: dict[str, bytes], draw: Random) -> bytes:
    buffer, packed = io.BytesIO(), draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        for name, entry in entries.items():
            archive.writestr(zipfile.ZipInfo(name), entry, packed)
    return buffer.getvalue()


def other_header(data: bytes, draw: Random) -> bytes:
    """Change the JSON header of safetensors, or the size that it is said to have."""
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = data[8 : 8 + size], data[8 + size :]
    if not draw.randrange(8):
        said = draw.choice((0, 1, size - 1, size + 1, 2**32, 2**63, 2**64 - 1))
        return struct.pack("<Q", said) + header + rest
    changed = other_json(header, draw)
    return struct.pack("<Q", len(changed)) + changed + rest


def other_chunk(data: bytes, draw: Random) -> bytes:
    """Change, insert, drop or repeat a chunk of a PNG, or its sizes; the sums hold again afterwards."""
    chunks = list(_chunks(data))
    at = draw.randrange(len(chunks))
    name, body = chunks[at]
    kind = draw.randrange(6)
    if kind == 0:
        chunks[at] = (name, cut_or_flipped(body, draw))
    elif kind == 1:
        del chunks[at]
    elif kind == 2:
        chunks.insert(at, chunks[draw.randrange(len(chunks))])
    elif kind == 3:
        bomb = zlib.compress(bytes(2_000_000))
        words = {b"tEXt": b"a\0" + b"x" * 2_000_000, b"zTXt": b"a\0\0" + bomb, b"iCCP": b"a\0\0" + bomb}
        more = {b"iTXt": b"a\0\1\0\0\0" + bomb, b"eXIf": b"MM\0*\xff\xff\xff\xff", b"tRNS": b"\0\1"}
        chunks.insert(draw.randrange(1, len(chunks)), draw.choice([*words.items(), *more.items()]))
    else:
        large = struct.pack(">I", draw.choice((0, 1, 65, 10_000, 70_000, 2**31 - 1, 2**32 - 1)))
        start = chunks[0][1]
        depth = draw.choice((b"\x08\x02", b"\x10\x00", b"\x01\x03", b"\x08\x06", b"\x07\x09"))
        place = draw.choice((0, 4))
        sizes = start[:place] + large + start[place + 4 : 8]
        chunks[0] = (b"IHDR", sizes + (start[8:10] if kind == 4 else depth) + start[10:])
    return data[:8] + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        place += 12 + size


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
