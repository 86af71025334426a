"""Values read from texts: the encoder is told them, and nobody else."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from models.domain.events import Event, Interaction
from models.domain.pipeline import SLICE, Pipeline
from models.domain.ports import F32, NO_VALUE, EventInputs
from models.domain.state import StoredBody, pack, unpack, unpack_body
from streams.cli.states import exported
from tests.domain.helpers import (
    OPTIONS,
    BankEncoder,
    LearnedRanker,
    Player,
    catalogue_of,
    click,
    decode,
    dump_bytes,
    hide,
    records,
    run,
    search,
)


class ValueEncoder(BankEncoder):
    """The last place of its state is a running sum of the values it was told, halved each time."""

    def step(self, state: F32, inputs: EventInputs) -> tuple[F32, F32]:
        values = state[:, -1] / 2 + inputs.value
        state, user = super().step(state, inputs)
        state[:, -1] = values
        user[:, -2] = state[:, -1]
        return state, user


class WordReader:
    """Knows a good word and a bad one; counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def read_many(self, texts: Sequence[str], embeddings: F32) -> F32:
        self.calls += 1
        assert embeddings.shape == (len(texts), BankEncoder.text_dimension)
        shares = [NO_VALUE if not text.strip() else 0.9 if "good" in text else 0.125 for text in texts]
        return np.array(shares, np.float32)


def make(reader: WordReader | None, model_version: str = "m1") -> Pipeline:
    return Pipeline(
        encoder=ValueEncoder(),
        ranker=LearnedRanker(),
        model_version=model_version,
        options=OPTIONS,
        catalogue=catalogue_of(30, title="Heat"),
        reader=reader,
    )


def review(user: str, item: str, at: int, text: str | None, value: float | None = None) -> Interaction:
    return click(user, item, at, kind="review", text=text, value=value)


def mixed(count: int) -> list[Event]:
    rng, events = np.random.default_rng(0), []
    for n in range(count):
        user, item = f"u{rng.integers(6)}", f"i{rng.integers(30)}"
        events.append(
            (
                review(user, item, n, "a good one"),
                review(user, item, n, "broken"),
                review(user, item, n, "good", 1.0),
                review(user, item, n, None),
                review(user, item, n, "  "),
                search(user, "good strings", n),
                hide(user, item, n),
            )[n % 7]
        )
    return events


def value_seen(pipeline: Pipeline, event: Event) -> float:
    state = run(pipeline, records([event])).states[str(event.user_id)]
    return float(state.memory[-1])


@pytest.mark.parametrize(
    ("event", "seen"),
    [
        (review("u", "i1", 0, "good"), 0.9),
        (review("u", "i1", 0, "broken"), 0.125),
        (review("u", "i1", 0, "broken", 5.0), 1.0),
        (review("u", "i1", 0, "  "), NO_VALUE),
        (review("u", "i1", 0, None), NO_VALUE),
        (search("u", "good", 0), NO_VALUE),
    ],
)
def test_the_encoder_is_told_what_was_read_where_no_value_was_given(event: Event, seen: float) -> None:
    assert value_seen(make(WordReader()), event) == pytest.approx(seen)
    given = NO_VALUE if getattr(event, "value", None) is None else 1.0
    assert value_seen(make(None), event) == given


def test_statistics_likings_and_reasons_hold_what_users_said() -> None:
    """Lists differ, for users do; what is counted and what is shown of a user's own doings does not."""
    with_reader, without = Player(make(WordReader())), Player(make(None))
    log = records([e for e in mixed(300) if not isinstance(e, Interaction) or e.value is None])
    for player in (with_reader, without):
        player.play(log)
    assert with_reader.published != without.published
    assert dump_bytes(with_reader.pipeline.statistics) == dump_bytes(without.pipeline.statistics)
    assert all(one.value is None for state in with_reader.states.values() for one in state.recent)
    reasons = {item.reason for _, data in with_reader.published for item in decode(data).items}
    owed = {reason for reason in reasons if reason.startswith("because")}
    assert owed == {"because you reviewed Heat"}, "no stars that the user never gave"


def test_without_a_gap_to_fill_nothing_is_asked_and_nothing_differs() -> None:
    reader = WordReader()
    log = records([e for e in mixed(300) if getattr(e, "value", None) is not None or not isinstance(e, Interaction)])
    with_reader, without = Player(make(reader)).play(log), Player(make(None)).play(log)
    assert with_reader.fingerprint() == without.fingerprint()
    assert reader.calls == 0


def test_a_slice_is_read_in_one_call_and_cuts_change_nothing() -> None:
    log, reader = records(mixed(2 * SLICE)), WordReader()
    whole = Player(make(reader)).play(log)
    assert reader.calls == 2
    cut = Player(make(WordReader())).play(log, cuts=[1, 2, 40, 300])
    assert cut.fingerprint() == whole.fingerprint()


def test_what_was_read_is_stored_beside_the_missing_value_and_refolded_by_a_model_that_reads() -> None:
    pipeline = make(WordReader())
    states = run(pipeline, records([review("u", "i1", 0, "good"), review("u", "i2", 1, "bad", 5.0)])).states
    stored = pack(states["u"], pipeline.catalogue)
    state = unpack("u", stored, pipeline.catalogue)
    assert [(one.value, one.read_share) for one in state.recent] == [(None, pytest.approx(0.9)), (5.0, None)]
    shown = exported(stored)
    assert shown is not None
    assert [one.get("read_share") for one in shown["recent"]] == [pytest.approx(0.9), None]
    for reader, seen in ((WordReader(), 0.9 / 2 + 1.0), (None, NO_VALUE / 2 + 1.0)):
        refolded = make(reader, "m2").working_copy("u", state)
        assert refolded.memory[-1] == pytest.approx(seen)


def test_a_state_stored_before_values_were_read_is_read() -> None:
    pipeline = make(None)
    state = run(pipeline, records([review("u", "i1", 0, "good")])).states["u"]
    body = unpack_body(pack(state, pipeline.catalogue).body)
    assert body.read == []
    fields = [getattr(body, name) for name in StoredBody.__struct_fields__]
    former = msgspec.msgpack.encode(fields[: StoredBody.__struct_fields__.index("read")])
    assert unpack_body(former) == msgspec.structs.replace(body, tag=0)
