"""The one error tree of the project. Data travels as attributes: a policy acts on it without parsing text."""

from __future__ import annotations


class RecommenderError(Exception):
    """Root of every error the project raises on purpose."""


class EventDecodeError(RecommenderError):
    """A message that is no valid event, item or request.

    `reason` is a short stable word for metrics and dead-letter headers; `detail` names the field and the limit.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class StateError(RecommenderError):
    """A stored user state that cannot be read by this version."""


class StoreError(RecommenderError):
    """The vector store failed or refused. `retryable` says whether the same call may succeed later."""

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class UserStoreError(StoreError):
    """Reading or writing user states failed."""


class ItemIndexError(StoreError):
    """Reading, writing or searching item vectors failed."""


class EncoderError(RecommenderError):
    """An encoder could not be loaded or run."""


class BundleError(RecommenderError):
    """A bundle that must not be served."""


class ParityError(BundleError):
    """A graph whose outputs differ from its source by more than the stated tolerance."""


class IncompatibleBundleError(BundleError):
    """A sound bundle that does not fit this catalogue, state or feature list."""


class SettingsError(RecommenderError):
    """Settings that cannot work, with the name of the setting and how to mend it."""


class TrainingError(RecommenderError):
    """A log that nothing can be learned from."""
