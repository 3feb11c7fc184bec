"""Files: hashes, atomic writing, strict reading, the content-keyed cache, locks between processes.

Nothing is trusted by name or half written. A dataclass that is read from a file derives from `FromFile`; the
types below say what its fields may hold, and `validated` builds it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import re
import secrets
import socket
import stat
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, MaxLen
from pydantic import AfterValidator, ConfigDict, GetPydanticSchema, Strict, StringConstraints, TypeAdapter
from pydantic_core import ValidationError, core_schema
from safetensors import SafetensorError

from bench.types import BenchError, Hooks, raise_of_machine

CACHE_VARIABLE = "BPS_BENCH_CACHE"
MOST_BYTES = 64_000_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{12}\.tmp(\..+)?", re.DOTALL)
DEEPEST = 64
LARGEST = 2**64
LONGEST = 20_000
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*").fullmatch
_MOST_WORD = 200
_MOST_SAID = 600  # characters of what another program says
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_RAW_CONTROL = re.compile(r"[\x7f-\x9f\u2028\u2029]")
_UNREADABLE = re.compile(r"[\x00\ud800-\udfff]")
_TRY_SECONDS = 1.0


# ---- hashes and files


def unwritable(path: str | os.PathLike[str], error: Exception) -> BenchError:
    """Build the error for a path that the system does not let us write."""
    why, remedy = getattr(error, "strerror", None) or error, "Free some disk space or choose another folder."
    return BenchError(f"cannot write {path}: {why}. {remedy}")


@contextlib.contextmanager
def refusing(words: Callable[[str], str], *kinds: type[Exception]) -> Iterator[None]:
    """Turn an error in the block into a BenchError of words made from what it said.

    kinds: of errors, all but BenchErrors where none is named. Those of the machine (no memory) pass.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, kinds) if kinds else isinstance(error, BenchError):
            raise
        raise_of_machine(error)
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise BenchError(words(said[:_MOST_SAID] or type(error).__name__)) from error


def _reading(path: str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
    return refusing(lambda why: f"cannot read {path}: {why}. Check the path and the file.", OSError)


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes; BenchError if it cannot be read.

    A process reads a file once: again only where the system says that it was written to meanwhile.
    """
    with _reading(path):
        known = os.stat(path)
        state = (known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns)
        age = time.time() - max(known.st_mtime, known.st_ctime)
        settled = age >= 2  # else a write may leave the same time
        return (_digest_of if settled else _digest_of.__wrapped__)(os.fspath(path), state)


@functools.lru_cache(maxsize=10_000)
def _digest_of(path: str, state: tuple[int, ...]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_arrays(**arrays: np.ndarray) -> str:
    """Return one SHA-256 over named arrays: names, dtypes, shapes and values.

    The order of the names, the memory layout and the byte order of the machine do not matter.
    Arrays of objects are refused with a BenchError.
    """
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = _plain(name, arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        header = json.dumps([name, array.dtype.str, list(array.shape)])
        hasher.update(len(header).to_bytes(8, "little") + header.encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()


def _plain(name: str, array: Any) -> np.ndarray:
    found = np.asarray(array)
    if found.dtype.hasobject:
        raise BenchError(f"array '{name}' holds Python objects; give numbers or strings.")
    return found


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys; errors as `json_bytes`."""
    return sha256_bytes(json_bytes(value))


def json_bytes(value: Any, *, indent: int | None = None) -> bytes:
    """Return a value as JSON: sorted keys, UTF-8; BenchError for NaN, infinities and values unknown to it."""
    apart = (",", ":") if indent is None else (",", ": ")
    options: Any = {"sort_keys": True, "ensure_ascii": False, "allow_nan": False}
    allowed = "text keys, text, finite numbers, true, false, null, lists and mappings of these"
    refused = TypeError, ValueError, RecursionError
    with refusing(lambda why: f"cannot be written as JSON: {why}. Allowed: {allowed}.", *refused):
        return json.dumps(value, indent=indent, separators=apart, **options).encode()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path that becomes `path` when the block ends well, and vanishes if not.

    The file is flushed to disk before it takes its name, so a reader sees the old file or the
    whole new one. Missing folders are made. An OSError becomes a BenchError naming the path, so
    do nothing in the block but write.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):  # it has its name, or was never there
            temporary.unlink()


def remove_unfinished(folder: Path, *, seconds: float = 0.0) -> None:
    """Delete what killed processes left half written below a folder, not touched for so many seconds.

    Only for who holds the folder's Lock, or with an age at which nobody can still be writing.
    """
    oldest = time.time() - seconds
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError):  # somebody else was first
                if _UNFINISHED.fullmatch(name) and path.lstat().st_mtime <= oldest:
                    path.unlink()


@contextlib.contextmanager
def written_by_libraries(folder: Path) -> Iterator[None]:
    """Let libraries write models below a folder in the block; a disk that refuses is a BenchError.

    The files then have the mode of any file that is written: safetensors makes its own for their owner
    alone.
    """
    try:
        yield
        probe = folder / f".{secrets.token_hex(6)}"
        probe.touch()
        usual = stat.S_IMODE(probe.stat().st_mode)
        probe.unlink()
        for path in folder.rglob("*.safetensors"):
            path.chmod(usual)
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from error


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes to a file all at once; BenchError if the disk or folder refuses."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON value atomically: sorted keys, indent 1, UTF-8, a newline; errors as `json_bytes`."""
    atomic_write(path, json_bytes(value, indent=1) + b"\n")


def read_json(
    path: str | os.PathLike[str],
    *,
    of: Any = None,
    most_bytes: int = MOST_BYTES,
    remedy: str = "Restore it or make it anew.",
    loose: bool = False,
) -> Any:
    """Read a JSON file strictly; BenchError if it is missing, too large, not JSON or of another type.

    of: the type of its value, a dataclass or alias of `bench.content`, None for any JSON. remedy: what
    to do about a bad file. loose: a file of another program, which may hold infinities and line ends.
    """
    raw = read_small(path, most_bytes=most_bytes, remedy=remedy)
    return parse_json(raw, path, of=of, remedy=remedy, loose=loose)


def read_small(path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES, remedy: str = "") -> bytes:
    """Read a file from outside; BenchError if it is missing, too large or not a plain file."""
    with _reading(path):
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # a pipe or device would never end
            raise BenchError(f"{path} is not a file. {remedy}")
        if found.st_size > most_bytes:
            raise BenchError(f"{path} is larger than {most_bytes:,} bytes, which no such file is. {remedy}")
        return Path(path).read_bytes()


def write_npz(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], *, compress: bool = False
) -> None:
    """Write named arrays, of no objects, atomically as a .npz; the same arrays give the same bytes."""
    atomic_write(path, npz_bytes(arrays, compress=compress))


def npz_bytes(arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> bytes:
    """Return the archive that `write_npz` writes."""
    buffer = io.BytesIO()
    save: Any = np.savez_compressed if compress else np.savez
    save(buffer, **{name: _plain(name, array) for name, array in arrays.items()})
    return buffer.getvalue()


def read_npz(path: str | os.PathLike[str], *, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Read a .npz archive without pickle, after checking its SHA-256 where one is given.

    BenchError if the file is missing, differs from the digest, is not such an archive, or asks for
    more memory than what lies in it.
    """
    with _reading(path):
        data = Path(path).read_bytes()
    if sha256 is not None and sha256_bytes(data) != sha256:
        found = f"SHA-256 {sha256_bytes(data)[:16]}..., expected {sha256[:16]}..."
        raise BenchError(f"{path} is not the file its record names ({found}).")
    return npz_arrays(data, path)


def npz_arrays(data: bytes, path: object) -> dict[str, np.ndarray]:
    """Return the arrays of an archive's bytes as `read_npz` does; path: where they came from."""
    with (
        refusing(lambda why: f"{path} is not a valid .npz archive ({why})."),
        zipfile.ZipFile(io.BytesIO(data)) as archive,
    ):
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > max(1 << 24, 100 * len(data)):  # ours hold 13 times
            raise ValueError(f"its {len(data)} bytes claim to hold far more")
        return {e.filename.removesuffix(".npy"): _array(archive.read(e), e.filename) for e in entries}


def _array(data: bytes, name: str) -> np.ndarray:
    """Return the array of an entry whose header asks for exactly the bytes that follow it."""
    stream = io.BytesIO(data)
    try:
        shape, columns, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    except (MemoryError, RecursionError) as error:
        raise ValueError("a header is nested too deep") from error
    if dtype.kind not in "biufcSU" or min(shape, default=0) < 0:
        raise ValueError(f"'{name}' is not an array {shape} of {dtype} of numbers or texts")
    flat = np.frombuffer(data[stream.tell() :], dtype)
    return np.array(flat.reshape(shape, order="F" if columns else "C"))


def check_array(array: np.ndarray, name: str, *, dtype: type, shape: Sequence[int | None]) -> None:
    """Raise BenchError unless an array from outside has a dtype and a shape; None: of any length."""
    wanted = tuple(has if want is None else want for want, has in zip(shape, array.shape, strict=False))
    if array.dtype != dtype or len(array.shape) != len(shape) or array.shape != wanted:
        words = ",".join("N" if want is None else str(want) for want in shape)
        held = f"{list(array.shape)} {array.dtype}"
        raise BenchError(f"{name} is {held}; allowed: [{words}] {np.dtype(dtype).name}.")


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file named from outside in a folder; BenchError for a name that leads out."""
    return folder / check_name(name)


# ---- values from outside


def check_word(text: str) -> str:
    """Return a name that may stand in paths and commands, such as a method's; BenchError otherwise."""
    if len(text) > _MOST_WORD or not _WORD(text):
        allowed = f"1 to {_MOST_WORD} letters, digits, '_', '.', '+' and '-', a letter or digit first"
        raise BenchError(f"{shown(text)} is no name: allowed are {allowed}.")
    return text


def check_name(text: str) -> str:
    """Return an id that may become a file's name: printable, no part of a path; BenchError otherwise."""
    if len(text) <= _MOST_WORD and _WORD(text):  # as most are
        return text
    ends = text.strip() != text or text in ("", ".", "..")
    if ends or len(text) > _MOST_WORD or not text.isprintable() or "/" in text or "\\" in text:
        allowed = f"1 to {_MOST_WORD} printable characters, no '/', no '\\', no space around, not '.' or '..'"
        raise BenchError(f"{shown(text)} is no id: allowed are {allowed}.")
    return text


Text = Annotated[str, Strict(), MaxLen(LONGEST)]
Word = Annotated[str, Strict(), AfterValidator(check_word)]
Name = Annotated[str, Strict(), AfterValidator(check_name)]
Code = Annotated[str, Strict(), StringConstraints(pattern=r"^[0-9a-f]{8,64}$")]
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Ge(0)]
Number = Annotated[float, Strict()]
Amount = Annotated[float, Strict(), Ge(0)]


def holding(kind: Any) -> GetPydanticSchema:
    """Annotate an object that must hold what a TypedDict says, and may hold more; it stays as it came."""

    def schema(_: Any, of: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(_as_it_came, of(kind))

    return GetPydanticSchema(schema)


def _as_it_came(value: Any, check: Any) -> Any:
    check(value)
    return value


class FromFile:
    """What a dataclass derives from that is read from a file: no unknown keys, finite numbers."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)


def shown(value: Any) -> str:
    """Return a value as an error may repeat it: short, in one line."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_json(raw: bytes, where: object, *, remedy: str, of: Any = None, loose: bool = False) -> Any:
    """Parse JSON in UTF-8 of a type; BenchError where it is not, or holds what no file of ours does.

    Refused: a key twice, NaN and infinities, numbers beyond 2**64, values nested deeper than 64, and
    texts with control characters or halves of characters. loose: as other programs write: infinities
    and line ends pass.
    """
    constant, kinds = None if loose else _refuse, (ValueError, RecursionError)
    with refusing(lambda why: f"{where} is not valid JSON ({why}). {remedy}", *kinds):
        text = raw.decode()
        value = json.loads(text, object_pairs_hook=_once, parse_constant=constant)
        plain = "\\" not in text and not _RAW_CONTROL.search(text)  # so is every text in it
        _check(value, loose=loose, plain=plain)
    return value if of is None else validated(value, of, where, remedy=remedy)


def validated(value: Any, kind: Any, where: object, *, remedy: str, strict: bool = False) -> Any:
    """Build a value of a type from parsed JSON; BenchError says where it differs, what came, what may.

    strict: nothing is converted, as from "3" to 3, and every number is finite.
    """
    try:
        if strict:
            return _adapter(kind).validate_json(json.dumps(value, allow_nan=False), strict=True)
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise BenchError(f"{where}: {_first(error)}. {remedy}") from error
    except (ValueError, TypeError) as error:  # a number that is none, or what no JSON holds
        raise BenchError(f"{where}: {error}. {remedy}") from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _first(error: ValidationError) -> str:
    """Return the first thing that pydantic found, as one line of ours."""
    found = error.errors(include_url=False)[0]
    place = ascii(".".join(map(str, found["loc"])))
    place = "it" if place == "''" else place if len(place) <= 100 else f"'...{place[-97:]}"
    if found["type"] in ("missing", "unexpected_keyword_argument", "extra_forbidden"):
        return f"{place} is {'missing' if found['type'] == 'missing' else 'not a key that is known here'}"
    if found["type"] == "value_error":
        return f"{place}: {str(found['ctx']['error']).rstrip('.')}"
    said = found["msg"].replace("Input should be", "must be").replace("a valid dictionary", "an object")
    said = re.sub(r"a dictionary or an instance of \w+", "an object", said)
    said = said.replace("a valid tuple", "a list")
    return f"{place} {said}, got {shown(found['input'])}"


def _check(value: Any, *, loose: bool, plain: bool) -> None:
    """Look for what no file of ours holds, a level of nesting at a time."""
    wrong = _UNREADABLE if loose else _CONTROL
    for depth, level in enumerate(_levels(value)):
        kinds = set(map(type, level))
        if kinds & {int, float} and not loose:
            numbers = [x for x in level if isinstance(x, (int, float))]
            if not -LARGEST < min(numbers) <= max(numbers) < LARGEST:
                raise ValueError("a number is beyond 2**64")
        if str in kinds and not plain:
            for text in level:
                if isinstance(text, str) and wrong.search(text):
                    raise ValueError(f"a text holds characters that cannot be shown: {shown(text)}")
        if depth == DEEPEST and kinds & {list, dict}:
            raise ValueError(f"nested deeper than {DEEPEST}")


def _levels(value: Any) -> Iterator[list[Any]]:
    level = [value]
    while level:
        yield level
        nested = (x for x in level if isinstance(x, (list, dict)))
        level = [y for x in nested for y in (x if isinstance(x, list) else (*x.values(), *x))]


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


# ---- the cache


def write_noted(path: Path, data: bytes, *, key: Mapping[str, Any]) -> None:
    """Write a file, and beside it a note of its SHA-256 and of what it was made from."""
    atomic_write(path, data)
    write_json(path.with_suffix(".json"), {"key": dict(key), "sha256": sha256_bytes(data)})


def promised(path: Path) -> str | None:
    """Return the SHA-256 that the note beside a file tells, None where one of the two is not there."""
    with contextlib.suppress(BenchError, KeyError, TypeError):
        if path.exists():
            return str(read_json(path.with_suffix(".json"), loose=True)["sha256"])  # keys hold captions
    return None


class Cache:
    """Arrays on disk, found by a hash of what they were made from.

    Each entry lies beside a digest of its own bytes; a damaged entry is made again. Folder: as
    given, else the environment variable BPS_BENCH_CACHE, else ~/.cache/bps-bench.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Remember the folder; it is made when the first entry is written."""
        no_home = f"this user has no home directory for the cache. Set {CACHE_VARIABLE} to a folder for it."
        with refusing(lambda _: no_home, RuntimeError):
            own = folder or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "bps-bench"
        self.folder, self._tidy = Path(own), False

    def tidy(self) -> None:
        """Remove, once, what processes that were killed a day ago or earlier left half written."""
        if not self._tidy:
            self._tidy = True
            remove_unfinished(self.folder, seconds=24 * 3600)

    def path(self, key: Mapping[str, Any]) -> Path:
        """Return where the entry of a key lies, whether it exists or not."""
        name = digest_json(dict(key))
        return self.folder / name[:2] / f"{name}.npz"

    def load_or_make(
        self, key: Mapping[str, Any], make: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Return the arrays of a key, calling `make` only if no whole entry is there.

        key: a JSON mapping of everything that decides the arrays. make: returns them by name. Errors of
        `make` pass through and leave no entry; a full disk is a BenchError. Arrays just made are laid
        out as those read (C order, their own memory): other strides give networks other last digits.
        """
        path = self.path(key)
        if (digest := promised(path)) is not None:
            with contextlib.suppress(BenchError):
                return read_npz(path, sha256=digest)
        made = {name: np.array(array, order="C") for name, array in make().items()}
        self.tidy()
        with refusing(lambda why: f"{why} {CACHE_VARIABLE} moves the cache to another folder.", BenchError):
            write_noted(path, npz_bytes(made), key=key)
        return made


# ---- locks


class InUse(BenchError):
    """Another process holds a lock."""


class Lock:
    """Lets one process at a time do what two must not, also on hosts that share the disk.

    Use as a context, also within itself. path: of the lock's file, there while it is held; it says by
    whom. about: what is held, in words. clean: a folder to rid of what killed holders left half
    written. wait: called with who holds it until it is free; without it that is a BenchError. A holder
    that ends, however it ends, holds nothing; children it forks hold nothing of it. Where the file
    system has no locks (as on some clusters) everybody is let in.
    """

    def __init__(
        self,
        path: Path,
        *,
        about: object,
        clean: Path | None = None,
        wait: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self.wait, self._about, self._clean = path, wait, about, clean
        self._file, self._depth = -1, 0

    def __enter__(self) -> Lock:
        """Take it; BenchError where another process holds it, or the folder cannot be written."""
        if self._depth == 0:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                while not self._taken():
                    continue
            except OSError as error:
                raise unwritable(self.path, error) from error
            if self._clean is not None:
                remove_unfinished(self._clean)
        self._depth += 1
        return self

    def __exit__(self, *problem: object) -> None:
        """Give it back, and remove its file."""
        self._depth -= 1
        if self._depth == 0 and self._file in _HELD:
            with contextlib.suppress(OSError):  # a folder that was deleted meanwhile
                self.path.unlink()
            _let_go(self._file)

    def refuse_if_held(self) -> None:
        """Raise BenchError where a process holds it; for who only reads, writes nothing."""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            if not _locked(file.fileno(), fcntl.LOCK_SH):
                raise BenchError(self._holder(file.fileno()))

    def _taken(self) -> bool:
        """Try once; False where it is worth another try."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _HELD.add(file)
        try:
            if not _locked(file, fcntl.LOCK_EX):
                if self.wait is None:
                    raise InUse(self._holder(file))
                self.wait(self._holder(file))
                return False
            taken, there = os.fstat(file), os.stat(self.path)
            if not os.path.samestat(taken, there):  # its last holder removed it meanwhile
                return False
            since = datetime.now(UTC).isoformat(timespec="seconds")
            os.ftruncate(file, 0)
            who = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
            os.pwrite(file, json_bytes(who) + b"\n", 0)
            self._file, file = file, -1
            return True
        except FileNotFoundError:
            return False
        finally:
            if file >= 0:
                _let_go(file)

    def _holder(self, file: int) -> str:
        try:
            who = parse_json(os.pread(file, 1000, 0), self.path, remedy="")
            named = f"process {who['pid']} on {who['host']}, since {who['since']}"
        except (OSError, BenchError, KeyError, TypeError):  # it has only just taken it
            named = "another process"
        return f"{self._about} is in use by {named}. Wait until that ends, or stop it: finished work is kept."


def patient(hooks: Hooks) -> Callable[[str], None]:
    """Return what a Lock's `wait` may be: it says once who holds it, and raises Stopped when asked."""
    told: list[str] = []

    def wait(held: str) -> None:
        if not told:
            told.append(held)
            hooks.say(f"waiting: {held}")
        hooks.check_stop()
        time.sleep(_TRY_SECONDS)

    return wait


_HELD: set[int] = set()
"""Files of the locks that this process holds or tries."""


def _let_go(file: int) -> None:
    _HELD.discard(file)
    os.close(file)


def _forked() -> None:
    """Close the parent's locks in a child, which would otherwise keep them beyond the parent's end."""
    while _HELD:
        _let_go(min(_HELD))


os.register_at_fork(after_in_child=_forked)


def _locked(file: int, how: int) -> bool:
    """Lock an open file if nobody else has; True too where the file system knows no locks."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True
