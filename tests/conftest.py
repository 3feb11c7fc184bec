"""A tiny base with random weights, made once a session: real classes, no mocks, seconds on a CPU."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Files that take a minute or more: begun first, so that no worker ends long after the others.
_LONG = (
    *(("test_fuzz_files",) if "BENCH_FUZZ" in os.environ else ()),
    "test_cli",
    "test_grid",
    "test_ablations",
    "test_processes",
    "test_report_ablations",
    "test_engine",
    "test_export",
    "test_report_compare",
    "test_report_page",
    "test_report_browser",
    "test_coco17",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files by `_LONG`, then as found; tests keep their order within a file."""
    places = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(_LONG)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests' cache apart from the user's; workers side by side share one."""
    own = tmp_path_factory.getbasetemp()
    place = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    os.environ["BPS_BENCH_CACHE"] = str(place / "shared-cache")


@pytest.fixture(scope="session", autouse=True)
def _networks_are_loaded_once() -> Iterator[None]:
    """Runs of one process share what they only read: a judge, and a base of one place and digest."""
    if "bench.running" not in sys.modules:  # nobody here makes runs
        yield
        return
    from bench import running
    from bench.base.snapshot import find_snapshot

    genuine, known = running.load_base, dict[Any, Any]()

    def load_base(place: Path, *, variant: str | None = None, **how: Any) -> Any:
        key = (str(place), variant, find_snapshot(place, variant=variant).digest, *how.items())
        if key not in known:
            known[key] = genuine(place, variant=variant, **how)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "load_base", load_base)
        patch.setattr(running, "load_judge", functools.cache(running.load_judge))
        yield


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder: 4-level UNet of width 32, factor-4 autoencoder, one-layer text encoder."""
    from tests.bases import write_tiny_base

    return write_tiny_base(tmp_path_factory.mktemp("micro") / "base", ["red heart", "grinning face"])


@pytest.fixture(scope="session")
def micro_base(micro_folder: Path) -> Any:
    """The loaded tiny base; treat it as read-only."""
    from bench.base.load import load_base

    return load_base(micro_folder)
