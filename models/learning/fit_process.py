"""Whole fits in a process beside the trainer's, so that its rounds go on meanwhile."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from models.learning.whole_fit import FitError, Fitted, WholeFit, read_fitted, write_job

if TYPE_CHECKING:
    from typing import IO

log = logging.getLogger(__name__)

# A process that is told to end is given so long before it is killed.
GRACE_SECONDS = 5.0
# Of what a process that failed said, as much as tells why.
LAST_WORDS = 2_000


class FitProcess:
    """`models.learning.whole_fit.Fits`: `python -m models.learning.whole_fit`, which ends when this process does.

    Args:
        directory: for the job and its result; what is left in it is removed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._job: WholeFit | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._since = 0.0
        shutil.rmtree(directory, ignore_errors=True)

    def begin(self, job: WholeFit) -> None:
        self.abandon()
        self._since = time.monotonic()
        try:
            write_job(self._directory, job)
            self._errors = (self._directory / "errors").open("w+b")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "models.learning.whole_fit", str(self._directory)],
                stdin=subprocess.PIPE,
                stdout=self._errors,
                stderr=self._errors,
            )
        except (OSError, FitError) as error:
            self.abandon()
            log.error("a whole fit could not begin: %s", error)
            raise FitError(f"a whole fit could not begin: {error}") from error
        # What the process reads from disk is not held here as well.
        self._job = job._replace(lists=None)
        log.info("a whole fit began", extra={"events": job.end, "lists": 0 if job.lists is None else len(job.lists.at)})

    @property
    def busy(self) -> bool:
        return self._process is not None

    def take(self) -> Fitted | None:
        process, job = self._process, self._job
        assert process is not None
        assert job is not None
        if process.poll() is None:
            return None
        try:
            if process.returncode != 0:
                raise FitError(f"a whole fit ended with status {process.returncode}: {self._last_words()}")
            found = read_fitted(self._directory, job)
        except FitError as error:
            log.error("%s", error)
            raise
        finally:
            self.abandon()
        log.info("a whole fit ended", extra={"seconds": round(time.monotonic() - self._since, 1)})
        return found

    def abandon(self) -> None:
        process, self._process, self._job = self._process, None, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._errors is not None:
            self._errors.close()
            self._errors = None
        shutil.rmtree(self._directory, ignore_errors=True)

    def _last_words(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-LAST_WORDS:].strip()
