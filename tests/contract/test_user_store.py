"""What every UserStore must do, checked over every implementation; the exact one says what is right."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
import numpy as np
import pytest

from models.domain.errors import StoreError, UserStoreError
from models.domain.ports import Stores, UserRecord, UserStore
from streams.stores.exact import ExactUserStore

DIMENSION, STATE_SIZE = 65, 256

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")


def user_key(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def record(number: int, revision: int = 1, body: bytes | None = None) -> UserRecord:
    rng = np.random.default_rng([number, revision])
    return UserRecord(
        user_key=user_key(number),
        revision=revision,
        embedding=rng.standard_normal(DIMENSION).astype(np.float32),
        state=rng.standard_normal(STATE_SIZE).astype(np.float32),
        body=rng.bytes(4000) if body is None else body,
    )


def same(left: UserRecord | None, right: UserRecord | None) -> bool:
    """Equal to the bit, and arrays of the promised type."""
    if left is None or right is None:
        return left is right
    return (
        (left.user_key, left.revision, left.body) == (right.user_key, right.revision, right.body)
        and left.embedding.dtype == left.state.dtype == np.float32
        and left.embedding.tobytes() == right.embedding.tobytes()
        and left.state.tobytes() == right.state.tobytes()
    )


@pytest.fixture
async def users(stores: Stores) -> UserStore:
    return await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)


async def test_what_was_saved_is_loaded_to_the_bit(users: UserStore) -> None:
    extremes = np.array([0.0, -0.0, 1e-45, -3.4028235e38, np.inf, np.pi], np.float32)
    odd = msgspec.structs.replace(record(0), state=np.resize(extremes, STATE_SIZE))
    saved = [odd, *(record(n) for n in range(1, 300)), record(300, body=b""), record(301, body=bytes(range(256)))]
    await users.save_many(saved)
    loaded = await users.load_many([r.user_key for r in saved])
    assert all(same(*pair) for pair in zip(loaded, saved, strict=True))


async def test_a_user_of_2_to_the_40_revisions_keeps_them_all(users: UserStore) -> None:
    await users.save_many([record(1, 2**40)])
    await users.save_many([record(1, 2**40 + 1)])
    await users.save_many([record(1, 2**40)])
    assert same((await users.load_many([user_key(1)]))[0], record(1, 2**40 + 1))


async def test_unknown_users_are_none_and_the_order_is_the_one_asked(users: UserStore) -> None:
    await users.save_many([record(n) for n in range(5)])
    asked = [4, 99, 0, 2, 98, 4]
    loaded = await users.load_many([user_key(n) for n in asked])
    assert [None if r is None else r.user_key for r in loaded] == [user_key(n) if n < 5 else None for n in asked]


async def test_asking_and_saving_nothing_is_allowed(users: UserStore) -> None:
    await users.save_many([])
    assert await users.load_many([]) == []
    assert await users.count() == 0
    assert [r async for r in users.scan()] == []


async def test_a_smaller_or_equal_revision_never_wins(users: UserStore) -> None:
    await users.save_many([record(1, 5)])
    for late in (1, 4, 5):
        await users.save_many([msgspec.structs.replace(record(1, late), body=b"zombie")])
        assert same((await users.load_many([user_key(1)]))[0], record(1, 5))
    await users.save_many([record(1, 6)])
    assert same((await users.load_many([user_key(1)]))[0], record(1, 6))


async def test_a_mixed_batch_writes_the_new_and_newer_and_leaves_the_rest(users: UserStore) -> None:
    await users.save_many([record(n, 10) for n in range(200)])
    await users.save_many([record(n, 5 + n % 10) for n in range(300)])
    loaded = await users.load_many([user_key(n) for n in range(300)])
    expected = [record(n, max(10, 5 + n % 10) if n < 200 else 5 + n % 10) for n in range(300)]
    assert all(same(*pair) for pair in zip(loaded, expected, strict=True))


async def test_a_user_twice_in_a_batch_is_as_if_saved_one_after_the_other(users: UserStore) -> None:
    await users.save_many([record(1, 1), record(2, 9), record(1, 2), record(2, 3), record(1, 3)])
    one, two = await users.load_many([user_key(1), user_key(2)])
    assert same(one, record(1, 3))
    assert same(two, record(2, 9))


async def test_saves_and_loads_in_any_order_agree_with_the_exact_store(users: UserStore) -> None:
    exact = ExactUserStore("0", STATE_SIZE, DIMENSION)
    rng = np.random.default_rng(7)
    for _ in range(30):
        batch = [record(int(n), int(rng.integers(1, 6))) for n in rng.integers(0, 40, size=rng.integers(1, 30))]
        await users.save_many(batch)
        await exact.save_many(batch)
        asked = [user_key(int(n)) for n in rng.integers(0, 50, size=20)]
        for left, right in zip(await users.load_many(asked), await exact.load_many(asked), strict=True):
            assert same(left, right)
    assert await users.count() == await exact.count()


async def test_a_scan_sees_every_user_once(users: UserStore) -> None:
    await users.save_many([record(n) for n in range(130)])
    for batch_size in (1, 64, 65, 130, 1000):
        seen = [r async for r in users.scan(batch_size)]
        assert len(seen) == 130
        assert all(same(r, record(number)) for number, r in enumerate(sorted(seen, key=_number)))


def _number(user: UserRecord) -> int:
    return _NUMBERS[user.user_key]


_NUMBERS = {user_key(number): number for number in range(1000)}


async def test_a_scan_left_early_leaves_the_store_usable(users: UserStore) -> None:
    await users.save_many([record(n) for n in range(20)])
    for _ in range(40):
        async for _ in users.scan(4):
            break
    assert await users.count() == 20
    assert len([r async for r in users.scan(4)]) == 20


async def test_arrays_changed_after_saving_change_nothing_stored(users: UserStore) -> None:
    mine = record(1)
    await users.save_many([mine])
    mine.state[:] = 0
    mine.embedding[:] = 0
    assert same((await users.load_many([user_key(1)]))[0], record(1))


async def test_loaded_arrays_belong_to_the_caller(users: UserStore) -> None:
    await users.save_many([record(1)])
    (loaded,) = await users.load_many([user_key(1)])
    assert loaded is not None
    assert loaded.state.flags.writeable
    assert loaded.embedding.flags.writeable


@pytest.mark.parametrize(("state_size", "dimension"), [(STATE_SIZE, 64), (255, DIMENSION)])
async def test_a_record_of_another_size_is_refused_and_nothing_written(
    users: UserStore, state_size: int, dimension: int
) -> None:
    wrong = msgspec.structs.replace(
        record(2), embedding=np.zeros(dimension, np.float32), state=np.zeros(state_size, np.float32)
    )
    with pytest.raises(UserStoreError) as refused:
        await users.save_many([record(1), wrong])
    assert not refused.value.retryable
    assert await users.count() == 0


async def test_a_key_that_is_no_uuid_is_refused_for_good(users: UserStore) -> None:
    with pytest.raises(UserStoreError) as refused:
        await users.save_many([msgspec.structs.replace(record(1), user_key="alice")])
    assert not refused.value.retryable


@pytest.mark.parametrize(("state_size", "dimension"), [(STATE_SIZE, 64), (255, DIMENSION)])
async def test_opening_a_generation_with_other_sizes_is_refused(
    stores: Stores, users: UserStore, state_size: int, dimension: int
) -> None:
    with pytest.raises(UserStoreError) as refused:
        await stores.users(state_size=state_size, dimension=dimension)
    assert not refused.value.retryable


async def test_a_generation_is_filled_beside_the_live_one_and_switched_to(stores: Stores) -> None:
    live = await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)
    await live.save_many([record(1, 7)])
    assert await stores.user_generation() == "0"
    rebuilt = await stores.users(state_size=STATE_SIZE, dimension=DIMENSION, generation="rebuilt 1.0/ü")
    await rebuilt.save_many([record(1, 3), record(2, 1)])
    assert same((await live.load_many([user_key(1)]))[0], record(1, 7))
    assert await stores.user_generation() == "0"

    await stores.switch_users("rebuilt 1.0/ü")
    assert await stores.user_generation() == "rebuilt 1.0/ü"
    now_live = await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)
    one, two = await now_live.load_many([user_key(1), user_key(2)])
    assert same(one, record(1, 3))
    assert same(two, record(2, 1))


async def test_who_still_holds_a_dropped_generation_is_refused_for_good(stores: Stores) -> None:
    former = await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)
    await former.save_many([record(1)])
    await stores.users(state_size=STATE_SIZE, dimension=DIMENSION, generation="1")
    await stores.switch_users("1")
    with pytest.raises(UserStoreError) as written:
        await former.save_many([record(1, 2)])
    with pytest.raises(UserStoreError) as read:
        await former.load_many([user_key(1)])
    assert not written.value.retryable
    assert not read.value.retryable
    collections = (await stores.describe())["collections"]
    assert isinstance(collections, dict)
    assert list(collections.values()) == [0]


async def test_switching_to_the_live_generation_keeps_it(stores: Stores, users: UserStore) -> None:
    await users.save_many([record(1)])
    await stores.switch_users("0")
    assert await users.count() == 1


async def test_switching_to_a_generation_that_is_not_there_is_refused(stores: Stores, users: UserStore) -> None:
    await users.save_many([record(1)])
    with pytest.raises(UserStoreError):
        await stores.switch_users("nowhere")
    assert await stores.user_generation() == "0"
    assert await users.count() == 1


async def test_two_prefixes_never_meet(deployment) -> None:  # type: ignore[no-untyped-def]
    prefixes = ["", "shop", "shop_users", "shop.users_0"]
    opened = {}
    for number, prefix in enumerate(prefixes):
        stores = await deployment.open(prefix)
        opened[prefix] = users = await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)
        await users.save_many([record(number)])
    for number, prefix in enumerate(prefixes):
        assert [same(r, record(number)) async for r in opened[prefix].scan()] == [True]


async def test_a_store_that_was_shut_is_opened_again_with_all_it_held(deployment) -> None:  # type: ignore[no-untyped-def]
    if not deployment.durable:
        pytest.skip("this implementation lives in memory")
    stores = await deployment.open()
    rebuilt = await stores.users(state_size=STATE_SIZE, dimension=DIMENSION, generation="1")
    await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)
    await rebuilt.save_many([record(n, n + 1) for n in range(200)])
    await stores.switch_users("1")
    await deployment.shut()

    stores = await deployment.open()
    assert await stores.user_generation() == "1"
    users = await stores.users(state_size=STATE_SIZE, dimension=DIMENSION)
    loaded = await users.load_many([user_key(n) for n in range(200)])
    assert all(same(r, record(n, n + 1)) for n, r in enumerate(loaded))
    await users.save_many([record(n, 100) for n in range(200)])
    loaded = await users.load_many([user_key(n) for n in range(200)])
    assert all(same(r, record(n, max(100, n + 1))) for n, r in enumerate(loaded))


async def test_calls_side_by_side_are_each_answered_with_their_own(users: UserStore) -> None:
    async def write_and_read(number: int) -> bool:
        await users.save_many([record(number)])
        return same((await users.load_many([user_key(number)]))[0], record(number))

    assert all(await asyncio.gather(*(write_and_read(n) for n in range(100))))


async def test_a_writer_racing_a_zombie_ends_with_the_largest_revision(users: UserStore) -> None:
    revisions = [int(r) for r in np.random.default_rng(3).permutation(60)]
    await asyncio.gather(*(users.save_many([record(n, r) for n in range(4)]) for r in revisions))
    assert all(same(r, record(n, 59)) for n, r in enumerate(await users.load_many([user_key(n) for n in range(4)])))


async def test_a_store_describes_itself_and_answers_a_ping(stores: Stores, users: UserStore) -> None:
    await users.save_many([record(n) for n in range(3)])
    await stores.ping()
    described = await stores.describe()
    assert described["user_generation"] == "0"
    collections = described["collections"]
    assert isinstance(collections, dict)
    assert list(collections.values()) == [3]
    assert all(described[key] for key in ("technology", "version"))


async def test_a_generation_without_a_name_or_with_an_endless_one_is_refused(stores: Stores) -> None:
    for generation in ("", "g" * 300):
        with pytest.raises(StoreError) as refused:
            await stores.users(state_size=STATE_SIZE, dimension=DIMENSION, generation=generation)
        assert not refused.value.retryable
