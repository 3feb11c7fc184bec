"""The command line's options, generated from the fields of RunConfig, and errors as exit codes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from bench.config import EXECUTION, RunConfig, flag
from bench.terminal import aside
from bench.types import BenchError, unknown

LARGEST = 2**63 - 1  # what torch, numpy and file systems count with
LISTS = ("method", "task", "seed")
_MOST_YAML = 1_000_000
_FIELDS = {known.name: known for known in dataclasses.fields(RunConfig)}
_HINTS = get_type_hints(RunConfig)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, help="Runs of a grid at once.", rich_help_panel=EXECUTION)
]
ConfigText = Annotated[
    str | None,
    typer.Option("--config", help="A YAML file of these options, or their text {...}; flags win over it."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the configuration as YAML and stop.")
]


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

        methods = registry.names("method", self.each["method"])
        tasks = registry.names("task", self.each["task"])
        first, shuffled = self.each["seed"][0], self.config.shuffled
        return [
            dataclasses.replace(
                self.config, method=method, task=task, seed=seed, shuffled=shuffled and seed == first
            )
            for seed, task, method in itertools.product(self.each["seed"], tasks, methods)
        ]

    @property
    def one(self) -> RunConfig:
        """The one configuration asked for; BenchError where lists ask for several."""
        cells = self.cells()
        if len(cells) > 1:
            raise BenchError(
                f"{len(cells)} runs were asked for; this command takes one method, task and seed."
            )
        return cells[0]


def configured(
    *fields: str, without: Sequence[str] = (), **defaults: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of RunConfig's fields; it takes them together, as `asked` (Asked).

    fields: which, all for none. without: left out. defaults: where the command has others.
    """
    chosen = [name for name in fields or tuple(_FIELDS) if name not in without]

    def wrap(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(*args: Any, config: str | None = None, **kwargs: Any) -> Any:
            given = {name: kwargs.pop(name) for name in chosen}
            return command(*args, asked=_asked(given, config, defaults), **kwargs)

        own = inspect.signature(command, eval_str=True)
        kept = [p for name, p in own.parameters.items() if name != "asked"]
        added = [_parameter(_FIELDS[name], defaults) for name in chosen]
        more = [inspect.Parameter("config", _KEYWORD, default=None, annotation=ConfigText)]
        more = more if "method" in chosen else []
        first = [p for p in kept if p.kind is not _KEYWORD]  # arguments, before options of any kind
        order = [*first, *added, *(p for p in kept if p.kind is _KEYWORD), *more]
        wrapper.__signature__ = own.replace(parameters=order)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in order}
        return wrapper

    return wrap


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _parameter(known: dataclasses.Field[Any], defaults: Mapping[str, Any]) -> inspect.Parameter:
    """Return a field as a parameter of a command: None means not given."""
    default = defaults.get(known.name, getattr(RunConfig(), known.name))
    kind, flags = _HINTS[known.name], [flag(known)]
    meta = known.metadata
    if known.name == "seed":
        flags.append("--seeds")
    several = known.name in LISTS or isinstance(default, (tuple, Mapping))
    if kind is bool:
        flags = [f"{flag(known)}/{flag(known).replace('--', '--no-', 1)}"]
    text = meta["help"] + (f" Allowed: {', '.join(meta['allowed'])}." if "allowed" in meta else "")
    text += _default_text(default)
    option = typer.Option(
        *flags,
        help=text,
        rich_help_panel=meta["panel"],
        show_default=False,
        metavar="a,b,..." if several and known.name != "options" else None,
    )
    plain = list[str] if several else (kind if kind is bool else _bare(kind))
    return inspect.Parameter(known.name, _KEYWORD, default=None, annotation=Annotated[plain | None, option])


def _default_text(default: Any) -> str:
    if default is None or default == () or default == {}:
        return ""
    if isinstance(default, bool):
        return f" [default: {'yes' if default else 'no'}]"
    return f" [default: {','.join(map(str, default)) if isinstance(default, tuple) else default}]"


def _bare(kind: Any) -> Any:
    """Return the type of a field without None."""
    return next((t for t in getattr(kind, "__args__", (kind,)) if t is not type(None)), kind)


def _asked(given: Mapping[str, Any], text: str | None, defaults: Mapping[str, Any]) -> Asked:
    """Join what the file says with what the flags say, which win."""
    values = {**defaults, **(read_config(text) if text is not None else {})}
    for name, value in given.items():
        if value is None or value == []:
            continue
        if name == "options":
            values[name] = {**values.get(name, {}), **parse_options(value)}
        else:
            values[name] = split(value) if isinstance(value, list) else value
    each = {name: _several(name, values.pop(name, getattr(RunConfig(), name))) for name in LISTS}
    for name, several in each.items():
        if not several and defaults.get(name) != ():  # where none is the default, the command knows which
            raise BenchError(f"{flag(_FIELDS[name])} names none. Give one, or several: a,b,c.")
    config = make_config(values)
    return Asked(config=config, each=each)


def _several(name: str, value: Any) -> tuple[Any, ...]:
    """Return the distinct values of a field of LISTS, seeds as numbers."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if name == "seed":
        values = tuple(_seed(value) for value in values)
    elif not all(isinstance(value, str) for value in values):
        raise BenchError(f"{flag(_FIELDS[name])} {value!r} is no name. Give one, or several: a,b,c.")
    return tuple(dict.fromkeys(values))


def _seed(value: Any) -> int:
    text = str(value)
    if not text.isdecimal() or isinstance(value, bool):
        raise BenchError(f"--seed {text} is no whole number from 0. Write for example 0,1,2.")
    return int(text)


def split(values: Iterable[str]) -> tuple[str, ...]:
    """Return the names of repeated options, each of which may be a comma list."""
    return tuple(word.strip() for value in values for word in str(value).split(",") if word.strip())


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """Return a method's options from name=value texts; values are JSON, or else plain text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark:
            raise BenchError(f"--option '{pair}' is not name=value. Write for example prior=free.")
        if name in options:
            raise BenchError(f"--option {name} came more than once; give it once.")
        try:
            options[name] = json.loads(value)
        except (ValueError, RecursionError):  # also where it is JSON beyond all bounds
            options[name] = value
        _check_finite(name, options[name])
    return options


def _check_finite(name: str, value: Any) -> None:
    """Raise BenchError for numbers of an option that are none, at whatever depth."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BenchError(f"--option {name}: {value} is no finite number. Write one, as in name=0.5.")
    if isinstance(value, (list, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            _check_finite(name, entry)


def read_config(given: str) -> dict[str, Any]:
    """Return what a YAML file, or YAML in braces itself, sets; BenchError for what is no such thing."""
    import yaml

    from bench.content import read_small

    path = "--config" if given.lstrip().startswith("{") else given
    raw = given.encode() if path == "--config" else read_small(given, most_bytes=_MOST_YAML)
    try:
        values = _json(raw) or yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BenchError(f"{path} is no YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(values, dict):
        raise BenchError(f"{path} sets no options. Write lines like 'method: bps', see --print-config.")
    for name in values:
        if name not in _FIELDS:
            raise unknown(f"option in {path}", str(name), _FIELDS)
    return values


def _json(raw: bytes) -> Any:
    """Return what JSON says, None where it is none: YAML would read 1e-05 and escaped signs otherwise."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with these values; BenchError for one of another type."""
    from bench.strict import validated

    for name, value in values.items():
        _check_kind(name, value)
    config: RunConfig = validated(dict(values), RunConfig, "the configuration", remedy="See `bench run -h`.")
    return config


def _check_kind(name: str, value: Any) -> None:
    """Raise BenchError where a count or a yes or no came as another kind, which would be converted.

    Numbers with a fraction may be text: YAML reads 1e-3, which has no point, as such.
    """
    kind = _bare(_HINTS[name])
    if value is None or kind not in (int, float, bool):
        return
    if isinstance(value, bool) != (kind is bool) or (kind is int and isinstance(value, str)):
        due = "true or false" if kind is bool else "a number"
        raise BenchError(f"{flag(_FIELDS[name])} {value!r}: allowed is {due}, without quotes.")


def to_yaml(asked: Asked) -> str:
    """Return what was asked as YAML that --config reads."""
    import yaml

    lists = {name: values[0] if len(values) == 1 else list(values) for name, values in asked.each.items()}
    return str(yaml.safe_dump({**lists, **asked.config.as_dict()}, sort_keys=False)).rstrip()


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
    """A command that refuses what it would have to guess: an option of one value that came twice, numbers
    that are none or that no machine holds. Its help means every character it says.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        came: tuple[dict[str, Any], Any, list[Any]] = self.make_parser(ctx).parse_args(args=given)
        for param, times in Counter(came[2]).items():
            if times > 1 and not getattr(param, "multiple", False):
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
            from bench.types import BenchError, Stopped, lacks_memory

            if isinstance(error, Stopped):
                fail("stopped; work is saved, the same command goes on where it was.", error.code)
            if isinstance(error, (BenchError, OSError)):
                fail(f"error: {error}", 2)
            if lacks_memory(error):
                first = (str(error) or "MemoryError").splitlines()[0]
                advice = (
                    "Finished work is kept. Lower --sample-batch or --micro-batch, or end other programs."
                )
                fail(f"error: the memory that this needs cannot be had ({first}). {advice}", 2)
            raise

    return wrapper


def fail(message: str, code: int) -> None:
    """Say it on standard error and end with the code."""
    aside(message)
    raise typer.Exit(code) from None
