"""`bench base`: what a base is, and one with random weights where the real one is not at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.app.options import AsJson, Shell, Variant, guarded
from bench.terminal import say, to_json

base_app = Shell(help="The frozen base: a Stable Diffusion of yours.", no_args_is_help=True)
Out = Annotated[Path, typer.Argument(help="A new folder.")]
Like = Annotated[str, typer.Option(help="sd15 or sd21.")]
Width = Annotated[int, typer.Option(help="Of the UNet's first level; 320 is the real width.")]
Size = Annotated[int | None, typer.Option(help="Image size in pixels; else the real one's.")]
Dtype = Annotated[str, typer.Option(help="Of the weights on disk: float32, float16, bfloat16.")]


@base_app.command("random")
@guarded
def random_command(
    out: Out,
    like: Like = "sd15",
    width: Width = 320,
    size: Size = None,
    dtype: Dtype = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the weights.")] = 0,
    variant: Variant = None,
) -> None:
    """Write a base with random weights and a Stable Diffusion's topology, as a diffusers folder."""
    from bench.random_base import write_random_base

    write_random_base(out, like=like, width=width, size=size, seed=seed, dtype=dtype, variant=variant)
    say(_shown(out, variant=variant, as_json=False))


@base_app.command("show")
@guarded
def show_command(
    place: Annotated[str, typer.Argument(help="A diffusers folder, or org/name[@revision].")],
    variant: Variant = None,
    as_json: AsJson = False,
) -> None:
    """Say what a base is: prediction, sizes, parameters, and the SHA-256 of every part."""
    say(_shown(Path(place), variant=variant, as_json=as_json))


def _shown(place: Path, *, variant: str | None, as_json: bool) -> str:
    from bench.arguments import outline
    from bench.snapshot import describe, find_snapshot

    found = describe(find_snapshot(place, variant=variant))
    return to_json(found) if as_json else outline(found)
