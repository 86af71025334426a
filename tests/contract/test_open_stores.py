"""Which stores a url names, how names keep deployments apart, and what an absent server means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.domain.errors import ItemIndexError, SettingsError, StoreError, UserStoreError
from streams.stores.embedded import EmbeddedStores
from streams.stores.names import collection_name, escape, unescape, version_of
from streams.stores.open import open_stores
from streams.stores.server import ServerStores
from streams.stores.socket_client import SocketStores

names = st.text(min_size=1, max_size=6)


async def test_the_url_chooses_the_technology(tmp_path: Path) -> None:
    for url, kind in (
        ("", EmbeddedStores),
        ("unix:/tmp/streamrec.sock", SocketStores),
        ("unix:///tmp/streamrec.sock", SocketStores),
        ("http://127.0.0.1:6333", ServerStores),
        ("https://example.org", ServerStores),
    ):
        stores = open_stores(url, tmp_path)
        assert type(stores) is kind
        await stores.close()
    assert listed(tmp_path) == []


def listed(directory: Path) -> list[Path]:
    return list(directory.iterdir())


@pytest.mark.parametrize(
    "url", ["unix:", "unix:relative", "unix:/", "localhost:6333", "ftp://host", "http://", "file:/x"]
)
def test_any_other_url_is_refused_by_name(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="qdrant_url"):
        open_stores(url, tmp_path)


@pytest.mark.parametrize("prefer_grpc", [True, False])
async def test_a_server_that_is_away_is_a_retryable_error_everywhere(prefer_grpc: bool, tmp_path: Path) -> None:
    stores = open_stores("http://127.0.0.1:1", tmp_path, grpc_port=1, prefer_grpc=prefer_grpc, timeout_seconds=2)
    for call in (stores.ping(), stores.describe(), stores.user_generation(), stores.switch_users("1")):
        with pytest.raises(StoreError) as away:
            await call
        assert away.value.retryable
    for opening in (stores.users(state_size=1, dimension=1), stores.items(version="1", dimension=1)):
        with pytest.raises((UserStoreError, ItemIndexError, StoreError)) as away:
            await opening
        assert away.value.retryable
    await stores.close()


@given(st.text(max_size=30))
def test_an_escaped_text_is_safe_and_can_be_read_back(text: str) -> None:
    safe = escape(text)
    assert unescape(safe) == text
    assert all(c.isascii() and (c.isalnum() or c in "_-~") for c in safe)


@given(names, names, names, names)
def test_two_deployments_never_spell_the_same_collection(prefix: str, version: str, other: str, another: str) -> None:
    for kind in ("users", "items"):
        for other_kind in ("users", "items"):
            same = (prefix, kind, version) == (other, other_kind, another)
            assert (collection_name(prefix, kind, version) == collection_name(other, other_kind, another)) == same
            assert collection_name(prefix, kind, version) != collection_name("", other_kind, another)
    assert version_of(prefix, "users", collection_name(prefix, "users", version)) == escape(version)
