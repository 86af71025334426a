"""Training curves for TensorBoard. Knows no network: it is told an epoch and a loss."""

from __future__ import annotations

from pathlib import Path

from models.domain.errors import SettingsError


class TensorBoardProgress:
    """A `Progress` that writes the loss of each epoch as an event file under `directory`.

    Raises: SettingsError where TensorBoard is not installed.
    """

    def __init__(self, directory: Path, name: str = "encoder") -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingsError("training curves need TensorBoard: pip install tensorboard") from error
        self.name = name
        self.epochs = 0
        self._writer = SummaryWriter(str(directory))

    def __call__(self, done: int, epochs: int, loss: float) -> None:
        # Epochs of several fits follow each other on one axis.
        self.epochs += 1
        self._writer.add_scalar(f"{self.name}/loss", loss, self.epochs)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
