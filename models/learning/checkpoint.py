"""A checkpoint: named tensors and a little state in one safetensors file, written whole. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.domain.errors import RecommenderError

NAME = "encoder.safetensors"


class CheckpointError(RecommenderError):
    """A checkpoint that is missing or cannot be read."""


class OtherReleaseError(CheckpointError):
    """A checkpoint that another release wrote."""


def write_checkpoint(
    directory: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], name: str = NAME
) -> None:
    """Beside its place first, then renamed: a crash leaves the former checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f"{name}.new"
    whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(whole, temporary, metadata={"state": json.dumps(state)})
    temporary.replace(directory / name)


def read_checkpoint(directory: Path, name: str = NAME) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns: (tensors, state). Raises: CheckpointError."""
    try:
        with safe_open(directory / name, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            return {key: file.get_tensor(key) for key in file.keys()}, state  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}: no checkpoint that can be read: {error}") from error


def flush(path: Path) -> None:
    """To the disk: a rename must not outlive what was renamed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
