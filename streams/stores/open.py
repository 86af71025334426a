"""Which stores a url names. It reads no settings and opens nothing: the first call on the stores does."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from models.domain.errors import SettingsError
from models.domain.ports import Stores


def open_stores(
    qdrant_url: str,
    data_dir: Path,
    *,
    collection_prefix: str = "",
    api_key: str = "",
    grpc_port: int = 6334,
    prefer_grpc: bool = True,
    timeout_seconds: float = 10.0,
) -> Stores:
    """The stores at `qdrant_url`.

    Args:
        qdrant_url: "" for the embedded engine in `data_dir`, `unix:/path` for a store process, `http(s)://host:port`
            for a Qdrant server. The engines are imported only where they are chosen.
        collection_prefix: keeps deployments apart; behind a socket it is the store process's own.
    Raises: SettingsError for any other url.
    """
    scheme, _, rest = qdrant_url.partition(":")
    if not qdrant_url:
        from streams.stores.embedded import EmbeddedStores

        return EmbeddedStores(data_dir, collection_prefix)
    if scheme == "unix" and rest.startswith("/") and rest.strip("/"):
        from streams.stores.socket_client import SocketStores

        return SocketStores(Path("/" + rest.lstrip("/")))
    if scheme in ("http", "https") and urlsplit(qdrant_url).hostname:
        from streams.stores.server import ServerStores

        return ServerStores(
            qdrant_url,
            api_key=api_key,
            grpc_port=grpc_port,
            prefer_grpc=prefer_grpc,
            collection_prefix=collection_prefix,
            timeout_seconds=timeout_seconds,
        )
    raise SettingsError(
        f"qdrant_url {qdrant_url!r} is none of: empty (embedded), unix:/path (`streamrec store`), http(s)://host:port"
    )
