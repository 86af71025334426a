"""What a Qdrant server's refusals and silences mean for a caller. It knows the client library's errors only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc  # type: ignore[import-untyped]
import httpx
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from models.domain.errors import StoreError

# What another try cannot mend. Every other code is a server that is away, busy, starting or recovering.
_PERMANENT_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.OUT_OF_RANGE,
}
_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS = 408, 429


@contextmanager
def translated(error: type[StoreError], where: str) -> Iterator[None]:
    """Turn what the client raises into `error`, `where` naming the server or collection."""
    try:
        yield
    except StoreError:
        raise
    except grpc.RpcError as refused:  # an AioRpcError has both methods, its base has neither
        code = refused.code() if isinstance(refused, grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
        detail = refused.details() if isinstance(refused, grpc.aio.AioRpcError) else str(refused)
        raise error(f"{where}: {code.name}: {detail}", retryable=code not in _PERMANENT_CODES) from refused
    except UnexpectedResponse as refused:
        status = refused.status_code or 500
        permanent = 400 <= status < 500 and status not in (_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS)
        raise error(f"{where}: {refused}", retryable=not permanent) from refused
    except (ApiException, QdrantException, httpx.HTTPError, OSError, TimeoutError) as away:
        raise error(f"{where}: {type(away).__name__}: {away}") from away
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError) as misuse:
        raise error(f"{where}: {misuse}", retryable=False) from misuse
