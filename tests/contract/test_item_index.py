"""What every ItemIndex must do, checked over every implementation; the exact one says what is right."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from models.domain.errors import ItemIndexError
from models.domain.ports import ItemIndex, ItemRecord, Stores
from streams.stores.exact import ExactItemIndex

DIMENSION = 65
TEXT_DIMENSION = 384
# Engines add up a product in another order than numpy does.
SCORE_TOLERANCE = 1e-4

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")


def item(number: int, **changes: object) -> ItemRecord:
    rng = np.random.default_rng(number)
    made = ItemRecord(
        item_id=f"item-{number}",
        vector=rng.standard_normal(DIMENSION).astype(np.float32),
        content_hash=f"{number:032x}",
        available=number % 10 != 9,
        categories=("film", f"genre {number % 3}"),
        price=number / 3 if number % 2 else None,
    )
    return msgspec.structs.replace(made, **changes)


def along(axis: int, length: float = 1.0) -> np.ndarray:
    """A vector whose products are exact in any order of addition."""
    vector = np.zeros(DIMENSION, np.float32)
    vector[axis] = length
    return vector


def same(left: ItemRecord | None, right: ItemRecord | None) -> bool:
    if left is None or right is None:
        return left is right
    return (
        left.vector.dtype == np.float32
        and left.vector.tobytes() == right.vector.tobytes()
        and msgspec.structs.astuple(msgspec.structs.replace(left, vector=right.vector))
        == msgspec.structs.astuple(right)
    )


def embedding(number: int) -> np.ndarray:
    """A text's embedding as an encoder gives it: float32, normalised, no number of few digits."""
    made = np.random.default_rng(10_000 + number).standard_normal(TEXT_DIMENSION)
    return (made / np.linalg.norm(made)).astype(np.float32)


@pytest.fixture
async def keeping(stores: Stores) -> ItemIndex:
    """An index that keeps the embeddings of its items' texts."""
    return await stores.items(version="v1", dimension=DIMENSION, text_dimension=TEXT_DIMENSION)


@pytest.fixture
async def index(stores: Stores) -> ItemIndex:
    return await stores.items(version="v1", dimension=DIMENSION)


async def test_what_was_written_is_read_to_the_bit_and_unknown_items_are_none(index: ItemIndex) -> None:
    await index.upsert_many([item(n) for n in range(300)])
    asked = [5, 999, 299, 0, 998, 5]
    found = await index.get_many([f"item-{n}" for n in asked])
    assert all(same(r, item(n) if n < 300 else None) for n, r in zip(asked, found, strict=True))
    assert await index.count() == 300


async def test_a_second_write_replaces_the_first_and_the_last_of_a_batch_wins(index: ItemIndex) -> None:
    await index.upsert_many([item(1), item(2), item(1, content_hash="b", price=2.5)])
    await index.upsert_many([item(2, content_hash="c", vector=along(0), available=False, categories=())])
    one, two = await index.get_many(["item-1", "item-2"])
    assert same(one, item(1, content_hash="b", price=2.5))
    assert same(two, item(2, content_hash="c", vector=along(0), available=False, categories=()))
    assert await index.count() == 2


async def test_embeddings_are_read_to_the_bit_by_their_own_method_alone(keeping: ItemIndex) -> None:
    await keeping.upsert_many([item(n, text=embedding(n) if n % 3 else None) for n in range(300)])
    asked = [5, 999, 299, 0, 3, 5]
    found = await keeping.texts([f"item-{n}" for n in asked])
    for n, kept in zip(asked, found, strict=True):
        if n >= 300 or n % 3 == 0:
            assert kept is None
        else:
            assert kept is not None
            assert kept.content_hash == item(n).content_hash
            assert kept.embedding.dtype == np.float32
            assert kept.embedding.tobytes() == embedding(n).tobytes()
    assert all(same(r, item(n)) for n, r in enumerate(await keeping.get_many([f"item-{n}" for n in range(300)])))
    seen = {r.item_id: r async for r in keeping.scan(64)}
    assert len(seen) == 300
    assert all(same(seen[f"item-{n}"], item(n)) for n in range(300))
    assert await keeping.texts([]) == []


async def test_a_text_without_a_token_keeps_its_zeros(keeping: ItemIndex) -> None:
    await keeping.upsert_many([item(1, text=np.zeros(TEXT_DIMENSION, np.float32))])
    (kept,) = await keeping.texts(["item-1"])
    assert kept is not None
    assert kept.embedding.shape == (TEXT_DIMENSION,)
    assert not kept.embedding.any()


async def test_an_embedding_goes_with_its_record(keeping: ItemIndex) -> None:
    await keeping.upsert_many([item(n, text=embedding(n)) for n in range(4)])
    await keeping.upsert_many([item(0, content_hash="b", text=embedding(9)), item(1, price=2.0)])
    await keeping.remove_many(["item-2"])
    await keeping.upsert_many([item(2)])
    zero, one, two, three = await keeping.texts([f"item-{n}" for n in range(4)])
    assert zero is not None
    assert (zero.content_hash, zero.embedding.tobytes()) == ("b", embedding(9).tobytes())
    assert one is None, "what was written without one has none"
    assert two is None
    assert three is not None
    assert three.embedding.tobytes() == embedding(3).tobytes()


async def test_a_search_does_not_see_embeddings(keeping: ItemIndex) -> None:
    await keeping.upsert_many(
        [item(n, vector=along(3, n), available=True, text=embedding(n) if n % 2 else None) for n in range(1, 6)]
    )
    assert await keeping.search_many(along(3)[None], 3) == [[("item-5", 5.0), ("item-4", 4.0), ("item-3", 3.0)]]


async def test_a_collection_made_without_embeddings_is_used_as_it_is(stores: Stores, index: ItemIndex) -> None:
    await index.upsert_many([item(1)])
    again = await stores.items(version="v1", dimension=DIMENSION, text_dimension=TEXT_DIMENSION)
    assert index.text_dimension == again.text_dimension == 0
    await again.upsert_many([item(2, text=embedding(2))])
    assert await again.texts(["item-1", "item-2"]) == [None, None]
    assert same((await again.get_many(["item-2"]))[0], item(2))


async def test_embeddings_are_kept_whoever_opens_the_collection(stores: Stores, keeping: ItemIndex) -> None:
    await keeping.upsert_many([item(1, text=embedding(1))])
    plain = await stores.items(version="v1", dimension=DIMENSION)
    assert plain.text_dimension == TEXT_DIMENSION
    (kept,) = await plain.texts(["item-1"])
    assert kept is not None
    assert kept.embedding.tobytes() == embedding(1).tobytes()
    with pytest.raises(ItemIndexError) as refused:
        await stores.items(version="v1", dimension=DIMENSION, text_dimension=TEXT_DIMENSION - 1)
    assert not refused.value.retryable


async def test_embeddings_that_do_not_fit_are_refused_and_nothing_written(keeping: ItemIndex) -> None:
    for text in (np.zeros(TEXT_DIMENSION - 1, np.float32), np.full(TEXT_DIMENSION, np.inf, np.float32)):
        with pytest.raises(ItemIndexError) as refused:
            await keeping.upsert_many([item(1), item(2, text=text)])
        assert not refused.value.retryable
    assert await keeping.count() == 0


async def test_an_empty_index_finds_nothing(index: ItemIndex) -> None:
    assert await index.search_many(np.zeros((3, DIMENSION), np.float32), 5) == [[], [], []]
    assert await index.search_many(np.zeros((0, DIMENSION), np.float32), 5) == []
    assert await index.get_many([]) == []
    assert await index.count() == 0
    assert [r async for r in index.scan()] == []
    await index.upsert_many([])
    await index.remove_many([])
    await index.remove_many(["nobody"])


async def test_a_search_agrees_with_the_exact_index(index: ItemIndex) -> None:
    exact = ExactItemIndex(DIMENSION)
    catalogue = [item(n) for n in range(1000)]
    await exact.upsert_many(catalogue)
    await index.upsert_many(catalogue)
    queries = np.random.default_rng(1).standard_normal((70, DIMENSION)).astype(np.float32)
    for k in (1, 10, 100):
        for found, right in zip(await index.search_many(queries, k), await exact.search_many(queries, k), strict=True):
            assert [score for _, score in found] == pytest.approx([score for _, score in right], abs=SCORE_TOLERANCE)
            assert _ids_with_near_ties_sorted(found) == _ids_with_near_ties_sorted(right)


def _ids_with_near_ties_sorted(found: list[tuple[str, float]]) -> list[str]:
    groups: list[list[tuple[str, float]]] = []
    for pair in found:
        if groups and groups[-1][-1][1] - pair[1] <= SCORE_TOLERANCE:
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return [item_id for group in groups for item_id, _ in sorted(group)]


async def test_the_best_come_first_and_ties_are_in_order_of_their_ids(index: ItemIndex) -> None:
    lengths = {"c": 2.0, "a": 1.0, "e": 1.0, "b": 1.0, "d": -1.0, "f": 3.0}
    await index.upsert_many([item(0, item_id=i, vector=along(3, length)) for i, length in lengths.items()])
    (found,) = await index.search_many(along(3)[None], 10)
    assert found == [("f", 3.0), ("c", 2.0), ("a", 1.0), ("b", 1.0), ("e", 1.0), ("d", -1.0)]
    (found,) = await index.search_many(along(3)[None], 4)
    assert [item_id for item_id, _ in found] == ["f", "c", "a", "b"]


async def test_items_without_a_vector_are_listed_by_id_for_a_user_without_one(index: ItemIndex) -> None:
    await index.upsert_many([item(n, vector=np.zeros(DIMENSION, np.float32), available=True) for n in range(30)])
    (found,) = await index.search_many(np.zeros((1, DIMENSION), np.float32), 5)
    assert found == [(item_id, 0.0) for item_id in sorted(f"item-{n}" for n in range(30))[:5]]


async def test_unavailable_items_are_not_found_until_they_are_available_again(index: ItemIndex) -> None:
    await index.upsert_many([item(n, vector=along(0, n), available=n != 3) for n in range(1, 4)])
    assert await index.search_many(along(0)[None], 10) == [[("item-2", 2.0), ("item-1", 1.0)]]
    await index.upsert_many([item(3, vector=along(0, 3), available=True), item(2, available=False)])
    assert await index.search_many(along(0)[None], 10) == [[("item-3", 3.0), ("item-1", 1.0)]]
    assert await index.count() == 3


async def test_an_index_of_unavailable_items_finds_nothing(index: ItemIndex) -> None:
    await index.upsert_many([item(n, available=False) for n in range(5)])
    assert await index.search_many(along(0)[None], 3) == [[]]


async def test_removed_items_are_gone_and_the_others_stay(index: ItemIndex) -> None:
    await index.upsert_many([item(n, vector=along(0, n), available=True) for n in range(1, 8)])
    await index.remove_many(["item-7", "item-2", "item-1", "item-99", "item-7"])
    assert await index.search_many(along(0)[None], 10) == [[(f"item-{n}", float(n)) for n in (6, 5, 4, 3)]]
    two, three = await index.get_many(["item-2", "item-3"])
    assert two is None
    assert same(three, item(3, vector=along(0, 3), available=True))
    assert await index.count() == 4
    await index.upsert_many([item(2, vector=along(0, 9), available=True)])
    assert (await index.search_many(along(0)[None], 1)) == [[("item-2", 9.0)]]


async def test_more_than_there_is_gives_all_there_is(index: ItemIndex) -> None:
    await index.upsert_many([item(n, available=True) for n in range(7)])
    (found,) = await index.search_many(along(0)[None], 1000)
    assert sorted(item_id for item_id, _ in found) == [f"item-{n}" for n in range(7)]


@pytest.mark.parametrize("items", [7, 500, 3000])
async def test_a_batch_of_queries_gives_what_each_alone_gives(index: ItemIndex, items: int) -> None:
    await index.upsert_many([item(n) for n in range(items)])
    queries = np.random.default_rng(2).standard_normal((33, DIMENSION)).astype(np.float32)
    together = await index.search_many(queries, 20)
    assert together == [(await index.search_many(queries[row : row + 1], 20))[0] for row in range(33)]


async def test_odd_ids_come_back_as_they_were(index: ItemIndex) -> None:
    odd = [
        "",
        " ",
        "\x00",
        "a\x00b",
        "ü",
        "u\u0308",
        "商品-1",
        "😀",
        "i" * 256,
        "a/b?c=d&e",
        '"\\',
        "\u202e",
        "\n",
        "0",
    ]
    await index.upsert_many([item(n, item_id=i, vector=along(0, n + 1), available=True) for n, i in enumerate(odd)])
    assert [r.item_id if r else None for r in await index.get_many(odd)] == odd
    (found,) = await index.search_many(along(0)[None], len(odd))
    assert [item_id for item_id, _ in found] == odd[::-1]
    assert {r.item_id async for r in index.scan(3)} == set(odd)
    await index.remove_many(odd[:7])
    assert {r.item_id async for r in index.scan()} == set(odd[7:])


async def test_a_scan_sees_every_item_once(index: ItemIndex) -> None:
    await index.upsert_many([item(n) for n in range(130)])
    for batch_size in (1, 64, 65, 130, 1000):
        seen = {r.item_id: r async for r in index.scan(batch_size)}
        assert all(same(seen[f"item-{n}"], item(n)) for n in range(130))
        assert len(seen) == 130


async def test_vectors_that_do_not_fit_are_refused_and_nothing_written(index: ItemIndex) -> None:
    for vector in (np.zeros(64, np.float32), np.full(DIMENSION, np.nan, np.float32)):
        with pytest.raises(ItemIndexError) as refused:
            await index.upsert_many([item(1), item(2, vector=vector)])
        assert not refused.value.retryable
    assert await index.count() == 0
    for queries, k in ((np.zeros((1, 64), np.float32), 3), (np.zeros((1, DIMENSION), np.float32), 0)):
        with pytest.raises(ItemIndexError) as refused:
            await index.search_many(queries, k)
        assert not refused.value.retryable


async def test_opening_a_version_with_another_dimension_is_refused(stores: Stores, index: ItemIndex) -> None:
    with pytest.raises(ItemIndexError) as refused:
        await stores.items(version="v1", dimension=64)
    assert not refused.value.retryable


async def test_versions_and_prefixes_never_meet(deployment) -> None:  # type: ignore[no-untyped-def]
    opened = {}
    for prefix in ("", "shop"):
        stores = await deployment.open(prefix)
        for version in ("1", "1.0", "1~2e0"):
            opened[prefix, version] = index = await stores.items(version=version, dimension=DIMENSION)
            await index.upsert_many([item(0, item_id=f"{prefix} {version}", available=True)])
    for (prefix, version), index in opened.items():
        assert [r.item_id async for r in index.scan()] == [f"{prefix} {version}"]


async def test_an_index_that_was_shut_is_opened_again_with_all_it_held(deployment) -> None:  # type: ignore[no-untyped-def]
    if not deployment.durable:
        pytest.skip("this implementation lives in memory")
    index = await (await deployment.open()).items(version="v1", dimension=DIMENSION)
    await index.upsert_many([item(n) for n in range(300)])
    await index.remove_many([f"item-{n}" for n in range(50)])
    queries = np.random.default_rng(5).standard_normal((5, DIMENSION)).astype(np.float32)
    before = await index.search_many(queries, 10)
    await deployment.shut()

    index = await (await deployment.open()).items(version="v1", dimension=DIMENSION)
    assert await index.count() == 250
    for found, right in zip(await index.search_many(queries, 10), before, strict=True):
        assert [item_id for item_id, _ in found] == [item_id for item_id, _ in right]
    assert same((await index.get_many(["item-77"]))[0], item(77))


async def test_embeddings_are_there_when_an_index_is_opened_again(deployment) -> None:  # type: ignore[no-untyped-def]
    if not deployment.durable:
        pytest.skip("this implementation lives in memory")
    keeping = await (await deployment.open()).items(version="v1", dimension=DIMENSION, text_dimension=TEXT_DIMENSION)
    await keeping.upsert_many([item(n, text=embedding(n)) for n in range(150)])
    await deployment.shut()

    keeping = await (await deployment.open()).items(version="v1", dimension=DIMENSION)
    assert keeping.text_dimension == TEXT_DIMENSION
    for n, kept in enumerate(await keeping.texts([f"item-{n}" for n in range(150)])):
        assert kept is not None
        assert kept.embedding.tobytes() == embedding(n).tobytes()


async def test_a_dropped_version_is_gone_and_the_others_stay(deployment) -> None:  # type: ignore[no-untyped-def]
    stores, other = await deployment.open(), await deployment.open("shop")
    opened = {version: await stores.items(version=version, dimension=DIMENSION) for version in ("v1", "v2", "a.b~c")}
    theirs = await other.items(version="v1", dimension=DIMENSION)
    for index in (*opened.values(), theirs):
        await index.upsert_many([item(1)])
    assert sorted(await stores.item_versions()) == ["a.b~c", "v1", "v2"]
    await stores.drop_items("v1")
    await stores.drop_items("a.b~c")
    await stores.drop_items("nobody's")
    assert await stores.item_versions() == ["v2"]
    assert same((await opened["v2"].get_many(["item-1"]))[0], item(1))
    assert same((await theirs.get_many(["item-1"]))[0], item(1))
    again = await stores.items(version="v1", dimension=DIMENSION - 1)
    assert await again.count() == 0


async def test_a_dropped_version_stays_gone_after_a_restart(deployment) -> None:  # type: ignore[no-untyped-def]
    if not deployment.durable:
        pytest.skip("this implementation lives in memory")
    stores = await deployment.open()
    for version in ("v1", "v2"):
        await (await stores.items(version=version, dimension=DIMENSION)).upsert_many([item(1)])
    await stores.drop_items("v1")
    await deployment.shut()
    assert await (await deployment.open()).item_versions() == ["v2"]
