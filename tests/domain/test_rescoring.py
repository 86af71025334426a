"""A served list described anew by the same encoder is the list that was served; by another one, that one's."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from models.domain.features import ENCODER_FEATURES, FEATURES
from models.domain.feedback import Feedback
from models.domain.state import RECENT_LENGTH
from models.learning.feedback_log import FeedbackLog
from models.learning.rescoring import described_anew, histories_of, places, served_lists, users_before
from tests.domain.helpers import (
    OPTIONS,
    WIDTH,
    BankEncoder,
    LearnedRanker,
    Player,
    catalogue_of,
    click,
    make_pipeline,
    records,
)

ITEMS = 60
BY_ENCODER = [FEATURES.index(name) for name in ENCODER_FEATURES]


class Scene:
    """A log that was played, what was told of it, and the item vectors in the trainer's numbering."""

    def __init__(self, events: int = 300, users: int = 6) -> None:
        rng = np.random.default_rng(0)
        made = [
            click(f"u{rng.integers(users)}", f"i{min(int(rng.exponential(15)), ITEMS - 1)}", 60 * n, event_id=f"e{n}")
            for n in range(events)
        ]
        pipeline = make_pipeline(
            catalogue_of(ITEMS), options=OPTIONS._replace(feedback=True, publish=False), ranker=LearnedRanker()
        )
        self.player = Player(pipeline).play(records(made))
        found = [one.record for result in self.player.results for one in result.feedback]
        self.records = [record for record in found if isinstance(record, Feedback)]
        self.log = FeedbackLog(BankEncoder.kinds, OPTIONS, WIDTH)
        self.log.add(self.records, {})
        self.served, self.bad = served_lists(self.records, self.log.number_items)
        catalogue = pipeline.catalogue
        self.vectors = catalogue.vectors[[catalogue.index[item_id] for item_id in self.log.item_ids]]
        self.ranker = pipeline.ranker

    def users(self, encoder: BankEncoder) -> np.ndarray:
        histories = histories_of(self.records, OPTIONS, self.log.number_items, self.log.past_text)
        return users_before(len(self.records), histories, encoder, self.vectors)

    def anew(self, encoder: BankEncoder) -> np.ndarray:
        return described_anew(self.served, self.records, self.users(encoder), self.vectors, self.log.items.__getitem__)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def test_the_encoder_that_served_gives_the_features_that_were_served(scene: Scene) -> None:
    assert scene.bad == []
    assert len(scene.served.row) > 60
    short = np.array([len(scene.records[row].history) < RECENT_LENGTH for row in scene.served.row])
    assert short.any()
    anew = scene.anew(BankEncoder())
    for name, column in zip(ENCODER_FEATURES, BY_ENCODER, strict=True):
        own, was = (each[short][..., column].astype(np.float32) for each in (anew, scene.served.features))
        if name == "encoder_rank":
            # Two candidates within half precision's reach of each other may change places.
            assert np.mean(np.abs(own - was) > 1e-3) < 1e-2
        else:
            np.testing.assert_allclose(own, was, rtol=2e-3, atol=2e-3, err_msg=name)
    others = [column for column in range(len(FEATURES)) if column not in BY_ENCODER]
    np.testing.assert_array_equal(anew[..., others], scene.served.features[..., others])


def test_a_history_longer_than_what_is_remembered_is_read_from_its_end() -> None:
    """Of what happened more than fifty events ago the encoder knows next to nothing any more."""
    scene = Scene(events=400, users=2)
    long = np.array([len(scene.records[row].history) == RECENT_LENGTH for row in scene.served.row])
    assert long.any()
    column = FEATURES.index("encoder_score")
    own, was = (
        each[long][..., column].astype(np.float32) for each in (scene.anew(BankEncoder()), scene.served.features)
    )
    assert np.corrcoef(own.ravel(), was.ravel())[0, 1] > 0.95


def test_another_encoder_says_something_else_of_the_same_candidates(scene: Scene) -> None:
    class Contrary(BankEncoder):
        def sequence(self, state, inputs, mask):  # type: ignore[no-untyped-def]
            state, users = super().sequence(state, inputs, mask)
            users[:, :-1] *= -1
            return state, users

    column = FEATURES.index("encoder_score")
    served, anew = scene.anew(BankEncoder())[..., column], scene.anew(Contrary())[..., column]
    live = np.arange(served.shape[1]) < scene.served.size[:, None]
    np.testing.assert_allclose(anew[live].astype(np.float32), -served[live].astype(np.float32), atol=2e-3)


def test_the_place_of_what_was_chosen_is_that_of_the_served_list_and_a_miss_where_it_was_no_candidate(
    scene: Scene,
) -> None:
    found = places(scene.served, scene.served.features, scene.ranker, len(scene.records))
    asked = 0
    for place, record in zip(found, scene.records, strict=True):
        if record.candidates is None:
            assert place == np.inf
        elif record.candidates.chosen < 0:
            assert (place, record.candidates.place) == (np.inf, 0)
        else:
            asked += 1
            served = record.candidates.place
            assert abs(place - served) <= 1 if served else place > OPTIONS.list_length - 1
    assert asked


def test_a_list_that_cannot_be_read_is_named_and_left_out(scene: Scene) -> None:
    asked = [record for record in scene.records if record.candidates is not None and record.candidates.chosen >= 0]
    whole = asked[0].candidates
    assert whole is not None
    spoiled = [
        msgspec.structs.replace(whole, features=whole.features[:-3]),
        msgspec.structs.replace(whole, features=whole.features[: len(whole.items) * 2 * 5]),
        msgspec.structs.replace(
            whole, features=np.full((len(whole.items), len(FEATURES)), np.nan, np.float16).tobytes()
        ),
        msgspec.structs.replace(whole, chosen=len(whole.items)),
        msgspec.structs.replace(whole, chosen=(whole.chosen + 1) % len(whole.items)),
        whole,
    ]
    made = [msgspec.structs.replace(asked[0], candidates=each) for each in spoiled]
    served, bad = served_lists(made, scene.log.number_items)
    assert bad == [0, 1, 2, 3, 4]
    assert served.row.tolist() == [5]
    none, bad = served_lists([], scene.log.number_items)
    assert (len(none.row), bad) == (0, [])
    assert len(places(none, none.features, scene.ranker, 0)) == 0
