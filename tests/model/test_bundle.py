"""Bundles: equal content is one version, and whatever is damaged, altered or does not fit is refused by name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bootstrap import build_bootstrap, ensure_bootstrap, versioned
from export.graphs import sequence_graph, step_graph
from export.projection import random_projection
from export.text_model import find_text_model
from models.domain.errors import BundleError, IncompatibleBundleError, ParityError
from models.encoders.bundle import Bundle, load_bundle
from models.encoders.bundle_directory import is_sound
from models.encoders.manifest import MANIFEST, Manifest, encode_manifest, read_files, read_manifest
from tests.model.conftest import FEATURES, KINDS, WEIGHTS

ARGUMENTS: dict[str, Any] = {"features": FEATURES, "initial_weights": WEIGHTS, "kinds": KINDS}


def replace_file(directory: Path, name: str, data: bytes) -> None:
    """Put another file into a bundle and make the manifest agree with it."""
    (directory / name).write_bytes(data)
    manifest = read_manifest(directory)
    checksums = {**manifest.checksums, name: hashlib.sha256(data).hexdigest()}
    rewrite(directory, msgspec.structs.replace(manifest, checksums=checksums))


def rewrite(directory: Path, manifest: Manifest) -> None:
    (directory / "manifest.json").write_bytes(encode_manifest(versioned(manifest)))


def test_the_bundle_says_what_it_is(bundle: Bundle) -> None:
    manifest = bundle.manifest
    sizes = manifest.dimensions
    assert (sizes.item, sizes.state, sizes.text) == (65, 256, 384)
    assert manifest.kinds == ("", *KINDS)
    assert tuple(bundle.user_encoder.kinds) == ("", *KINDS)
    assert (bundle.user_encoder.state_size, bundle.item_encoder.dimension, bundle.text_encoder.dimension) == (
        256,
        65,
        384,
    )
    assert bundle.version == manifest.version
    assert bundle.version.startswith("bootstrap-")
    bundle.warm_up()


def test_building_twice_gives_the_same_version_and_the_same_files(bundle_directory: Path, tmp_path: Path) -> None:
    again = build_bootstrap(tmp_path / "again", **ARGUMENTS)
    first, second = read_manifest(bundle_directory), read_manifest(again)
    assert (first.version, first.checksums) == (second.version, second.checksums)


@pytest.mark.parametrize(
    "change",
    [
        {"initial_weights": (1.0, 0.5, -0.3)},
        {"features": ("encoder_score", "popularity", "covisitation")},
        {"kinds": ()},
    ],
)
def test_what_decides_behaviour_decides_the_version(
    bundle_directory: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    other = build_bootstrap(tmp_path / "other", **{**ARGUMENTS, **change})
    assert read_manifest(other).version != read_manifest(bundle_directory).version


def test_building_replaces_a_bundle_and_leaves_nothing_beside_it(copied_bundle: Path) -> None:
    before = read_manifest(copied_bundle).version
    build_bootstrap(copied_bundle, **{**ARGUMENTS, "kinds": ("other",)})
    assert read_manifest(copied_bundle).version != before
    assert [path.name for path in copied_bundle.parent.iterdir()] == [copied_bundle.name]


def test_building_leaves_a_directory_that_is_no_bundle_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match="left alone"):
        build_bootstrap(tmp_path / "photos", **ARGUMENTS)
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_ensuring_keeps_a_bundle_that_fits_and_rebuilds_one_that_does_not(copied_bundle: Path) -> None:
    stamp = (copied_bundle / "manifest.json").stat().st_mtime_ns
    ensure_bootstrap(copied_bundle, **ARGUMENTS)
    assert (copied_bundle / "manifest.json").stat().st_mtime_ns == stamp
    (copied_bundle / "item.onnx").write_bytes(b"damaged")
    ensure_bootstrap(copied_bundle, **ARGUMENTS)
    load_bundle(copied_bundle, features=(*FEATURES, "one that the ranker does not read"))
    ensure_bootstrap(copied_bundle, **{**ARGUMENTS, "kinds": ("other",)})
    assert read_manifest(copied_bundle).kinds == ("", "other")


def test_several_builders_may_ensure_the_same_bundle_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_bootstrap(tmp_path / "shared", **ARGUMENTS), range(4)))
    load_bundle(tmp_path / "shared")
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_a_missing_provider_falls_to_the_cpu_and_is_reported(bundle_directory: Path) -> None:
    bundle = load_bundle(bundle_directory, ["NoSuchExecutionProvider", "CPUExecutionProvider"])
    assert bundle.providers == ("CPUExecutionProvider",)
    assert bundle.missing_providers == ("NoSuchExecutionProvider",)


def test_no_bundle_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        load_bundle(tmp_path / "nothing")


@pytest.mark.parametrize(
    "name", ["step.onnx", "sequence.onnx", "item.onnx", "ranker.onnx", "text.onnx", "tokenizer.json"]
)
def test_a_damaged_or_missing_file_is_refused_by_name(copied_bundle: Path, name: str) -> None:
    data = bytearray((copied_bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied_bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} is damaged"):
        load_bundle(copied_bundle)
    (copied_bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"cannot read {name}"):
        load_bundle(copied_bundle)


@pytest.mark.parametrize("name", ["step.onnx", "text.onnx", "tokenizer.json"])
def test_garbage_with_a_right_checksum_is_refused(copied_bundle: Path, name: str) -> None:
    replace_file(copied_bundle, name, b"\x80\x02garbage")
    with pytest.raises(BundleError):
        load_bundle(copied_bundle)


def alter(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "manifest.json"
        content = json.loads(path.read_bytes())
        change(content)
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (alter(lambda m: m["ranker"].update(initial_weights=[9, 9, 9])), "was altered"),
        (alter(lambda m: m["checksums"].pop("item.onnx")), "no checksum"),
        (alter(lambda m: m.pop("dimensions")), "malformed"),
        (alter(lambda m: m["checksums"].update({"../outside": "0" * 64})), "no plain file name"),
        (alter(lambda m: m["checksums"].update({"/etc/passwd": "0" * 64})), "no plain file name"),
        (alter(lambda m: m["graphs"].update(step="../step.onnx")), "no plain file name"),
        (alter(lambda m: m["text_model"].update(tokenizer="a/../../b")), "no plain file name"),
        (lambda d: (d / "manifest.json").write_bytes(b"\xff{"), "malformed"),
        (lambda d: (d / "manifest.json").write_bytes(b"[]"), "malformed"),
    ],
)
def test_a_spoilt_manifest_is_refused(copied_bundle: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(copied_bundle)
    with pytest.raises(BundleError, match=message):
        load_bundle(copied_bundle)


def test_a_link_out_of_the_bundle_is_refused(copied_bundle: Path) -> None:
    outside = copied_bundle.parent / "outside.onnx"
    (copied_bundle / "item.onnx").rename(outside)
    (copied_bundle / "item.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out"):
        load_bundle(copied_bundle)


def test_weights_outside_the_bundle_are_not_read(copied_bundle: Path) -> None:
    model = onnx.load_from_string((copied_bundle / "item.onnx").read_bytes())
    matrix = next(c for c in model.graph.initializer if len(c.dims) == 2)
    outside = copied_bundle.parent / "weights.bin"
    outside.write_bytes(matrix.raw_data)
    onnx.external_data_helper.set_external_data(matrix, "../weights.bin")
    matrix.ClearField("raw_data")
    matrix.data_location = onnx.TensorProto.EXTERNAL
    replace_file(copied_bundle, "item.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match="item.onnx"):
        load_bundle(copied_bundle)


def test_another_release_of_the_manifest_is_refused(copied_bundle: Path) -> None:
    alter(lambda m: m.update(schema_version=2))(copied_bundle)
    with pytest.raises(IncompatibleBundleError, match="schema 2"):
        load_bundle(copied_bundle)


def test_an_opset_out_of_reach_is_refused(copied_bundle: Path) -> None:
    rewrite(copied_bundle, msgspec.structs.replace(read_manifest(copied_bundle), opset=99))
    with pytest.raises(IncompatibleBundleError, match="opset 99"):
        load_bundle(copied_bundle)
    rewrite(copied_bundle, msgspec.structs.replace(read_manifest_unchecked(copied_bundle), opset=18))
    with pytest.raises(BundleError, match="opset 17, the manifest says 18"):
        load_bundle(copied_bundle)


def read_manifest_unchecked(directory: Path) -> Manifest:
    return msgspec.json.decode((directory / "manifest.json").read_bytes(), type=Manifest)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (("encoder_score", "covisitation"), r"unknown here \['popularity'\]"),
        (FEATURES[::-1], "another order"),
    ],
)
def test_features_that_are_not_asked_for_are_refused(
    bundle_directory: Path, features: tuple[str, ...], message: str
) -> None:
    with pytest.raises(IncompatibleBundleError, match=message):
        load_bundle(bundle_directory, features=features)


def test_sizes_that_do_not_fit_the_stores_are_refused(bundle_directory: Path) -> None:
    with pytest.raises(IncompatibleBundleError, match="dimension is 65, needed 129"):
        load_bundle(bundle_directory, dimension=129)
    with pytest.raises(IncompatibleBundleError, match="state size is 256, needed 128"):
        load_bundle(bundle_directory, state_size=128)
    load_bundle(bundle_directory, features=FEATURES, dimension=65, state_size=256)


def test_graphs_of_other_sizes_than_the_manifest_says_are_refused(copied_bundle: Path) -> None:
    replace_file(copied_bundle, "step.onnx", step_graph(random_projection(300, 64)))
    with pytest.raises(BundleError, match=r"step.onnx: `text` has shape \[None, 300\]"):
        load_bundle(copied_bundle)


def test_a_sequence_that_is_not_its_steps_is_refused(copied_bundle: Path) -> None:
    slower = sequence_graph(random_projection(384, 64), decays=(0.3, 0.7, 0.9, 0.985))
    replace_file(copied_bundle, "sequence.onnx", slower)
    with pytest.raises(ParityError, match="sequence and step differ"):
        load_bundle(copied_bundle)


def test_a_graph_that_gives_nan_is_refused(copied_bundle: Path) -> None:
    model = onnx.load_from_string((copied_bundle / "step.onnx").read_bytes())
    matrix = next(c for c in model.graph.initializer if list(c.dims) == [384, 64])
    matrix.CopyFrom(numpy_helper.from_array(np.full((384, 64), np.nan, np.float32), matrix.name))
    replace_file(copied_bundle, "step.onnx", model.SerializeToString())
    with pytest.raises(ParityError):
        load_bundle(copied_bundle)


def test_a_directory_of_another_text_model_makes_a_bundle(bundle_directory: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "1_Pooling").mkdir(parents=True)
    (source / "model.onnx").write_bytes((bundle_directory / "text.onnx").read_bytes())
    (source / "tokenizer.json").write_bytes((bundle_directory / "tokenizer.json").read_bytes())
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    other = load_bundle(build_bootstrap(tmp_path / "out", text_model=source, **ARGUMENTS))
    assert (other.manifest.text_model.pooling, other.manifest.text_model.max_tokens) == ("cls", 64)
    assert other.version != read_manifest(bundle_directory).version


def test_a_text_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no model\.onnx"):
        find_text_model(tmp_path)
    with pytest.raises(BundleError, match="neither a directory nor a hub name"):
        find_text_model("/no/such/place")


def test_serving_a_bundle_loads_neither_torch_nor_onnx(bundle_directory: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from models.encoders.bundle import load_bundle;"
        f"load_bundle(Path({str(bundle_directory)!r})).warm_up();"
        "print(sorted({'torch', 'transformers', 'onnx'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bundle_serves_without_the_files_that_only_training_reads(copied_bundle: Path) -> None:
    manifest = read_manifest(copied_bundle)
    checksums = {**manifest.checksums, "training.safetensors": hashlib.sha256(b"weights").hexdigest()}
    whole = versioned(msgspec.structs.replace(manifest, checksums=checksums))
    (copied_bundle / MANIFEST).write_bytes(encode_manifest(whole))
    assert load_bundle(copied_bundle).version == whole.version
    assert is_sound(copied_bundle, whole.version, all_files=False)
    assert not is_sound(copied_bundle, whole.version)
    with pytest.raises(BundleError, match=r"cannot read training\.safetensors"):
        read_files(copied_bundle, whole)
