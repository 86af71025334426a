"""The manifest of a bundle: what lies in the directory, which version it is, how it fits. Knows no graph's content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from models.domain.errors import BundleError, IncompatibleBundleError

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
# 12 hex digits (48 bits) keep the versions of a deployment's lifetime apart, and readable.
VERSION_DIGITS = 12
# From the oldest with LayerNormalization as one operator, to one that the tested ONNX Runtime (1.31) reads for sure.
OPSETS = range(17, 24)

Size = Annotated[int, Meta(ge=1, le=1_000_000)]
FileName = Annotated[str, Meta(min_length=1, max_length=128)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Dimensions(Struct, frozen=True, kw_only=True):
    item: Size
    """D, of item and user vectors, bias dimension included."""
    state: Size
    """S."""
    text: Size
    """E."""


class RankerSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    graph: FileName
    features: tuple[str, ...]
    initial_weights: tuple[float, ...] | None
    """One a feature where the graph takes `weights`; null where it has its own."""
    candidates: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Candidates of the lists it was trained on; 0 = no matter."""
    source_weights: tuple[float, ...] | None = None
    """What each candidate source was worth on the stream it was trained on; null = all alike."""


class TextModelSpec(Struct, frozen=True, kw_only=True):
    graph: FileName
    tokenizer: FileName
    pooling: Literal["mean", "cls", "none"]
    max_tokens: Annotated[int, Meta(ge=4, le=8_192)]
    source: str
    """Where it came from, for people."""


class Graphs(Struct, frozen=True, kw_only=True):
    step: FileName = "step.onnx"
    sequence: FileName = "sequence.onnx"
    item: FileName = "item.onnx"


class ItemTableSpec(Struct, frozen=True, kw_only=True):
    """What a trained item tower knows of single items, added to what its graph makes of their text."""

    ids: FileName = "item_ids.msgpack"
    """Item ids, a MessagePack array of strings."""
    vectors: FileName = "item_table.npy"
    """float32[items, D] in the order of the ids."""


# Fields that have their defaults are left out, so that a field that a later release adds changes no former version.
class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`version` is `<name>-<digest>`; the digest covers all that decides behaviour, so equal content is one version."""

    schema_version: int
    name: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,63}$")]
    version: str
    parent: str | None
    created_ms: int
    dimensions: Dimensions
    opset: int
    recipe: str
    """How it was made, for whoever made it; no rule of the loader reads it."""
    kinds: tuple[str, ...]
    graphs: Graphs
    ranker: RankerSpec
    text_model: TextModelSpec
    checksums: dict[FileName, Sha256]
    item_table: ItemTableSpec | None = None
    review_value: FileName | None = None
    """Graph that reads a review's value from its text; null = values are only what users give."""
    training: FileName | None = None
    """What training goes on from, for trainers alone: no worker reads it, and it is no part of the version."""
    value_scale: Annotated[float, Meta(gt=0)] | None = None
    """What a rating's value was divided by in training; null where training read none."""
    metrics: dict[str, float] = {}

    def files(self) -> tuple[str, ...]:
        """Files that the bundle cannot do without."""
        text = self.text_model
        table = () if self.item_table is None else msgspec.structs.astuple(self.item_table)
        head = () if self.review_value is None else (self.review_value,)
        return (*msgspec.structs.astuple(self.graphs), self.ranker.graph, text.graph, text.tokenizer, *table, *head)


def _digest(content: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:VERSION_DIGITS]


def content_version(manifest: Manifest) -> str:
    """The version that the manifest's content has: its name and a digest of all that serving depends on."""
    content: dict[str, Any] = msgspec.to_builtins(manifest)
    for name in ("version", "created_ms", "metrics"):
        content.pop(name, None)
    if (training := content.pop("training", None)) is not None:
        content["checksums"].pop(training, None)
    return f"{manifest.name}-{_digest(content)}"


def items_version(manifest: Manifest) -> str:
    """Name of the collection of its items' vectors: `<name>-<digest of all that decides a vector>`.

    Bundles that differ in the user's side or in the ranker alone have one collection, and nothing is encoded for them.
    """
    return f"{manifest.name}-{_digest(_item_side(manifest))}"


def same_text_model(one: Manifest, other: Manifest) -> bool:
    """Whether both encode a text alike."""
    return _text_side(one) == _text_side(other)


def text_version(manifest: Manifest) -> str:
    """Of the text model: two with one name encode a text alike."""
    return _digest(_text_side(manifest))


def _text_side(manifest: Manifest) -> list[Any]:
    text, sums = manifest.text_model, manifest.checksums
    return [sums[text.graph], sums[text.tokenizer], text.pooling, text.max_tokens]


def _item_side(manifest: Manifest) -> list[Any]:
    sums, table = manifest.checksums, manifest.item_table
    rows = [] if table is None else [sums[table.ids], sums[table.vectors]]
    return [sums[manifest.graphs.item], manifest.dimensions.item, *rows, *_text_side(manifest)]


def encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a bundle, checked for itself; no other file is read.

    Raises: BundleError when it is missing, malformed or altered; IncompatibleBundleError when another release wrote it.
    """
    try:
        data = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"{directory}: no bundle here ({error.strerror}: {MANIFEST})") from error
    return decode_manifest(data, str(directory))


def decode_manifest(data: bytes, where: str) -> Manifest:
    """The manifest that `data` is, checked for itself; `where` names the bundle for people.

    Raises: BundleError when it is malformed or altered; IncompatibleBundleError when another release wrote it.
    """
    try:
        schema = msgspec.json.decode(data, type=_SchemaVersion).schema_version
        if schema != MANIFEST_SCHEMA:
            raise IncompatibleBundleError(f"{where}: manifest schema {schema}, this release reads {MANIFEST_SCHEMA}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BundleError(f"{where}: {MANIFEST} is malformed: {error}") from error
    _check(where, manifest)
    return manifest


class _SchemaVersion(Struct):
    schema_version: int


def _check(where: str, manifest: Manifest) -> None:
    needed = {*manifest.files(), *(() if manifest.training is None else (manifest.training,))}
    for name in {*needed, *manifest.checksums}:
        _check_name(where, name)
    if manifest.training in manifest.files():
        raise BundleError(f"{where}: {manifest.training} cannot be served and be the training's")
    unlisted = needed - manifest.checksums.keys()
    if unlisted:
        raise BundleError(f"{where}: no checksum for {sorted(unlisted)}")
    expected = content_version(manifest)
    if manifest.version != expected:
        raise BundleError(f"{where}: {MANIFEST} was altered: it says {manifest.version}, its content is {expected}")
    if manifest.opset not in OPSETS:
        raise IncompatibleBundleError(f"{where}: opset {manifest.opset}, supported {OPSETS[0]} to {OPSETS[-1]}")
    if not manifest.kinds or manifest.kinds[0] or len(set(manifest.kinds)) != len(manifest.kinds):
        raise BundleError(f"{where}: `kinds` must be distinct and start with the empty name (kinds it does not know)")


def _check_name(where: str, name: str) -> None:
    # One flat folder: a plain file name can lead nowhere else, on no platform.
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise BundleError(f"{where}: {name!r} is no plain file name")


def read_files(directory: Path, manifest: Manifest, names: Iterable[str] | None = None) -> dict[str, bytes]:
    """Contents of the named files, each read once and checked.

    Args:
        names: files of the manifest's checksums; None for all of them, those that only training reads among them.
    Raises: BundleError when a file is missing, leads out of the directory, or is not what the manifest says.
    """
    root = directory.resolve()
    contents: dict[str, bytes] = {}
    for name in manifest.checksums if names is None else dict.fromkeys(names):
        path = (root / name).resolve()
        if path.parent != root:
            raise BundleError(f"{directory}: {name!r} leads out of the bundle")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{directory}: cannot read {name}: {error.strerror}") from error
        check_content(str(directory), manifest, name, data)
        contents[name] = data
    return contents


def check_content(where: str, manifest: Manifest, name: str, data: bytes) -> None:
    """Raises: BundleError when `data` is not what the manifest says of the file `name`."""
    found, checksum = hashlib.sha256(data).hexdigest(), manifest.checksums[name]
    if found != checksum:
        raise BundleError(f"{where}: {name} is damaged: sha256 {found[:12]}..., the manifest says {checksum[:12]}...")
