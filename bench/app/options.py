"""What the command line's commands share: their options, and errors turned into exit codes."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from bench.terminal import aside

MethodName = Annotated[str, typer.Option("--method", help="A method; see `bench list`.")]
TaskName = Annotated[str, typer.Option("--task", help="A task; see `bench list`.")]
LIST = "A,B,..."
"""What marks options that take several values in one text: given more than once, their values add up."""
Methods = Annotated[
    str,
    typer.Option("--method", metavar=LIST, help="Methods: a name, a,b,c, or paper, all, variants."),
]
Tasks = Annotated[str, typer.Option("--task", metavar=LIST, help="Tasks: a name, a,b,c, or all.")]
Seeds = Annotated[
    str, typer.Option("--seed", "--seeds", metavar=LIST, help="Training and sampling seeds: one, or 0,1,2.")
]
Rates = Annotated[str, typer.Option("--rates", metavar=LIST, help="The grid, the same for all methods.")]
Side = Annotated[str | None, typer.Option("--side", help="Evaluate on test (default) or val.")]
SuiteName = Annotated[str, typer.Option("--suite", help="emoji (embedded), coco17 or micro.")]
BudgetName = Annotated[
    str | None,
    typer.Option("--budget", help="quick, short, standard, full; equal-time (emoji), paper (coco17)."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Training and sampling seed.")]
Results = Annotated[Path, typer.Option("--results", help="Folder that holds the run folders.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
BaseFolder = Annotated[
    Path | None,
    typer.Option("--base", help="Your own Stable Diffusion: a diffusers folder or org/name[@revision]."),
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Which of the base's weights, e.g. non_ema or fp16.")
]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Prepared data of a suite that brings none.")]
Options = Annotated[list[str] | None, typer.Option("--option", help="A method's option, name=value (JSON).")]
Rate = Annotated[float | None, typer.Option("--learning-rate", min=1e-12, help="Else the suite's.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images sampled at once.")]
Every = Annotated[int, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")]
Shuffled = Annotated[
    bool, typer.Option(help="Sample once more under other items' conditions (grids: first seed).")
]
AllowLeak = Annotated[
    bool, typer.Option(help="Go on although evaluation items were seen in training; marked.")
]
TrainItems = Annotated[
    int | None, typer.Option("--train-items", min=1, help="Train on so many items; else on all.")
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", min=1.0, help="Guidance in sampling; else the suite's."),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Sampling steps; else the suite's.")]
WeightsPath = Annotated[
    Path | None,
    typer.Option("--weights", help="Begin with these: a folder diffusers loads, or a checkpoint."),
]
Trained = Annotated[
    bool, typer.Option("--train/--no-train", help="Train, or evaluate --weights as they are.")
]
ConditionChannels = Annotated[
    str, typer.Option(help="For --weights: same, or repeat (give the one channel three times).")
]
Inverted = Annotated[bool, typer.Option(help="For --weights: give them 1 - x, dark lines on white.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Runs of a grid at once.")]
Ray = Annotated[
    str | None,
    typer.Option("--ray", help="Spread the grid over a Ray cluster: auto, local or its address."),
]
CpusPerRun = Annotated[float, typer.Option(min=0, help="With --ray: cores for each run.")]
GpusPerRun = Annotated[float, typer.Option(min=0, help="With --ray: GPUs for each run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
EXECUTION: dict[str, tuple[Any, Any]] = {
    "precision": (Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; else the suite's.")], None),
    "ema": (
        Annotated[float | None, typer.Option(min=0, max=0.999999, help="Decay of averaged weights.")],
        None,
    ),
    "micro_batch": (
        Annotated[int | None, typer.Option(min=1, help="Images trained at once in a process.")],
        None,
    ),
    "gradient_checkpointing": (
        Annotated[bool, typer.Option(help="Recompute activations: less memory, more time.")],
        False,
    ),
    "compile": (Annotated[bool, typer.Option(help="Compile the transformer blocks.")], False),
    "fused": (Annotated[bool, typer.Option(help="The fused AdamW.")], False),
    "track": (Annotated[str | None, typer.Option(help="jsonl, tensorboard, wandb, mlflow (a,b).")], None),
}
"""How training is carried out: option -> (type, default). Names are those of commands.Request."""
LARGEST = 2**63 - 1  # what torch, numpy and file systems count with
RESULTS = Path("results/runs")
RATES = "3e-4,1e-3,3e-3,1e-2"
PRETRAINING = Path("results/pretraining")


def with_execution(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of EXECUTION; it takes them together as `execution`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        asked = {name: kwargs.pop(name) for name in EXECUTION}
        return command(*args, execution=asked, **kwargs)

    own = inspect.signature(command, eval_str=True)
    kept = [p for name, p in own.parameters.items() if name != "execution"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in EXECUTION.items()
    ]
    wrapper.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in (*kept, *added)}
    return wrapper


class _Command(TyperCommand):
    """A command that refuses what it would have to guess: an option of one value that came twice, numbers
    that are none or that no machine holds. Its help means every character it says.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        lists: list[Any] = [param for param in self.params if param.metavar == LIST]
        for param in lists:
            param.multiple = True  # the parser keeps all, not the last
        came: tuple[dict[str, Any], Any, list[Any]] = self.make_parser(ctx).parse_args(args=given)
        values, _, order = came
        for param in lists:
            param.multiple = False
        ctx.params.update({param.name: ",".join(values[param.name]) for param in lists if param in order})
        for param, times in Counter(order).items():
            if times > 1 and param not in lists and not getattr(param, "multiple", False):
                raise typer.BadParameter("it came more than once; give it once.", ctx=ctx, param=param)
        for param in self.params:
            _check_number(ctx.params.get(param.name or ""), ctx=ctx, param=param)
        return rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.markup import escape

        for param in self.params:
            if getattr(param, "help", None):
                param.help = escape(param.help)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def _check_number(value: object, *, ctx: Any, param: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.", ctx=ctx, param=param)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise typer.BadParameter(f"{value} is too large; allowed: up to {LARGEST}.", ctx=ctx, param=param)


class Shell(typer.Typer):
    """A group of commands, each read strictly."""

    def command(self, name: str | None = None, *, cls: Any = _Command, **settings: Any) -> Any:
        """Add a command, see `typer.Typer.command`."""
        return super().command(name, cls=cls, **settings)


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors for the user into one message and exit code 2, and stops into 130 or 143."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            done = command(*args, **kwargs)
            if "WORLD_SIZE" in os.environ:
                from bench.processes import leave

                leave()
            return done
        except KeyboardInterrupt:
            fail("stopped; finished work is kept, the same command goes on.", 130)
        except Exception as error:
            from bench.checkpoint import Stopped
            from bench.types import BenchError, lacks_memory

            if isinstance(error, Stopped):
                fail("stopped; work is saved, the same command goes on where it was.", error.code)
            if isinstance(error, (BenchError, OSError)):
                fail(f"error: {error}", 2)
            if lacks_memory(error):
                first = (str(error) or "MemoryError").splitlines()[0]
                advice = "Finished work is kept. Lower --batch or --micro-batch, or end other programs."
                fail(f"error: the memory that this needs cannot be had ({first}). {advice}", 2)
            raise

    return wrapper


def fail(message: str, code: int) -> None:
    """Say it on standard error and end with the code."""
    aside(message)
    raise typer.Exit(code) from None
