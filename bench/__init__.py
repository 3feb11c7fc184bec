"""Compare ways of adding an image condition to a text-to-image diffusion model, from Python.

    import bench

    record = bench.run(method="bps", task="sketch", budget="quick", results="runs")
    record.metrics["fd"].value
    bench.load_results("runs")  # a pandas frame: a line for each run, row and metric

The command line does the same: `bench run --method bps --task sketch --budget quick --results runs`.
What is heavy is imported by the functions, so that `import bench` costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from bench.record import RunRecord

__all__ = ["compare", "evaluate", "list_methods", "load_results", "report", "run"]


def __getattr__(name: str) -> Any:
    """Return `__version__`; looking it up takes time that an import need not."""
    if name == "__version__":
        from importlib.metadata import version

        return version("bps-bench")
    raise AttributeError(f"module 'bench' has no attribute '{name}'")


def run(**asked: Any) -> RunRecord:
    """Train, sample, score and record one run; a finished one is read, a begun one goes on.

    asked: fields of `bench.config.RunConfig`, the options of `bench run` with underscores: method, task,
    suite, seed, budget, results and others. Returns the record, which lies in the run's folder below
    `results`, too. BenchError where what is asked for cannot be.
    """
    from bench.config import make_config
    from bench.running import Run
    from bench.suites import resolve

    return Run(resolve(make_config(asked))).all()


def evaluate(weights: str | Path, **asked: Any) -> RunRecord:
    """Sample and score weights from outside (a folder that diffusers loads, or a file), without training."""
    return run(weights=Path(weights), train=False, **asked)


def compare(
    generated: str | Path, reference: str | Path, *, judge: str = "efficientnet-lite0", **more: Any
) -> dict[str, Any]:
    """Compare two folders of images: metrics of the sets, and of pairs of one stem, with 95% intervals.

    judge: the network that reads them. more: `weights`, its file, and `device`. Returns plain values, as
    `bench compare --json` prints them. BenchError for folders that cannot be compared.
    """
    from bench.judges import load_judge
    from bench.scoring import compare as compare_folders

    return compare_folders(
        Path(generated), Path(reference), judges={"features": load_judge(judge, **more)}
    ).as_json()


def report(results: str | Path, out: str | Path | None = None) -> list[Path]:
    """Write tables, figures and a page of a folder's runs; return the files. out: else "report" in it."""
    from bench.reporting import make_report

    return list(make_report(Path(results), Path(out or Path(results) / "report")).files)


def load_results(results: str | Path) -> pd.DataFrame:
    """Return what the runs of a folder, or of the pack beside it, measured.

    A line for each run, row and metric: run, suite, task, method, options, seed, budget, protocol; row
    ("samples", "shuffled", "autoencoder", ...), metric, value, low, high (95%), n, judge, scale, better.
    """
    import json

    import pandas as pd

    from bench.packed import kept_records

    lines = [
        {
            **{name: getattr(record, name) for name in ("suite", "task", "method", "seed", "budget")},
            "run": record.run_id,
            "options": json.dumps(dict(record.options), sort_keys=True),
            "protocol": record.protocol_hash[:12],
            "row": row,
            "metric": metric,
            **vars(value),
        }
        for record in kept_records(Path(results))
        for row, metrics in record.rows.items()
        for metric, value in metrics.items()
    ]
    return pd.DataFrame(lines)


def list_methods() -> dict[str, str]:
    """Return the names of methods and of their variants, those of installed packages too, with titles."""
    from bench import registry

    return {name: row.title or name for name, row in registry.rows("method").items()}
