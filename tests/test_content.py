"""Hashes are canonical, files are whole or absent, the cache believes only what it can check."""

from __future__ import annotations

import errno
import math
import os
import resource
import signal
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from bench import content
from bench.content import (
    Cache,
    Lock,
    atomic_path,
    atomic_write,
    check_array,
    digest_arrays,
    digest_json,
    inside,
    read_json,
    read_npz,
    remove_unfinished,
    sha256_bytes,
    sha256_file,
    write_json,
    write_npz,
    written_by_libraries,
)
from bench.training.checkpoint import save_checkpoint
from bench.types import BenchError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_bytes_and_file_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_bytes(b"abc") == ABC == sha256_file(tmp_path / "f")


def test_sha256_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="nothing-here"):
        sha256_file(tmp_path / "nothing-here")


def test_digest_ignores_names_order_layout_and_byte_order() -> None:
    a, b = np.arange(12, dtype="<i4").reshape(3, 4), np.array(["x", "yy"])
    expected = digest_arrays(a=a, b=b)
    assert digest_arrays(b=b, a=np.asfortranarray(a)) == expected
    assert digest_arrays(a=a.astype(">i4"), b=b) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"b": np.zeros((2, 3), np.uint8)},
        {"a": np.zeros((3, 2), np.uint8)},
        {"a": np.zeros((2, 3), np.int8)},
        {"a": np.array([[0, 0, 0], [0, 0, 1]], np.uint8)},
        {"a": np.zeros((2, 3), np.uint8), "b": np.zeros(0)},
    ],
)
def test_digest_sees_name_shape_dtype_value_and_extra_arrays(other: dict[str, np.ndarray]) -> None:
    assert digest_arrays(a=np.zeros((2, 3), np.uint8)) != digest_arrays(**other)


def test_digest_tells_scalar_from_vector_and_refuses_objects() -> None:
    assert digest_arrays(a=np.array(1.0)) != digest_arrays(a=np.array([1.0]))
    with pytest.raises(BenchError, match="objects"):
        digest_arrays(a=np.array([{}], dtype=object))


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4)), st.data())
def test_digest_changes_when_any_one_bit_does(array: np.ndarray, data: st.DataObject) -> None:
    raw = bytearray(array.tobytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = np.frombuffer(bytes(raw), np.float32).reshape(array.shape)
    assert digest_arrays(a=array) != digest_arrays(a=changed)
    assert digest_arrays(a=array) == digest_arrays(a=array.copy())


def test_json_digest_ignores_key_order_but_not_values() -> None:
    assert digest_json({"a": 1, "b": (1, 2)}) == digest_json({"b": [1, 2], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 1.5}) != digest_json({"a": "1"})


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [math.nan]}, {1, 2}, object(), "\ud800"])
def test_json_refuses_what_it_cannot_say_and_writes_nothing(tmp_path: Path, value: object) -> None:
    with pytest.raises(BenchError, match="JSON"):
        write_json(tmp_path / "x.json", value)
    with pytest.raises(BenchError):
        digest_json(value)
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_sorted_with_indent_one_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"b": [1, "ü"], "a": None})
    assert path.read_text("utf-8") == '{\n "a": null,\n "b": [\n  1,\n  "ü"\n ]\n}\n'
    assert read_json(path) == {"a": None, "b": [1, "ü"]}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe{}", b'{"a": 1} tail'])
def test_corrupt_json_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(BenchError, match="x.json"):
        read_json(tmp_path / "x.json")


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot read .*x.json"):
        read_json(tmp_path / "x.json")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    atomic_write(tmp_path / "f", b"old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "f") as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_an_interrupt_leaves_no_litter(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "f"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_what_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(content.os, "fsync", full)
    with pytest.raises(BenchError, match=r"cannot write .*f: No space left.*[Ff]ree"):
        atomic_write(tmp_path / "f", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_an_error_for_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BenchError, match="cannot write"):
        atomic_write(tmp_path / "file" / "below", b"data")


def test_written_files_have_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    atomic_write(tmp_path / "ours", b"data")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_written_for_their_owner_alone_get_the_usual_mode(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        path = tmp_path / "unet" / "model.safetensors"
        with written_by_libraries(tmp_path):
            path.parent.mkdir()
            path.touch(0o600)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert [p.name for p in tmp_path.iterdir()] == ["unet"]
    finally:
        os.umask(before)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let the system refuse files above 100 kB, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_refuses_is_said_though_libraries_write(tmp_path: Path, small_files: None) -> None:
    """With the system's reason, which neither library passes on as its own."""
    large = {"a": np.zeros(50_000)}
    with pytest.raises(BenchError, match=rf"cannot write {tmp_path}: .*File too large"):
        with written_by_libraries(tmp_path):
            save_file(large, tmp_path / "model.safetensors")

    class Part:
        def state_dict(self) -> dict[str, Any]:
            return {"a": torch.zeros(50_000)}

    with pytest.raises(BenchError, match=r"cannot write .*train\.ckpt: File too large"):
        save_checkpoint(tmp_path / "train.ckpt", step=1, part=Part())
    assert not list(tmp_path.glob("*train.ckpt*"))


def leave_half_written(path: Path) -> None:
    """Be killed while a file is being written."""
    child = os.fork()
    if child == 0:
        with atomic_path(path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_killed_processes_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    own = {tmp_path / ".notes.tmp", tmp_path / "deep" / "x.tmp.png"}
    (tmp_path / "deep").mkdir()
    for path in own:
        path.touch()
    for name in ("f", "x.png", "deep/train.ckpt", "deep/.hidden"):
        leave_half_written(tmp_path / name)
    left = {p for p in tmp_path.rglob("*") if p.is_file()} - own
    assert len(left) == 4
    remove_unfinished(tmp_path, seconds=60)
    assert all(p.exists() for p in left)
    remove_unfinished(tmp_path)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == own


def test_the_cache_is_rid_of_old_halves_and_keeps_young_ones(tmp_path: Path) -> None:
    for name in ("old.npz", "young.npz"):
        leave_half_written(tmp_path / "shards" / name)
    (old,) = tmp_path.glob("shards/.old*")
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    Cache(tmp_path).load_or_make({"a": 1}, Maker(1.0))
    (young,) = (tmp_path / "shards").iterdir()
    assert young.name.startswith(".young")


def elsewhere(act: Callable[[], object]) -> int:
    """Return the exit code of what another process does: 2 for an error of ours."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except BenchError:
            code = 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_lock_lets_one_process_in_and_says_who_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    lock = Lock(path, about="the run")
    with lock, lock:
        assert elsewhere(Lock(path, about="the run").__enter__) == 2
        for ask in (Lock(path, about="the run").__enter__, Lock(path, about="the run").refuse_if_held):
            with pytest.raises(BenchError, match=rf"the run is in use by process {os.getpid()} on .*since 2"):
                ask()
    assert not path.exists()
    Lock(path, about="the run").refuse_if_held()
    with lock:
        assert read_json(path)["pid"] == os.getpid()


def test_a_dead_holder_keeps_nothing_nor_do_its_children(tmp_path: Path) -> None:
    """Of a killed process a child lives on; the lock is free, and its halves are gone with it."""
    path, (reads, writes) = tmp_path / "lock", os.pipe()
    holder = os.fork()
    if holder == 0:
        with Lock(path, about="it"), atomic_path(tmp_path / "f"):
            child = os.fork()
            if child == 0:
                signal.pause()
            os.write(writes, child.to_bytes(4, "little"))
            signal.pause()
    orphan = int.from_bytes(os.read(reads, 4), "little")
    try:
        assert len(list(tmp_path.glob(".f.*"))) == 1
        with pytest.raises(BenchError, match=f"process {holder} "):
            Lock(path, about="it", clean=tmp_path).__enter__()
        assert len(list(tmp_path.glob(".f.*"))) == 1, "a living process's file"
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        with Lock(path, about="it", clean=tmp_path):
            assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_who_waits_for_a_lock_gets_it_when_it_is_free(tmp_path: Path) -> None:
    path, said = tmp_path / "lock", []
    first = Lock(path, about="it")
    first.__enter__()

    def wait(who: str) -> None:
        said.append(who)
        if len(said) == 2:
            first.__exit__()

    with Lock(path, about="it", wait=wait):
        assert len(said) == 2 and str(os.getpid()) in said[0]
        assert elsewhere(Lock(path, about="it").__enter__) == 2


def test_a_file_system_without_locks_lets_everybody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(content.fcntl, "flock", unknown)
    with Lock(tmp_path / "lock", about="it"), Lock(tmp_path / "lock", about="it"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compress", [True, False])
def test_npz_gives_the_same_bytes_and_the_same_arrays(tmp_path: Path, compress: bool) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "text": np.array(["ü", "bb"])}
    for name in ("one.npz", "two.npz"):
        write_npz(tmp_path / name, arrays, compress=compress)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    read = read_npz(tmp_path / "one.npz", sha256=sha256_file(tmp_path / "two.npz"))
    assert digest_arrays(**read) == digest_arrays(**arrays)


def test_npz_holds_no_pickle_either_way(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="objects"):
        write_npz(tmp_path / "x.npz", {"a": np.array([{}], dtype=object)})
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(BenchError, match="not a valid"):
        read_npz(tmp_path / "x.npz")


@given(st.data())
def test_any_damage_to_an_npz_is_a_bench_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    write_npz(path, {"a": np.arange(5)}, compress=data.draw(st.booleans()))
    raw = bytearray(path.read_bytes())
    digest = sha256_bytes(bytes(raw))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw[: data.draw(st.integers(1, len(raw)))]))
    with pytest.raises(BenchError, match="not the file"):
        read_npz(path, sha256=digest)
    try:
        read_npz(path)
    except BenchError:
        pass


def npy(descr: object, shape: str, data: bytes = b"") -> bytes:
    """An array's entry with a header of its own."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "entry",
    [
        npy("<f8", "(4000000000,)", bytes(64)),  # 32 GB
        npy("<f8", "(2305843009213693952, 8)", bytes(64)),
        npy("<f8", "(-1,)", bytes(64)),
        npy("<f8", "(7,)", bytes(64)),
        npy("<U0", "(4000000000,)"),
        npy("<f8", "(" * 4000),
        npy("<f8", "-" * 9000 + "1"),
        npy([("a", "<f8")], "(8,)", bytes(64)),
        b"no array",
    ],
)
def test_an_array_that_asks_for_other_than_its_bytes_is_refused(tmp_path: Path, entry: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", entry)
    with pytest.raises(BenchError, match="not a valid"):
        read_npz(tmp_path / "x.npz")


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy("|u1", f"({1 << 26},)", bytes(1 << 26)))
    with pytest.raises(BenchError, match="not a valid"):
        read_npz(tmp_path / "x.npz")


def test_arrays_from_outside_have_the_type_and_shape_that_is_asked_for() -> None:
    array = np.zeros((3, 2), np.uint8)
    check_array(array, "a", dtype=np.uint8, shape=(None, 2))
    for dtype, shape in ((np.int8, (None, 2)), (np.uint8, (None, 3)), (np.uint8, (None,))):
        with pytest.raises(BenchError, match="allowed"):
            check_array(array, "a", dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "/a", "a/b", "a\\b", "a\n", "\0", "\ud800", "a" * 201]
)
def test_no_name_from_outside_leaves_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchError):
        inside(tmp_path, name)
    assert inside(tmp_path, "1F600-fe0f é.png") == tmp_path / "1F600-fe0f é.png"


class Maker:
    """Counts how often it was asked."""

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"x": np.full(3, self.value)}


def test_the_cache_makes_once_per_key_whatever_its_order(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path), Maker(1.0)
    for key in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
        assert cache.load_or_make(key, make)["x"].tolist() == [1.0] * 3
    assert make.calls == 1
    assert Cache(tmp_path).load_or_make({"a": 2, "b": 2}, Maker(2.0))["x"].tolist() == [2.0] * 3


def test_arrays_just_made_are_in_every_respect_those_read_later(tmp_path: Path) -> None:
    grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    frozen = grid.copy()
    frozen.setflags(write=False)
    arrays = {
        "transposed": grid.transpose(2, 0, 1),
        "columns": np.asfortranarray(grid),
        "single": grid[:1].transpose(2, 1, 0),
        "reversed": grid[::-1, :, ::2],
        "scalar": np.array(0.25),
        "number": np.float64(0.5),
        "empty": grid[:, :0],
        "big end": grid.astype(">i2"),
        "words": np.array(["ü", "bb"]),
        "flags": grid > 3,
        "frozen": frozen,
    }
    made, read = (Cache(tmp_path).load_or_make({"a": 1}, lambda: arrays) for _ in range(2))
    assert set(made) == set(read) == set(arrays)
    for name, array in made.items():
        other = read[name]
        assert type(array) is type(other) is np.ndarray, name
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        assert array.strides == other.strides or array.size == 0, name
        assert array.flags.writeable and other.flags.writeable, name
        assert array.tobytes() == other.tobytes() == np.asarray(arrays[name]).tobytes(), name


@pytest.mark.parametrize("damage", ["flip", "truncate", "no note", "bad note", "note of a list"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    cache, make, key = Cache(tmp_path), Maker(1.0), {"a": 1}
    cache.load_or_make(key, make)
    path, note = cache.path(key), cache.path(key).with_suffix(".json")
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    if damage == "flip":
        path.write_bytes(bytes(raw))
    elif damage == "truncate":
        path.write_bytes(bytes(raw[:50]))
    elif damage == "no note":
        note.unlink()
    else:
        note.write_text("{" if damage == "bad note" else "[]")
    for _ in range(2):
        assert cache.load_or_make(key, make)["x"].tolist() == [1.0] * 3
    assert make.calls == 2


def test_an_error_while_making_leaves_no_entry(tmp_path: Path) -> None:
    def fail() -> dict[str, np.ndarray]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Cache(tmp_path).load_or_make({"a": 1}, fail)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPS_BENCH_CACHE", str(tmp_path / "there"))
    assert Cache().folder == tmp_path / "there"
    monkeypatch.delenv("BPS_BENCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache().folder == tmp_path / ".cache" / "bps-bench"
