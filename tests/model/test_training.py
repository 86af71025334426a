"""Training as the stream is played: from a file to a bundle that is served, and nothing learned from later events."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `train`")

from typer.testing import CliRunner

from export.review_value import export_review_value, open_review_value
from models.domain.errors import TrainingError
from models.domain.events import EventContract
from models.domain.features import FEATURES
from models.domain.read_values import read_values
from models.encoders.bundle import load_bundle
from models.learning.log import LogBuilder
from models.learning.reviews import fit_reader
from streams.cli import backtest, train
from streams.cli import bundle as bundle_command
from tests.domain.helpers import OPTIONS

pytestmark = pytest.mark.train
USERS, ITEMS, EVENTS = 40, 60, 1_600
KINDS = ("", "click", "hide", "review", "search")
SEARCHES = ("something of camp 0", "something of camp 1")
WORDS = ("broken, sent it back", "rather poor", "it does what it should", "good and sturdy", "superb, a joy")


def write_stream(folder: Path) -> tuple[Path, Path]:
    """Two camps of users; each walks through its half of the catalogue in order, with detours, searches and hides.

    Every fifth review says in words alone what it thinks of the item.
    """
    rng = np.random.default_rng(0)
    places = rng.integers(0, ITEMS // 2, USERS)
    events, items = folder / "events.jsonl", folder / "items.jsonl"
    with events.open("w") as out:
        for n in range(EVENTS):
            user = int(rng.integers(USERS))
            event: dict[str, object] = {"event_id": f"e{n}", "user_id": f"u{user}", "event_time_ms": n * 60_000}
            places[user] = (places[user] + 1) % (ITEMS // 2)
            item = 2 * int(places[user]) + user % 2 if rng.random() < 0.9 else int(rng.integers(ITEMS))
            kind = KINDS[1 + int(rng.choice(4, p=[0.4, 0.05, 0.5, 0.05]))]
            event["type"] = kind
            if kind == "search":
                event["text"] = SEARCHES[user % 2]
            else:
                event["item_id"] = f"i{item}"
            if kind == "review":
                value = int(rng.integers(1, 6))
                event["text"] = WORDS[value - 1]
                if n % 5:
                    event["value"] = float(value)
            out.write(json.dumps(event) + "\n")
    with items.open("w") as out:
        for n in range(ITEMS - 4):  # the last ones are never declared
            out.write(json.dumps({"item_id": f"i{n}", "title": f"Thing {n // 2} of camp {n % 2}"}) + "\n")
    return events, items


def read(path: Path) -> list[object]:
    contract = EventContract()
    return [contract.decode_event(line) for line in path.read_bytes().splitlines()]


def test_a_log_cut_at_an_event_holds_nothing_of_later(tmp_path: Path) -> None:
    events = read(write_stream(tmp_path)[0])
    texts = {text: np.full(4, float(n), np.float32) for n, text in enumerate([*SEARCHES, *WORDS])}
    whole = LogBuilder(events, ["i0", "i1"], np.ones((2, 4), np.float32), texts, KINDS, OPTIONS)
    for end in (0, 1, 700, EVENTS):
        cut = whole.until(end)
        part = LogBuilder(events[:end], ["i0", "i1"], np.ones((2, 4), np.float32), texts, KINDS, OPTIONS)
        alone = part.until(end)
        assert part.item_ids == whole.item_ids[: cut.items]
        for name in ("user", "item", "kind", "strength", "value", "time_ms", "text", "target", "item_text"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(alone, name))
    log = whole.until(EVENTS)
    assert set(np.unique(log.kind)) == {1, 2, 3, 4}
    assert (log.item[log.kind == 4] == -1).all()
    assert (log.text[log.kind == 4] >= 0).all()
    assert (log.strength[log.kind == 2] < 0).all()
    assert not log.target[np.isin(log.kind, (2, 4))].any()


def test_a_reader_fills_the_gaps_of_what_was_played_and_nothing_of_later(tmp_path: Path) -> None:
    events = read(write_stream(tmp_path)[0])
    texts = {text: np.eye(8, dtype=np.float32)[n] for n, text in enumerate([*SEARCHES, *WORDS])}
    assert fit_reader(events[:800], texts, OPTIONS) is None, "too few reviews"
    fitted = fit_reader(events, texts, OPTIONS)
    assert fitted is not None
    builder = LogBuilder(events, [], np.ones((0, 8), np.float32), texts, KINDS, OPTIONS)
    given = builder.until(EVENTS).value.copy()
    gaps = [at for at, event in enumerate(events) if event.type == "review" and event.value is None]
    reader = open_review_value(export_review_value(*fitted)[0])
    builder.fill(read_values(reader, enumerate(events[:1_000]), texts))
    filled = builder.until(EVENTS).value
    changed = np.flatnonzero(filled != given)
    assert changed.tolist() == [at for at in gaps if at < 1_000]
    wanted = [(1 + WORDS.index(events[at].text)) / 5 for at in changed]
    np.testing.assert_allclose(filled[changed], wanted, atol=0.1)


def test_a_log_that_is_too_short_is_refused_with_a_reason(tmp_path: Path) -> None:
    events, _ = write_stream(tmp_path)
    short = tmp_path / "short.jsonl"
    short.write_text("".join(events.read_text().splitlines(keepends=True)[:300]))
    common = [str(short), "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "bundle")]
    result = CliRunner().invoke(train.app, common)
    assert isinstance(result.exception, TrainingError)
    assert "300 events are too few" in str(result.exception)
    assert not (tmp_path / "bundle").exists()


def test_a_file_becomes_a_bundle_that_is_served_and_a_backtest_trains_on_the_way(tmp_path: Path) -> None:
    events, items = write_stream(tmp_path)
    run = CliRunner()
    common = ["--items", str(items), "--data-dir", str(tmp_path / "data")]
    out, lists = tmp_path / "b.json", tmp_path / "b.jsonl"
    result = run.invoke(backtest.app, [str(events), *common, "--train", "--json", str(out), "--lists", str(lists)])
    assert result.exit_code == 0, result.output
    figures = msgspec.json.decode(out.read_bytes())
    assert figures["ndcg_at_10"] > 0.6, "by chance it is .08"
    assert len(lists.read_text().splitlines()) == figures["scored_events"]

    bundle = tmp_path / "bundle"
    result = run.invoke(train.app, [str(events), *common, "--out", str(bundle), "--json", str(tmp_path / "t.json")])
    assert result.exit_code == 0, result.output
    told = msgspec.json.decode((tmp_path / "t.json").read_bytes())
    loaded = load_bundle(bundle, features=FEATURES)
    assert loaded.version == told["version"]
    assert 0.0 < told["validation_ndcg_at_10"] <= told["validation_recall"] <= 1.0
    assert loaded.ranker.initial_weights is None
    assert loaded.ranker.source_weights is not None
    assert loaded.item_encoder.known_items == ITEMS, "undeclared items were learned from their events"
    assert told["value_rmse_from_text"] < 0.5 * told["value_rmse_from_past"]
    assert loaded.review_value is not None
    stars = 5 * loaded.review_value.read_many(WORDS, loaded.text_encoder.encode_many(WORDS))
    np.testing.assert_allclose(stars, [1, 2, 3, 4, 5], atol=0.5)
    shown = run.invoke(bundle_command.app, ["show", str(bundle)]).output
    assert "as users give them, else read from their texts" in shown
    assert f"value_rmse_from_text {told['value_rmse_from_text']:.4f}" in shown
    served = run.invoke(
        backtest.app, [str(events), *common, "--bundle", str(bundle), "--json", str(tmp_path / "s.json")]
    )
    assert served.exit_code == 0, served.output
    assert msgspec.json.decode((tmp_path / "s.json").read_bytes())["model_version"] == loaded.version
