"""What `train` and `backtest --train` share: a log of events, the networks that learn from it, the bundle they become.

The only module of the command line that loads torch, and only when it is asked to train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.domain.events import Event
from models.domain.features import FEATURES, PRESENCE

if TYPE_CHECKING:
    from models.domain.ports import F32, Ranker, UserEncoder, ValueReader
    from models.learning.contenders import Serving
    from models.learning.encoder_weights import EncoderWeights
    from models.learning.ranker_weights import RankerWeights
    from models.learning.reviews import FittedReader
    from models.learning.training import Training
    from streams.cli.replaying import Prepared


def serving() -> Serving:
    """Weights in the form in which a worker serves them, without a bundle on disk."""
    from export.learned import open_user_tower
    from export.ranker_graph import ranker_graph
    from models.encoders.ranker import OnnxRanker
    from models.encoders.session import CPU, open_session
    from models.learning.contenders import Serving

    def ranker(weights: RankerWeights, candidates: int, worth: F32) -> Ranker:
        session = open_session("ranker", ranker_graph(weights, PRESENCE), [CPU], 1)
        return OnnxRanker(
            session, features=FEATURES, initial_weights=None, candidates=candidates, source_weights=worth.tolist()
        )

    return Serving(open_user_tower, ranker)


def make_training(events: Sequence[Event], prepared: Prepared, *, seed: int, report: Callable[[str], None]) -> Training:
    from export.review_value import export_review_value, open_review_value
    from models.learning.log import LogBuilder
    from models.learning.training import Training, TrainingConfig, use_threads

    use_threads(1)  # both networks are small: a second thread gains a fifth and takes a core
    kinds, ids = prepared.bundle.user_encoder.kinds, prepared.pipeline.catalogue.ids
    builder = LogBuilder(events, ids, prepared.item_text, prepared.texts, kinds, prepared.options)
    form = serving()

    def make_encoder(weights: EncoderWeights) -> UserEncoder:
        return form.encoder(weights, kinds)

    def make_reader(fitted: FittedReader) -> ValueReader:
        return open_review_value(export_review_value(*fitted)[0])

    return Training(
        builder,
        TrainingConfig(),
        items=prepared.items,
        seed=seed,
        make_encoder=make_encoder,
        make_ranker=form.ranker,
        make_reader=make_reader,
        report=report,
    )


def write_learned(out: Path, training: Training, prepared: Prepared) -> Path:
    """The training's networks as a bundle at `out`. Raises: BundleError, ParityError."""
    from export.learned import build_learned, open_towers
    from export.parity import check_parity
    from export.ranker_graph import ranker_graph
    from export.review_value import export_review_value

    weights = training.encoders.served()
    ids = training.builder.item_ids[: len(weights.item_id)]
    found = check_parity(weights, *open_towers(weights, ids, training.builder.kinds), ids)
    training.report(
        f"parity of torch and ONNX: largest difference {found.worst:.1e}, top-10 overlap {found.top_overlap:.3f}"
    )
    return build_learned(
        out,
        parent=prepared.bundle.version,
        text_model=prepared.bundle_path,
        weights=weights,
        item_ids=ids,
        ranker_graph=ranker_graph(training.rankers.weights(), PRESENCE),
        features=FEATURES,
        kinds=training.builder.kinds,
        candidates=training.config.candidates,
        source_weights=training.worth().tolist(),
        value_scale=prepared.options.value_scale,
        review_value=None if training.fitted_reader is None else export_review_value(*training.fitted_reader)[0],
        training=training.state().encode(),
        metrics=training.metrics,
    )
