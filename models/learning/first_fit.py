"""The first model of a deployment that began without a trained one: fitted in stages on the records so far.

As in `models.learning.training`, the ranker learns from what the encoder said of events it had not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.domain.feedback import Feedback
from models.learning.contenders import Challenger, reached_by_sources
from models.learning.encoder_trainer import EncoderTrainer
from models.learning.feedback_log import FeedbackLog
from models.learning.lists import ListBuffer
from models.learning.online_config import OnlineConfig
from models.learning.ranker_trainer import RankerTrainer
from models.learning.rescoring import described_anew, served_lists
from models.learning.training_state import TrainingState


def fit_first(
    log: FeedbackLog,
    records: Sequence[Feedback],
    start: int,
    lists: ListBuffer,
    config: OnlineConfig,
    seed: int,
) -> Challenger | None:
    """
    Args:
        start: number of the first of the records' events in the log; they stand at its end.
        lists: filled with the lists that the ranker learns from.
    Returns: None where no list held what was chosen: there is nothing to train a ranker on yet.
    """
    served, _ = served_lists(records, log.number_items)
    whole = log.log
    encoders = EncoderTrainer(
        config.encoder,
        items=whole.items,
        kinds=len(whole.kinds),
        text_dimension=whole.item_text.shape[1],
        seed=seed,
    )
    place = 0
    for share, epochs in zip(config.first_stages, config.first_epochs, strict=True):
        upto = int(share * len(records))
        if place:
            # What lies between two marks, foreseen by an encoder that knows what lies before the first of them.
            part = served.take((served.row >= place) & (served.row < upto))
            users = np.empty((len(records), config.encoder.network.width + 1), np.float32)
            users[place:upto] = encoders.users_before(whole, start + place, start + upto)
            vectors = encoders.served().item_vectors(whole.item_text)
            features = described_anew(part, records, users, vectors, log.items.__getitem__)
            lists.extend(part._replace(features=features).lists().widened(config.candidates))
        encoders.fit(whole, start + upto, epochs=epochs)
        place = upto
    if not len(lists):
        return None
    rankers = RankerTrainer(config.ranker, seed)
    rankers.fit_latest(lists.lists, int((1.0 - config.validation) * len(lists)))
    reached, reachable = reached_by_sources(records)
    state = TrainingState.of(
        encoders,
        rankers,
        item_ids=tuple(log.item_ids),
        kinds=log.kinds,
        candidates=config.candidates,
        reached=reached,
        reachable=reachable,
        events=len(whole),
        lists=len(lists),
        until_ms=max(record.event_time_ms for record in records),
    )
    return Challenger(state, config.encoder, config.ranker, lists, seed)
