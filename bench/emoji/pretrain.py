"""Makes the miniature Stable Diffusion: draws the collection, trains its networks, writes the base.

    python -m bench.emoji.pretrain --families FOLDER --work FOLDER --out FOLDER

The collection is fourteen open icon families, none of them OpenMoji; each is one npm package in the Iconify
JSON format (``icons.json``: SVG bodies by name).
The networks have the shapes of the shipped base, emoji-sd-v1. UNet and text encoder learn from the icon
families alone, no OpenMoji picture or caption; the autoencoder also from OpenMoji's train side. Every stage
is seeded and goes on from its checkpoint in the folder of --work; on two CPU cores it takes hours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from diffusers.training_utils import EMAModel, compute_snr
from PIL import Image
from torch.nn.functional import l1_loss, mse_loss
from transformers import CLIPTokenizer, get_wsd_schedule

from bench.base import SD
from bench.base.random import shape_of, train_tokenizer, write_base
from bench.base.snapshot import MANIFEST, find_snapshot
from bench.cli.terminal import say
from bench.content import atomic_path, digest_arrays, read_json, sha256_file, write_json
from bench.data.leaks import write_seen
from bench.data.openmoji import ASSETS, OpenMoji64, openmoji64_splits
from bench.emoji import run, tables, train
from bench.types import BenchError

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

SIZE = 64
VIEWS, SEED = 4, 17  # of the collection
HELD_OUT = 300  # drawings that no network is trained on
_SQUASHED = "fxemoji"  # this family writes its names without hyphens


class Icon(NamedTuple):
    """One drawing: its name, caption without the style word, style word, standalone SVG text."""

    name: str
    caption: str
    style: str
    svg: str


def load_icons(folder: Path) -> list[Icon]:
    """Read every family below `folder`, without skin-tone variants, hidden icons and flags.

    folder: holds one unpacked npm package a family, in a sub-folder `<package>` with `icons.json`.
    Raises BenchError for a missing family or another version. Order: family, then name.
    """
    families = tables("icons")["families"]
    drawings = [(f["package"], f["style"], _read_family(folder, **f)) for f in families]
    plain = [icons for package, _, icons in drawings if package != _SQUASHED]
    words = {word for icons in plain for name in icons for word in name.split("-")}
    named = [(p, style, *one) for p, style, icons in drawings for one in sorted(icons.items())]
    return [Icon(name, _caption(name, package, words), style, svg) for package, style, name, svg in named]


def _read_family(folder: Path, *, package: str, version: str, **_: str) -> dict[str, str]:
    """Return the drawings of a family that are kept: name -> SVG."""
    path, rules = folder / package, tables("icons")
    remedy = f"Unpack the npm package @iconify-json/{package}@{version} there."
    if not (path / "icons.json").is_file():
        raise BenchError(f"there is no icon family in {path}. {remedy}")
    there = read_json(path / "package.json", loose=True, remedy=remedy)["version"]
    if there != version:
        raise BenchError(f"{path} has version {there}; the recipe is fixed to {version}. {remedy}")
    data = read_json(path / "icons.json", loose=True, most_bytes=1 << 30, remedy=remedy)
    icons = {name: icon for name, icon in data["icons"].items() if not icon.get("hidden")}
    kept = {}
    for name, icon in icons.items():
        bare = re.sub(rules["tone"], "", name)  # a tone is kept whose untoned base the family lacks
        toned = "skin-tone" in name or (bare != name and bare in icons and name not in rules["tone_objects"])
        if not (toned or name.startswith("flag-") or name.endswith("flag")):
            kept[name] = _svg({**data, **icon})
    return kept


def _svg(icon: Mapping[str, Any]) -> str:
    """Wrap an Iconify body into a square SVG; non-square icons are padded, not stretched."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", 16), icon.get("height", 16)
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{SIZE}" height="{SIZE}" color="#000"><g>{icon["body"]}</g></svg>'
    )


def _caption(name: str, package: str, words: set[str]) -> str:
    parts = [p for p in name.split("-") if p not in {"duo", "alternate"}]
    if package == _SQUASHED:
        parts = _split_words(name, words)
    while len(parts) > 1 and package.startswith("streamline") and parts[-1].isdigit():
        parts = parts[:-1]  # "clinking-glasses-3" is a number of the file, not of the drawing
    return " ".join(parts)


def _split_words(text: str, words: set[str]) -> list[str]:
    """Split squashed words ("cardindexdividers") into the fewest known ones; else keep as it is."""
    best: list[list[str] | None] = [[]] + [None] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(max(0, end - 16), end):
            head, piece = best[start], text[start:end]
            if head is None or piece not in words or (len(piece) < 2 and not piece.isdigit()):
                continue
            current = best[end]
            if current is None or len(head) + 1 < len(current):
                best[end] = [*head, piece]
    return best[len(text)] or [text]


def may_mirror(caption: str) -> bool:
    """Tell whether a mirrored drawing still fits its caption (no letters, arrows, sides, clocks)."""
    return re.search(tables("icons")["handed"], caption) is None


def render(icon: Icon, *, rng: np.random.Generator | None = None) -> np.ndarray:
    """Draw one icon on white, [64,64,3] uint8; with `rng`, under a small random similarity.

    The drawing is transformed as vectors (rotation up to 8 degrees, scale 0.8 to 1.05, shift up to
    3 of 64 px), so augmented images are as sharp as plain ones.
    """
    import resvg_py

    svg = icon.svg
    if rng is not None:
        left, top, side, _ = (float(v) for v in svg.split('viewBox="')[1].split('"')[0].split())
        angle, scale = rng.uniform(-8, 8), rng.uniform(0.8, 1.05)
        dx, dy = rng.uniform(-3, 3, size=2) * side / SIZE
        x, y = left + side / 2, top + side / 2
        moved = f"translate({x + dx:.4f} {y + dy:.4f}) rotate({angle:.3f}) scale({scale:.4f})"
        svg = svg.replace("<g>", f'<g transform="{moved} translate({-x:.4f} {-y:.4f})">', 1)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="white")
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def render_all(icons: list[Icon], *, views: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (icon index, [views,64,64,3] uint8): view 0 is plain, later ones are augmented.

    Odd views are mirrored where the caption allows it. Each icon draws from a generator of its own
    (seed, index), so the result does not depend on the order. Icons that cannot be drawn or are
    blank are skipped.
    """
    for index, icon in enumerate(icons):
        rng = np.random.default_rng([seed, index])
        try:
            plain = render(icon)
        except Exception:  # resvg raises bare exceptions of several kinds
            continue
        if int(plain.min()) > 200:
            continue
        drawn = [plain] + [render(icon, rng=rng) for _ in range(views - 1)]
        if may_mirror(icon.caption):
            drawn = [d[:, ::-1] if v % 2 else d for v, d in enumerate(drawn)]
        yield index, np.stack(drawn)


def collection(folder: Path, work: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Draw the collection once, into `work`: views [M,4,64,64,3] uint8 (mapped), captions and styles."""
    views, meta = work / "views.npy", work / "collection.json"
    if not (views.exists() and meta.exists()):
        icons = load_icons(folder)
        drawn = dict(render_all(icons, views=VIEWS, seed=SEED))
        with atomic_path(views) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(list(drawn.values())))
        kept = [icons[index] for index in drawn]
        write_json(meta, [[i.caption for i in kept], [i.style for i in kept]])
    captions, styles = read_json(meta)
    return np.load(views, mmap_mode="r"), captions, styles


def trained_rows(count: int) -> np.ndarray:
    """Return the rows of the collection that are trained on, int64: all but the held-out ones."""
    return np.sort(np.random.default_rng(5).permutation(count)[HELD_OUT:])


def to_unit(images: np.ndarray) -> torch.Tensor:
    """[N,H,W,3] uint8 -> [N,3,H,W] float32 in [-1, 1], channels_last."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def train_autoencoder(
    vae: Any,
    views: np.ndarray,
    openmoji: np.ndarray,
    *,
    rows: np.ndarray,
    checkpoint: Path,
    steps: int = 2600,
    batch: int = 48,
) -> None:
    """Train an AutoencoderTiny in place on collection and OpenMoji, a quarter of every batch.

    views [M,V,64,64,3], openmoji [N,64,64,3] uint8; rows: of the collection. The loss is L1 + MSE + the
    gradients' L1 / 2 + a penalty that keeps latents near mean 0 and deviation 1.
    """
    optimiser = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps, pct_start=0.05)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([0, step])
        drawn = rng.choice(rows, size=batch - batch // 4)
        shown = views[drawn, rng.integers(views.shape[1], size=len(drawn))]
        emoji = openmoji[rng.integers(len(openmoji), size=batch // 4)]
        mirrored = np.where(rng.random(len(emoji))[:, None, None, None] < 0.5, emoji, emoji[:, :, ::-1])
        images = to_unit(np.concatenate([shown, mirrored]))
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encoder(images).float()
            noise = rng.standard_normal(latents.shape, dtype=np.float32)
            output = vae.decoder(latents + 0.05 * torch.from_numpy(noise)).float()
        loss = l1_loss(output, images) + mse_loss(output, images)
        for axis in (2, 3):
            loss = loss + 0.5 * l1_loss(output.diff(dim=axis), images.diff(dim=axis))
        mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        return loss + 0.1 * (mean.square().mean() + (deviation - 1).square().mean())

    parts = {"vae": vae}
    train(checkpoint, loss_of, steps=steps, optimiser=optimiser, schedule=schedule, parts=parts)


def encode(vae: Any, views: np.ndarray) -> tuple[torch.Tensor, float]:
    """Encode every view once: latents [M,V,4,h,w] half, scaled to deviation 1, and the scale."""
    blocks = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for block in (views[start : start + 32] for start in range(0, len(views), 32)):
            latents = vae.encoder(to_unit(block.reshape(-1, *block.shape[2:])))
            blocks.append(latents.unflatten(0, block.shape[:2]).half())
    encoded = torch.cat(blocks)
    scale = round(1 / float(encoded[:, 0].float().std()), 6)
    return (encoded.float() * scale).half().clone(), scale


def draw_batch(
    step: int, latents: torch.Tensor, tokens: dict[str, torch.Tensor], *, rows: np.ndarray, batch: int
) -> Batch:
    """Return latents [B,4,h,w], token ids [B,L], stratified timesteps [B] and noise of one step.

    tokens: "full" captions with the style word, "bare" without, [M,L]; "empty" [L]. Two drawings in five
    are plain views; three captions in 20 lose their style, one in 10 is empty.
    """
    rng = np.random.default_rng([0, step])
    drawn = rng.choice(rows, size=batch)
    views = rng.integers(1, latents.shape[1], size=batch) * (rng.random(batch) >= 0.4)
    bare, empty = (torch.from_numpy(rng.random(batch) < share)[:, None] for share in (0.15, 0.10))
    ids = torch.where(bare, tokens["bare"][drawn], tokens["full"][drawn])
    unit = (rng.permutation(batch) + rng.random(batch)) / batch
    timesteps = torch.from_numpy((unit * 1000).astype(np.int64).clip(max=999))
    noise = torch.from_numpy(rng.standard_normal((batch, *latents.shape[2:]), dtype=np.float32))
    return latents[drawn, views].float(), torch.where(empty, tokens["empty"], ids), timesteps, noise


def train_prior(
    parts: dict[str, Any],
    latents: torch.Tensor,
    tokens: dict[str, torch.Tensor],
    *,
    rows: np.ndarray,
    checkpoint: Path,
    steps: int = 7500,
    batch: int = 64,
) -> None:
    """Train UNet and text encoder in place, to the moving average of their weights.

    parts: with scheduler; latents and tokens: see `draw_batch`; rows: of the collection. The error of v
    is weighted by min-SNR (arXiv 2202.00512, 2303.09556).
    """
    scheduler = parts["scheduler"]
    modules = torch.nn.ModuleDict({name: parts[name] for name in ("unet", "text_encoder")}).train()
    modules["unet"].to(memory_format=torch.channels_last)
    weights = list(modules.parameters())
    optimiser = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    phases = {"num_warmup_steps": steps // 25, "num_decay_steps": steps // 4, "num_training_steps": steps}
    schedule = get_wsd_schedule(optimiser, **phases, decay_type="linear", min_lr_ratio=0.02)
    average = EMAModel(weights, decay=0.9995)

    def loss_of(step: int) -> torch.Tensor:
        clean, ids, timesteps, noise = draw_batch(step, latents, tokens, rows=rows, batch=batch)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            text = modules["text_encoder"](ids).last_hidden_state
            output = modules["unet"](noisy, timesteps, text).sample
        target = scheduler.get_velocity(clean, noise, timesteps)
        error = (output.float() - target).square().mean(dim=(1, 2, 3))
        snr = compute_snr(scheduler, timesteps)
        return (error * snr.clamp(max=5) / (snr + 1)).mean()

    train(
        checkpoint,
        loss_of,
        steps=steps,
        optimiser=optimiser,
        schedule=schedule,
        parts={"modules": modules, "average": average},
        after=lambda step: average.step(weights),
    )
    average.copy_to(weights)
    modules.eval()


def write(out: Path, parts: dict[str, Any], views: np.ndarray, names: list[str]) -> None:
    """Write the base in half precision, the manifest of its files, and fingerprints of what it has seen."""
    for part in SD.weighted:
        parts[part].to(torch.float16)
    write_base(out, parts)
    pictures, said = np.ascontiguousarray(views[:, 0]), tables("manifests")
    digest = digest_arrays(images=pictures)
    families = [{**f, "package": f"@iconify-json/{f['package']}"} for f in tables("icons")["families"]]
    about = {"drawings": len(views), "views": int(views.shape[1]), "digest": digest, "families": families}
    files = {p.relative_to(out).as_posix(): sha256_file(p) for p in sorted(out.rglob("*")) if p.is_file()}
    write_json(out / MANIFEST, {**said["emoji-sd"], "name": out.name, "collection": about, "files": files})
    drawn = {"about": f"{len(views)} drawings of {len(families)} icon families", "sources": families}
    facts = {**said["pretraining"], **drawn, "collection_digest": digest}
    write_seen(out, base=find_snapshot(out).digest, pictures=pictures, names=names, facts=facts)


def main(
    families: Annotated[Path, typer.Option(help="The unpacked icon families.")],
    work: Annotated[Path, typer.Option(help="Drawings, and checkpoints to go on from.")],
    out: Annotated[Path, typer.Option(help="Folder for the finished base.")],
) -> None:
    """Make the embedded base model anew (hours); no user of the benchmark needs this."""
    views, captions, styles = collection(families, work)
    say(f"collection: {len(views)} drawings, {len(set(styles))} styles")
    torch.manual_seed(0)
    shape, rows = shape_of(ASSETS / "emoji-sd-v1"), trained_rows(len(views))
    parts = shape.build()
    full = [f"{caption}, {style} style" for caption, style in zip(captions, styles, strict=True)]
    if not (work / "tokenizer").exists():  # learned anew it might number tied tokens otherwise
        vocabulary = parts["text_encoder"].config.vocab_size
        train_tokenizer(full, size=vocabulary, length=shape.tokens).save_pretrained(work / "tokenizer")
    parts["tokenizer"] = CLIPTokenizer.from_pretrained(work / "tokenizer", local_files_only=True)
    data = OpenMoji64()
    openmoji = data.images[data.rows(openmoji64_splits().train)]
    train_autoencoder(parts["vae"], views, openmoji, rows=rows, checkpoint=work / "autoencoder.ckpt")
    latents, scale = encode(parts["vae"].eval(), views)
    parts["vae"].register_to_config(scaling_factor=scale)
    how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    texts = {"full": full, "bare": captions, "empty": [""]}
    tokens = {name: parts["tokenizer"](lines, **how).input_ids for name, lines in texts.items()}
    tokens["empty"] = tokens["empty"][0]
    train_prior(parts, latents, tokens, rows=rows, checkpoint=work / "prior.ckpt")
    write(out, parts, views, [f"{style}: {c}" for c, style in zip(captions, styles, strict=True)])
    say(f"wrote {out}")


if __name__ == "__main__":
    run(main)
