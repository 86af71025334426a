"""`streamrec bundle show|verify|bootstrap`: what is served, whether it is sound, and the one that needs no training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.common import bundle_path, resolve_bundle, with_settings
from streams.settings import Settings

if TYPE_CHECKING:
    from models.encoders.manifest import Manifest

app = typer.Typer(no_args_is_help=True)

Where = Annotated[
    Path | None,
    typer.Argument(metavar="[DIR]", help="A bundle; empty = the one that a worker with these settings serves."),
]


@app.callback()
def bundle() -> None:
    """Model bundles: directories with a manifest, ONNX graphs and a tokenizer."""


@app.command()
@with_settings("Model")
def show(
    settings: Settings,
    directory: Where = None,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as it is.")] = False,
) -> None:
    """Print what a bundle's manifest says."""
    from models.encoders.manifest import encode_manifest, read_manifest

    path = directory or bundle_path(settings)
    manifest = read_manifest(path)
    if as_json:
        typer.echo(encode_manifest(manifest).decode())
        return
    for name, value in manifest_lines(manifest, str(path)).items():
        typer.echo(f"{name:<11} {value}")


def manifest_lines(manifest: Manifest, where: str) -> dict[str, str]:
    """What a manifest says, for people."""
    sizes, text, ranker = manifest.dimensions, manifest.text_model, manifest.ranker
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(manifest.created_ms / 1_000))
    return {
        "directory": where,
        "version": manifest.version,
        "parent": manifest.parent or "none",
        "made": f"{made} ({manifest.recipe})",
        "dimensions": f"item {sizes.item}, state {sizes.state}, text {sizes.text}",
        "opset": str(manifest.opset),
        "kinds": ", ".join(kind for kind in manifest.kinds if kind),
        "ranker": f"{len(ranker.features)} features, "
        + ("weights of its own" if ranker.initial_weights is None else "weights that adapt to the stream"),
        "text model": f"{text.source} (pooling {text.pooling}, {text.max_tokens} tokens)",
        "values": "as users give them" + (", else read from their texts" if manifest.review_value else ""),
        "metrics": ", ".join(f"{name} {value:.4f}" for name, value in manifest.metrics.items()) or "none",
        "files": ", ".join(sorted(manifest.checksums)),
    }


@app.command()
@with_settings("Model")
def verify(settings: Settings, directory: Where = None) -> None:
    """Check a bundle as a worker does before it serves it: checksums, shapes, features, and that both graphs agree."""
    from streams.container import read_bundle

    path = directory or bundle_path(settings)
    loaded = read_bundle(settings, path)
    typer.echo(f"ok  {path}  {loaded.version}  served by {loaded.providers[0]}")
    if loaded.missing_providers:
        typer.echo(f"not available here: {', '.join(loaded.missing_providers)}")


@app.command()
@with_settings("Model")
def bootstrap(settings: Settings) -> None:
    """Make the bootstrap bundle, or bring it up to date: a model that recommends from the first event on, untrained.

    It lies in <data_dir>/bundles/bootstrap. A worker without STREAMREC_BUNDLE makes it at its start by itself.
    """
    from models.encoders.manifest import read_manifest

    path = resolve_bundle(settings)
    typer.echo(f"{path}  {read_manifest(path).version}")
