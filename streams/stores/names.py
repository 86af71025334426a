"""Names of collections and ids of points: every store takes its names from here. It knows no engine."""

from __future__ import annotations

import hashlib
import string
from uuid import UUID

from models.domain.errors import StoreError, UserStoreError

FIRST_GENERATION = "0"

# Qdrant turns a collection's name into a directory and a part of URLs; file systems end a name at 255 bytes, and Qdrant
# adds suffixes of its own to it.
MAX_NAME_LENGTH = 200

_KEPT = frozenset(string.ascii_letters + string.digits + "_-")


def escape(text: str) -> str:
    """`text`, all but letters, digits, `_`, `-` as `~` and two hexadecimal digits a byte: no two texts share one."""
    return "".join(c if c in _KEPT else "".join(f"~{b:02x}" for b in c.encode("utf-8", "surrogatepass")) for c in text)


def collection_name(prefix: str, kind: str, version: str) -> str:
    """`users_<version>` or `items_<version>`, with `<prefix>.` in front where there is a prefix.

    The dot is never part of an escaped text, so that no prefix and version can spell another deployment's name.
    Raises: StoreError when the name is empty or too long for a file system.
    """
    name = f"{_before(prefix)}{kind}_{escape(version)}"
    if not version or len(name) > MAX_NAME_LENGTH:
        raise StoreError(f"collection name {name[:80]!r} is empty or longer than {MAX_NAME_LENGTH}", retryable=False)
    return name


def pointer_name(prefix: str) -> str:
    """Name of the alias (or file) that says which generation of users is live."""
    return f"{_before(prefix)}users"


def version_of(prefix: str, kind: str, name: str) -> str | None:
    """The escaped version in a collection's name; None where the name is another deployment's or another kind's."""
    start = f"{_before(prefix)}{kind}_"
    return name[len(start) :] if name.startswith(start) else None


def unescape(text: str) -> str:
    """The inverse of `escape`."""
    head, *rest = text.split("~")
    raw = head.encode() + b"".join(bytes([int(part[:2], 16)]) + part[2:].encode() for part in rest)
    return raw.decode("utf-8", "surrogatepass")


def point_id(user_key: str) -> str:
    """Point id of a user. Raises: UserStoreError when the key is no UUID."""
    try:
        return str(UUID(user_key))
    except ValueError as error:
        raise UserStoreError(f"user key {user_key[:80]!r} is no UUID", retryable=False) from error


def item_point_id(item_id: str) -> str:
    """Point id of an item: engines take UUIDs only, and ids come in any length and script."""
    digest = hashlib.blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return str(UUID(bytes=digest))


def _before(prefix: str) -> str:
    return f"{escape(prefix)}." if prefix else ""
