"""`streamrec models`: which model versions there are, which one is champion, and the ways to change that."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from models.domain.errors import BundleError
from streams.cli.bundle import manifest_lines
from streams.cli.common import bundle_path, run_async, with_settings
from streams.cli.follow import print_table
from streams.settings import Settings
from streams.topics import TopicNames

if TYPE_CHECKING:
    from models.domain.release_log import Releases
    from models.domain.releases import Release
    from models.encoders.manifest import Manifest
    from streams.registry import Registry
    from streams.releases import ReleaseLog

app = typer.Typer(no_args_is_help=True)

Version = Annotated[str, typer.Argument(metavar="VERSION", help="As `streamrec models list` shows it.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Written beside the release, for people.")]


@app.callback()
def models() -> None:
    """Model versions: candidates, the champion that workers serve, and the way back."""


@app.command("list")
@with_settings("Kafka", "Model")
def list_versions(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array of the versions.")] = False,
) -> None:
    """Show every version of the registry and of the topic `models`, the oldest first."""
    from streams.cli.model_rows import shown, version_rows

    registry = _registry(settings)
    rows = version_rows(registry, run_async(_releases(settings)))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    columns = ("version", "state", "created", "parent", "metrics")
    title = f"{len(rows)} versions in {registry}"
    print_table(title, columns, [[shown(row, column) for column in columns] for row in rows], folded=False)


@app.command()
@with_settings("Kafka", "Model")
def show(settings: Settings, version: Version) -> None:
    """Print what a version's manifest says, and what became of the version."""
    registry = _registry(settings)
    manifest = registry.manifest(version)
    releases = run_async(_releases(settings))
    lines = manifest_lines(manifest, f"{registry}/{version}")
    champion = releases.champion
    lines["state"] = releases.state(version)
    if champion is not None and version in (champion.version, champion.previous):
        lines["release"] = _told(champion)
    for name, value in lines.items():
        typer.echo(f"{name:<11} {value}")


@app.command()
@with_settings("Kafka", "Model")
def promote(settings: Settings, version: Version, reason: Reason = "by hand") -> None:
    """Make a version champion: every worker goes over to it without stopping.

    Refused where a worker would refuse it: it is fetched from the registry, verified and opened as a worker does, and
    its vectors and states must have the champion's sizes.
    """
    run_async(_promote(settings, version, reason))


@app.command()
@with_settings("Kafka", "Model")
def rollback(
    settings: Settings,
    version: Annotated[
        str, typer.Argument(metavar="[VERSION]", help="A former champion; empty = the one before this one.")
    ] = "",
    reason: Reason = "by hand",
) -> None:
    """Go back to a former champion; the present one is marked as rolled back."""
    run_async(_roll_back(settings, version, reason))


@app.command()
@with_settings("Kafka", "Model")
def add(
    settings: Settings,
    directory: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="As `streamrec train` writes it.")],
    promote: Annotated[bool, typer.Option("--promote", help="Make it champion too.")] = False,
    reason: Reason = "by hand",
) -> None:
    """Put a bundle into the registry, as a candidate. One that is there already is left as it is."""
    from models.encoders.manifest import read_manifest

    _open(settings, directory, None)
    registry = _registry(settings)
    version = registry.publish(directory)
    run_async(_add(settings, read_manifest(directory)))
    typer.echo(f"added  {version}  to {registry}")
    if promote:
        run_async(_promote(settings, version, reason))


@app.command()
@with_settings("Kafka", "Model")
def diff(
    settings: Settings,
    a: Annotated[str, typer.Argument(metavar="A", help="The version to start from.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The version to compare with it.")],
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Say in what two versions differ: manifests, graphs, and what each learned of single items."""
    from streams.cli.model_diff import compare, compare_items, told

    registry = _registry(settings)
    first, second = registry.manifest(a), registry.manifest(b)
    fields, items = compare(first, second), compare_items(registry, first, second)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode({"fields": fields, "items": items}), indent=2))
        return
    print_table(f"{a} -> {b}", ("", "A", "B"), [(name, *map(told, pair)) for name, pair in fields.items()])
    if not fields:
        typer.echo("the manifests say the same")
    for line in items.told():
        typer.echo(line)


@app.command()
@with_settings("Kafka", "Model")
def prune(
    settings: Settings,
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="Keep the N newest versions beside those in use.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete old versions from the registry. Never the champion, the one before it, or the one a rollback goes to."""
    run_async(_prune(settings, keep, dry_run))


def _registry(settings: Settings) -> Registry:
    from streams.registry import Registry

    return Registry(settings.registry_url)


async def _releases(settings: Settings) -> Releases:
    from streams.kafka.connection import KafkaConnection
    from streams.releases import read_releases

    return await read_releases(KafkaConnection.from_settings(settings), TopicNames(settings.topic_prefix).models)


@asynccontextmanager
async def _writing(settings: Settings) -> AsyncIterator[ReleaseLog]:
    from streams.kafka.connection import KafkaConnection
    from streams.kafka.publisher import Publisher
    from streams.releases import ReleaseLog

    connection = KafkaConnection.from_settings(settings)
    async with Publisher(connection, client_id="streamrec-models") as publisher:
        yield ReleaseLog(connection, TopicNames(settings.topic_prefix).models, publisher)


def _told(release: Release) -> str:
    from streams.cli.model_rows import utc

    before = f"; before: {release.previous}" if release.previous else ""
    return f"{release.sequence}, {release.action} by {release.by} at {utc(release.at_ms)} ({release.reason}){before}"


async def _promote(settings: Settings, version: str, reason: str) -> None:
    releases = await _releases(settings)
    if releases.champion is not None and releases.champion.version == version:
        typer.echo(f"{version} is champion already")
        return
    manifest = _check(settings, version, releases)
    async with _writing(settings) as log:
        release = await log.promote(manifest, by="operator", reason=reason)
    typer.echo(f"champion  {version}  release {_told(release)}")


async def _roll_back(settings: Settings, version: str, reason: str) -> None:
    from models.domain.release_log import roll_back

    releases = await _releases(settings)
    # Asked for its refusals; what is written is decided anew from what the topic says then.
    decided, _ = roll_back(releases, version or None, by="operator", reason=reason, now_ms=0)
    _check(settings, decided.version, releases)
    async with _writing(settings) as log:
        release = await log.roll_back(decided.version, by="operator", reason=reason)
    typer.echo(f"champion  {release.version}  release {_told(release)}")


async def _add(settings: Settings, manifest: Manifest) -> None:
    await _releases(settings)  # a broker that is away is told of at once here, not after the publisher's deadline
    async with _writing(settings) as log:
        await log.add(manifest)


async def _prune(settings: Settings, keep: int, dry_run: bool) -> None:
    from models.domain.release_log import superfluous
    from streams.cli.model_rows import version_rows

    registry = _registry(settings)
    rows = version_rows(registry, await _releases(settings))
    # Asked again after the registry was listed: what was promoted meanwhile stays.
    releases = await _releases(settings)
    stored = [(row.created_ms, row.version) for row in rows if row.in_registry]
    doomed = superfluous(releases, stored, keep)
    for version in doomed:
        if not dry_run:
            registry.delete(version)
        typer.echo(f"{'would be deleted' if dry_run else 'deleted'}  {version}  {releases.state(version)}")
    # Among them those of a run that ended between the two steps.
    in_use = releases.in_use()
    gone = [row.version for row in rows if not row.in_registry and row.version not in in_use] + doomed
    if gone and not dry_run:
        async with _writing(settings) as log:
            await log.remove(gone)
    typer.echo(f"{len(stored) - len(doomed)} versions {'would stay' if dry_run else 'stay'}")


def _check(settings: Settings, version: str, releases: Releases) -> Manifest:
    """Fetch a version and open it as a worker would. Raises: RegistryError, BundleError."""
    registry = _registry(settings)
    with tempfile.TemporaryDirectory(prefix="streamrec-models-") as folder:
        return _open(settings, registry.fetch(version, Path(folder)), _served(settings, registry, releases))


def _open(settings: Settings, directory: Path, served: Manifest | None) -> Manifest:
    """Open a bundle as a worker would.

    Args:
        served: manifest of what is served now, whose sizes the stores have; None where nobody knows.
    Raises: BundleError.
    """
    from streams.container import read_bundle

    return read_bundle(settings, directory, None if served is None else served.dimensions).manifest


def _served(settings: Settings, registry: Registry, releases: Releases) -> Manifest | None:
    """The manifest of the champion, else of the bundle of the settings; None where neither can be had here."""
    from models.encoders.manifest import read_manifest
    from streams.registry import RegistryError

    if releases.champion is not None:
        try:
            return registry.manifest(releases.champion.version)
        except RegistryError as error:
            print(f"warning: the champion's sizes are not known: {error}", file=sys.stderr)
            return None
    try:
        return read_manifest(bundle_path(settings))
    except BundleError:
        return None
