"""The command line's options, generated from the fields of RunConfig, and errors as exit codes."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from bench.cli.terminal import aside, console_hooks, say
from bench.config import EXECUTION, RunConfig, flags, make_config, option
from bench.types import BenchError, Stopped, lacks_memory, unknown

_LARGEST = 2**63 - 1  # what torch, numpy and file systems count with
_MOST_YAML = 1_000_000
_FIELDS = {known.name: known for known in fields(RunConfig)}
LISTS = [name for name, known in _FIELDS.items() if known.metadata.get("each")]
_DEFAULTS = RunConfig()
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
_CONFIG = typer.Option(
    "--config", help="A YAML file of these options, a record.json, or text {...}; flags win."
)
_PRINT = typer.Option("--print-config", help="Print the configuration as YAML and stop.")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the runs of a grid go, and how many run at once."""

    jobs: int = option(1, "Runs of a grid at once.", EXECUTION, min=1)
    processes: int = option(1, "Processes that share each run of a grid, one a GPU.", min=1)
    ray: str | None = option(None, "Spread a grid over a Ray cluster: auto, local or its address.")
    cpus_per_run: float = option(1, "With --ray: cores for each run.", min=0)
    gpus_per_run: float = option(0, "With --ray: GPUs for each run.", min=0)

    @contextmanager
    def open(self) -> Iterator[dict[str, Any]]:
        """Give what `bench.grid.run_grid` takes to run there."""
        from bench.child import placed

        placing = placed(self.ray, cpus=self.cpus_per_run, gpus=self.gpus_per_run)
        with console_hooks() as hooks, placing as start:
            here = {"jobs": self.jobs, "processes": self.processes, "start": start}
            yield {"hooks": hooks, "say": aside, **here}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A configuration and the lists that make a grid of it. each: field of LISTS -> values asked for."""

    config: RunConfig
    each: Mapping[str, tuple[Any, ...]]

    def cells(self) -> list[RunConfig]:
        """Return a configuration for each run, seeds outermost: each round is a comparison.

        Shuffled conditions tell what a metric can see, not how good a method is: only the first seed
        is sampled under them.
        """
        from bench import registry

        methods, tasks = (registry.names(kind, self.each[kind]) for kind in ("method", "task"))
        seeds = self.each["seed"]
        return [
            replace(self.config, method=m, task=t, seed=s, shuffled=self.config.shuffled and s == seeds[0])
            for s, t, m in itertools.product(seeds, tasks, methods)
        ]

    @property
    def one(self) -> RunConfig:
        """The one configuration asked for; BenchError where lists ask for several."""
        cells = self.cells()
        if len(cells) > 1:
            raise BenchError(f"{len(cells)} runs were asked for; give one method, task and seed.")
        return cells[0]


def configured(*names: str, without: Sequence[str] = (), **defaults: Any) -> Decorator:
    """Give a command the options of RunConfig's fields; it takes them together, as `asked` (Asked).

    names: which, all for none. without: left out. defaults: where the command has others.
    """
    added = _parameters(RunConfig, [n for n in names or _FIELDS if n not in without], defaults)
    if any(p.name == "method" for p in added):
        added.append(_parameter("config", Annotated[str | None, _CONFIG]))
        added.append(_parameter("print_config", Annotated[bool, _PRINT], default=False))
    return _given(added, "asked", lambda values: _asked(values, defaults))


def taking(kind: Any, name: str) -> Decorator:
    """Give a command the fields of a dataclass as options; it takes what they make as `name`."""

    def made(values: Mapping[str, Any]) -> Any:
        return kind(**{n: split(v) if isinstance(v, list) else v for n, v in values.items()})

    return _given(_parameters(kind, [known.name for known in fields(kind)], {}), name, made)


def _given(
    added: Sequence[inspect.Parameter], taken: str, make: Callable[[dict[str, Any]], Any]
) -> Decorator:
    """Give a command parameters in place of the one that it takes, which is made of their values."""

    def wrap(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            values = {p.name: kwargs.pop(p.name) for p in added}
            told = {name: value for name, value in values.items() if value is not None and value != []}
            return command(*args, **{taken: make(told)}, **kwargs)

        signature = inspect.signature(command, eval_str=True)
        kept = [p for name, p in signature.parameters.items() if name != taken]
        order = sorted([*added, *kept], key=lambda p: p.kind)  # arguments before options of any kind
        made: Any = wrapper
        made.__signature__ = signature.replace(parameters=order)
        made.__annotations__ = {p.name: p.annotation for p in order}
        return wrapper

    return wrap


def _parameter(name: str, of: Any, *, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=of)


_hints = functools.cache(get_type_hints)


def _parameters(kind: Any, names: Sequence[str], defaults: Mapping[str, Any]) -> list[inspect.Parameter]:
    """Return fields of a dataclass as parameters of a command, of which None means not given."""
    hints: dict[str, Any] = _hints(kind)
    plain, panel, made = kind(), None, list[inspect.Parameter]()
    for known in fields(kind):
        meta, default = known.metadata, defaults.get(known.name, getattr(plain, known.name))
        panel, text = meta.get("panel") or panel, meta["help"]
        if known.name not in names:
            continue
        several = meta.get("each") or isinstance(default, (tuple, Mapping))
        of = list[str] if several else hints[known.name]
        shown = flags(known)
        if of in (bool, bool | None) and "flags" not in meta:
            shown = [f"{shown[0]}/{shown[0].replace('--', '--no-', 1)}"]
        if usual := _default(default, shown[0]):
            text += f" [default: {','.join(map(str, usual))}]"
        text = text.replace("[", r"\[")  # which rich would take for its own
        metavar = "a,b,..." if several and not isinstance(default, Mapping) else None
        how: dict[str, Any] = {"metavar": metavar, "min": meta.get("min"), "max": meta.get("max")}
        given = typer.Option(*shown, help=text, rich_help_panel=panel, **how)
        made.append(_parameter(known.name, Annotated[of | None, given]))
    return made


def _default(value: Any, flag: str) -> Sequence[Any]:
    """Return what help shows of a default, nothing where it is to leave the option away."""
    if isinstance(value, bool):
        return [name.lstrip("-") for name in flag.split("/")[not value :][:1]]
    return () if value is None or value == {} else value if isinstance(value, tuple) else [value]


def _asked(given: dict[str, Any], defaults: Mapping[str, Any]) -> Asked:
    """Join what the file says with what the flags say, which win; or print it and end."""
    text, printing = given.pop("config", None), given.pop("print_config", False)
    values = {**defaults, **(read_config(text) if text is not None else {})}
    for name, value in given.items():
        if name == "options":
            values[name] = {**values.get(name, {}), **parse_options(value)}
        elif name in ("seed", "shares"):
            values[name] = [parsed(word) for word in split(value)]
        else:
            values[name] = split(value) if isinstance(value, list) else value
    each = {}
    for name in LISTS:
        value = values.pop(name, getattr(_DEFAULTS, name))
        entries = value if isinstance(value, (list, tuple)) else (value,)
        if not entries and defaults.get(name) != ():  # where none is the default, the command knows which
            raise BenchError(f"{flags(_FIELDS[name])[0]} names none. Give one, or several: a,b,c.")
        each[name] = tuple(dict.fromkeys(getattr(make_config({name: entry}), name) for entry in entries))
    asked = Asked(config=make_config(values), each=each)
    if printing:
        say(to_yaml(asked))
        raise typer.Exit
    return asked


def split(values: Iterable[str]) -> tuple[str, ...]:
    """Return the names of repeated options, each of which may be a comma list."""
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())


def parsed(word: str) -> Any:
    """Return a word as the JSON value it is, else as it came, for who checks it to refuse."""
    try:
        return json.loads(word)
    except (ValueError, RecursionError):  # also where it is JSON beyond all bounds
        return word


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """Return a method's options from name=value texts; values are JSON, or else plain text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark:
            raise BenchError(f"--option '{pair}' is not name=value. Write for example prior=free.")
        if name in options:
            raise BenchError(f"--option {name} came more than once; give it once.")
        options[name] = parsed(value)
    return options


def read_config(given: str) -> dict[str, Any]:
    """Return what a YAML file, or YAML in braces itself, sets; BenchError for what is no such thing."""
    import yaml

    from bench.content import read_small

    path = "--config" if given.lstrip().startswith("{") else given
    raw = given.encode() if path == "--config" else read_small(given, most_bytes=_MOST_YAML)
    try:
        values = parsed(raw.decode())  # JSON, of which YAML reads escaped halves of characters otherwise
        if not isinstance(values, dict):
            values = yaml.load(raw, _with_numbers(yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BenchError(f"{path} is no YAML: {str(error).splitlines()[0]}.") from error
    if isinstance(values, dict) and "run_id" in values:
        values = values.get("config") or None  # what a record says was asked; older ones do not
    if not isinstance(values, dict):
        raise BenchError(f"{path} sets no options. Write lines like 'method: bps', see --print-config.")
    for name in (name for name in values if name not in _FIELDS):
        raise unknown(f"option in {path}", str(name), _FIELDS)
    return values


def to_yaml(asked: Asked) -> str:
    """Return what was asked as YAML that --config reads."""
    import yaml

    lists = {name: values[0] if len(values) == 1 else list(values) for name, values in asked.each.items()}
    values = {**lists, **asked.config.as_dict()}
    return str(yaml.dump(values, Dumper=_with_numbers(yaml.SafeDumper), sort_keys=False)).rstrip()


def _with_numbers(kind: Any) -> Any:
    """Return a YAML loader or dumper to which 1e-3 is a number, as in YAML 1.2, and not text."""
    made: Any = type(kind.__name__, (kind,), {})
    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    made.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return made


def outline(value: Mapping[str, Any], *, depth: int = 0) -> str:
    """Show nested tables as indented lines."""
    pad, lines = "  " * depth, []
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            nested = [f"{pad}{key}", outline(entry, depth=depth + 1)]
            lines += nested if entry else [f"{pad}{key}: none"]
        else:
            shown = ", ".join(map(str, entry)) if isinstance(entry, (list, tuple)) else entry
            lines.append(f"{pad}{key}: {shown}")
    return "\n".join(lines)


class _Command(TyperCommand):
    """A command that refuses an option of one value twice, and numbers that are none or no machine holds."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        counts: Counter[Any] = Counter(self.make_parser(ctx).parse_args(args=given)[2])
        parameters: list[Any] = self.params
        for param in parameters:
            value = ctx.params.get(param.name)
            if counts[param] > 1 and not getattr(param, "multiple", False):
                raise typer.BadParameter("it came more than once; give it once.", ctx=ctx, param=param)
            if isinstance(value, (int, float)) and not abs(value) <= _LARGEST:
                raise typer.BadParameter(f"{value} is not finite or beyond {_LARGEST}.", ctx=ctx, param=param)
        return rest


class Shell(typer.Typer):
    """A group of commands, each read strictly and guarded."""

    def command(self, name: str | None = None, *, cls: Any = _Command, **settings: Any) -> Any:
        """Add a command, see `typer.Typer.command`."""
        add = super().command(name, cls=cls, **settings)
        return lambda command: add(guarded(command))


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors for the user into one message and exit code 2, and stops into 130 or 143."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            done = command(*args, **kwargs)
            if "WORLD_SIZE" in os.environ:
                from bench.training.engine import leave

                leave()
            return done
        except (Exception, KeyboardInterrupt) as error:
            ending = _ending(error)
            if ending is None:
                raise
            aside(ending[0])
            raise typer.Exit(ending[1]) from None

    return wrapper


def _ending(error: BaseException) -> tuple[str, int] | None:
    """Return what to say of an error, and the exit code; None for a mistake of this program."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, KeyboardInterrupt):
        return "stopped; finished work is kept, the same command goes on.", 130
    if isinstance(error, Stopped):
        return "stopped; work is saved, the same command goes on where it was.", error.code
    if isinstance(error, (BenchError, OSError)):
        return f"error: {error}", 2
    if "WORLD_SIZE" in os.environ:
        from bench.training.engine import PARTNER_ENDED, partner_ended

        if partner_ended(error):
            return f"error: {PARTNER_ENDED} ({first})", 2
    if lacks_memory(error):
        advice = "Finished work is kept. Lower --sample-batch or --micro-batch, or end other programs."
        return f"error: the memory that this needs cannot be had ({first}). {advice}", 2
    return None
