"""Makes `emoji-sd`: draws the collection, trains autoencoder, UNet and text encoder, exports.

Every stage is seeded, resumes from its checkpoint and can be run alone. On two CPU cores the whole
recipe takes hours; `results/pretraining/` holds what it gave.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from bench.base.load import load_base
from bench.content import atomic_path, digest_arrays, write_npz
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.emoji.autoencoder import (
    AutoencoderRecipe,
    psnr,
    reconstruct,
    to_unit,
    train_autoencoder,
)
from bench.emoji.collection import FAMILIES, load_icons, render_all
from bench.emoji.export import export_base
from bench.emoji.pretrain_report import report_pretraining
from bench.emoji.prior import Prior, PriorRecipe, build_scheduler, train_prior
from bench.emoji.tokenizer import encode, train_tokenizer
from bench.judges import load_judge
from bench.types import unknown

if TYPE_CHECKING:
    import torch

VIEWS = 4
VIEW_SEED = 17
HELD_OUT = 300
STAGES = ("collection", "autoencoder", "prior", "export", "report")


def held_out_rows(count: int) -> np.ndarray:
    """Return the rows of the collection that no part is trained on, [HELD_OUT] int64."""
    return np.random.default_rng(5).permutation(count)[:HELD_OUT]


def pretrain(
    families: Path,
    *,
    out: Path,
    work: Path,
    until: str,
    steps: int | None,
    threads: int,
    report: Path,
    hooks: Any,
    start: Path | None = None,
) -> Iterator[str]:
    """Run the recipe up to a stage, yielding a line about each stage when it is done.

    families: the unpacked icon packages; work: checkpoints and drawings; steps: stop the prior
    early at this step (its schedule stays that of the recipe); report: folder for the figures;
    start: an exported base to go on from (its autoencoder stays as it is). Raises BenchError for bad
    input, Stopped when somebody asked to stop.
    """
    import torch

    if until not in STAGES:
        raise unknown("stage", until, STAGES)
    torch.set_num_threads(threads)
    views, captions, styles = _collection(families, work, hooks)
    yield f"collection: {len(views)} drawings, {len(set(styles))} styles"
    if until == "collection":
        return
    vae = _autoencoder(views, work, hooks) if start is None else load_base(start).vae
    facts = autoencoder_facts(vae, views)
    yield f"autoencoder: {facts['psnr_openmoji_val']} dB on OpenMoji val"
    if until == "autoencoder":
        return
    prior, tokenizer, scale, reached = _prior(views, captions, styles, vae, work, hooks, steps, start)
    yield f"prior: step {reached} of {prior.recipe.steps}"
    if until == "prior":
        return
    figures = {
        "autoencoder": facts,
        "prior_steps": reached,
        "collection": collection_facts(views),
        "prior_samples": reached * prior.recipe.batch,
        "started_from": load_base(start).digest if start is not None else None,
    }
    _export(out, prior, tokenizer, vae, scale, figures)
    yield f"exported to {out}"
    if until == "export":
        return
    found = report_pretraining(
        out,
        out=report,
        work=work,
        held_out=held_out_rows(len(views)),
        judge=load_judge("efficientnet-lite0"),
        hooks=hooks,
    )
    yield f"FD ({found['judge']}) on held-out drawings {found['fd_samples']}, shown in {report}"


def _collection(families: Path, work: Path, hooks: Any) -> tuple[np.ndarray, list[str], list[str]]:
    """Draw the collection once: views [M,V,64,64,3] uint8 (memory-mapped), captions, styles."""
    path, meta = work / "views.npy", work / "collection.npz"
    if not (path.exists() and meta.exists()):
        icons = load_icons(families)
        hooks.stage("draw the collection", len(icons))
        kept, drawn = [], []
        for index, images in render_all(icons, views=VIEWS, seed=VIEW_SEED):
            kept.append(icons[index])
            drawn.append(images)
            hooks.tick(index + 1, len(icons))
        views = np.stack(drawn)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, views)
        write_npz(
            meta,
            {
                "images": views[:, 0],
                "captions": np.array([i.caption for i in kept]),
                "styles": np.array([i.style for i in kept]),
            },
        )
    with np.load(meta) as archive:
        captions, styles = archive["captions"], archive["styles"]
    return np.load(path, mmap_mode="r"), [str(c) for c in captions], [str(s) for s in styles]


def collection_facts(views: np.ndarray) -> dict[str, Any]:
    """Say what the collection is: families with versions and licences, size, digest of view 0."""
    return {
        "drawings": len(views),
        "views": int(views.shape[1]),
        "digest": digest_arrays(images=np.ascontiguousarray(views[:, 0])),
        "families": [
            {
                "package": f"@iconify-json/{f.package}",
                "version": f.version,
                "licence": f.licence,
                "author": f.author,
                "style": f.style,
            }
            for f in FAMILIES
        ],
    }


def _autoencoder(views: np.ndarray, work: Path, hooks: Any) -> Any:
    recipe = AutoencoderRecipe()
    keep = np.setdiff1d(np.arange(len(views)), held_out_rows(len(views)))
    data, splits = OpenMoji64(), openmoji64_splits()
    hooks.stage("train the autoencoder", recipe.steps)
    return train_autoencoder(
        np.asarray(views[keep]),
        openmoji=data.images[data.rows(splits.train)],
        recipe=recipe,
        folder=work,
        tick=lambda step, loss: hooks.tick(step + 1, recipe.steps, f"loss {loss:.4f}"),
        stop=hooks.stop,
    )


def autoencoder_facts(vae: Any, views: np.ndarray) -> dict[str, Any]:
    """Measure the reconstruction on icons and OpenMoji val items that were held out, in dB."""
    data, splits = OpenMoji64(), openmoji64_splits()
    icons = np.asarray(views[np.sort(held_out_rows(len(views))), 0])
    own = data.images[data.rows(splits.val)]
    return {
        "psnr_held_out_icons": round(psnr(icons, reconstruct(vae, icons)), 2),
        "psnr_openmoji_val": round(psnr(own, reconstruct(vae, own)), 2),
    }


def _latents(views: np.ndarray, vae: Any, work: Path) -> tuple[torch.Tensor, float]:
    """Encode every view once: latents [M,V,4,16,16] half, scaled, and the scale 1/deviation."""
    import torch

    path, digest = work / "latents.pt", _digest(vae)
    saved = torch.load(path, weights_only=True) if path.exists() else {}
    if saved.get("autoencoder") != digest:
        parts = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, len(views), 32):
                block = np.array(views[start : start + 32])
                encoded = vae.encoder(to_unit(block.reshape(-1, *block.shape[2:])))
                parts.append(encoded.reshape(*block.shape[:2], 4, 16, 16).half())
        latents = torch.cat(parts)
        scale = 1 / float(latents[:, 0].float().std())
        saved = {"latents": latents, "scale": scale, "autoencoder": digest}
        with atomic_path(path) as temporary:
            torch.save(saved, temporary)
    return (saved["latents"].float() * saved["scale"]).half(), float(saved["scale"])


def _digest(module: Any) -> str:
    return digest_arrays(**{n: t.detach().numpy() for n, t in module.state_dict().items()})


def _prior(
    views: np.ndarray,
    captions: list[str],
    styles: list[str],
    vae: Any,
    work: Path,
    hooks: Any,
    steps: int | None,
    start: Path | None,
) -> tuple[Prior, Any, float, int]:
    recipe = PriorRecipe()
    full = [f"{c}, {s} style" for c, s in zip(captions, styles, strict=True)]
    tokenizer = _tokenizer(full, recipe, work) if start is None else load_base(start).tokenizer
    latents, scale = _latents(views, vae, work)
    prior = Prior(recipe, tokenizer)
    if start is not None:
        prior.take(load_base(start))
    hooks.stage("train the prior", steps or recipe.steps)
    reached = train_prior(
        prior,
        latents=latents,
        full=encode(tokenizer, full),
        bare=encode(tokenizer, captions),
        empty=encode(tokenizer, [""])[0],
        held_out=held_out_rows(len(views)),
        folder=work,
        stop_at=steps,
        tick=lambda step, loss: hooks.tick(step + 1, steps or recipe.steps, f"loss {loss:.4f}"),
        stop=hooks.stop,
    )
    return prior, tokenizer, scale, reached


def _tokenizer(captions: list[str], recipe: PriorRecipe, work: Path) -> Any:
    """Learn the tokenizer once: the ids of a resumed training must be those it began with."""
    from transformers import CLIPTokenizer

    folder = work / "tokenizer"
    if not folder.exists():
        made = train_tokenizer(captions, size=recipe.vocabulary, length=recipe.text_length)
        made.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _export(out: Path, prior: Prior, tokenizer: Any, vae: Any, scale: float, figures: dict[str, Any]) -> None:
    vae.register_to_config(scaling_factor=round(scale, 6))
    modules: Any = prior.average.module
    export_base(
        out,
        unet=modules["unet"],
        vae=vae,
        text_encoder=modules["text_encoder"],
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        facts={
            "name": out.name,
            "seen": {
                "unet": "the pretraining collection less 300 held-out drawings; nothing of OpenMoji",
                "text_encoder": "captions of the same drawings; nothing of OpenMoji",
                "tokenizer": "captions of the whole collection; nothing of OpenMoji",
                "vae": "the same drawings and the train side of openmoji64; never val or test",
            },
            **figures,
        },
    )


def _main(
    families: Annotated[Path, typer.Option(help="The unpacked icon families.")],
    out: Annotated[Path, typer.Option(help="Folder for the finished base.")],
    work: Annotated[Path, typer.Option(help="Checkpoints to resume from.")],
    until: str = "report",
    report: Path = Path("results/pretraining"),
    steps: int | None = None,
    threads: int = 2,
    start: Path | None = None,
) -> None:
    """Make the embedded base model anew (hours), or go on with it; no user of the benchmark needs this."""
    from bench.terminal import say
    from bench.types import Hooks

    for line in pretrain(
        families,
        out=out,
        work=work,
        until=until,
        steps=steps,
        threads=threads,
        report=report,
        hooks=Hooks(),
        start=start,
    ):
        say(line)


if __name__ == "__main__":
    typer.run(_main)
