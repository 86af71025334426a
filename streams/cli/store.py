"""`streamrec store`: the embedded index of one data directory, served to the other processes of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.domain.errors import SettingsError
from streams.cli.common import run_async, until_stopped, use_one_blas_thread, with_settings
from streams.settings import Settings

app = typer.Typer()


@app.command()
@with_settings("Qdrant")
def store(
    settings: Settings,
    socket: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="Unix socket; empty = that of STREAMREC_QDRANT_URL, else <data_dir>/store.sock."
        ),
    ] = "",
) -> None:
    """Serve the embedded index of the data directory on a Unix socket, until SIGTERM or Ctrl-C.

    For several workers on one machine, and for looking at states beside a running worker: start the workers and the
    other commands with the STREAMREC_QDRANT_URL that this prints. It is no replacement of a cluster.
    """
    use_one_blas_thread()
    url = settings.qdrant_url
    if url and not url.startswith("unix:"):
        raise SettingsError(f"`qdrant_url` is {url.split('@')[-1]!r}: a server needs no `streamrec store`")
    path = Path(socket or url.removeprefix("unix:") or settings.data_dir / "store.sock").absolute()
    run_async(_serve(settings, path))


async def _serve(settings: Settings, path: Path) -> None:
    from streams.stores.open import open_stores
    from streams.stores.socket_server import StoreServer

    stores = open_stores("", settings.data_dir, collection_prefix=settings.collection_prefix)
    server = StoreServer(stores, path)
    try:
        await stores.ping()  # takes the lock of the directory, or says who has it
        await server.listen()
        typer.echo(f"serving {settings.data_dir.absolute()}: STREAMREC_QDRANT_URL=unix:{path}")
        await until_stopped(_for_ever())
    finally:
        await server.close()
        await stores.close()


async def _for_ever() -> None:
    import asyncio

    await asyncio.Event().wait()
