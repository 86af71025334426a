"""Where settings come from, what is refused and how people learn of it; secrets stay secret."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from models.domain.errors import SettingsError
from streams.settings import HIDDEN, Settings, describe_settings, settings_markdown, unknown_environment


@pytest.fixture(autouse=True)
def _clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("STREAMREC_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal(**flags: object) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings(**flags)
    return str(caught.value)


def test_without_anything_the_defaults_hold() -> None:
    settings = Settings()
    assert settings.kafka_bootstrap_servers == "127.0.0.1:9092"
    assert settings.qdrant_url == ""
    assert settings.list_length == 10
    assert settings.data_dir == Path("data")


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.joinpath("streamrec.toml").write_text("chunk_size = 1\nlist_length = 1\ntopic_partitions = 1\n")
    monkeypatch.setenv("STREAMREC_CHUNK_SIZE", "2")
    monkeypatch.setenv("STREAMREC_LIST_LENGTH", "2")
    settings = Settings(chunk_size="3")
    assert (settings.chunk_size, settings.list_length, settings.topic_partitions) == (3, 2, 1)
    assert settings.topic_replication_factor == 1


@pytest.mark.parametrize("by_flag", [True, False])
def test_the_file_may_be_named_by_flag_or_environment(
    by_flag: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "other.toml"
    path.write_text("chunk_size = 7\n")
    if by_flag:
        assert Settings(config_file=str(path)).chunk_size == 7
    else:
        monkeypatch.setenv("STREAMREC_CONFIG_FILE", str(path))
        assert Settings().chunk_size == 7


def test_a_named_file_that_is_absent_is_an_error() -> None:
    assert "nowhere.toml" in refusal(config_file="nowhere.toml")


def test_a_file_that_is_no_toml_is_an_error_with_its_line(tmp_path: Path) -> None:
    tmp_path.joinpath("streamrec.toml").write_text("chunk_size = \n")
    assert "line 1" in refusal()


def test_an_unknown_key_of_the_file_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    tmp_path.joinpath("streamrec.toml").write_text("metric_port = 1\n")
    assert refusal() == "`metric_port` is no setting; did you mean `metrics_port`?"


def test_an_unknown_variable_is_reported_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMREC_METRIC_PORT", "1")
    monkeypatch.setenv("STREAMREC_ZZZ", "1")
    Settings()
    assert unknown_environment(os.environ) == [
        ("STREAMREC_METRIC_PORT", "STREAMREC_METRICS_PORT"),
        ("STREAMREC_ZZZ", ""),
    ]


@pytest.mark.parametrize("text", ["tip=3, view=0.5", '{"tip": 3, "view": 0.5}'])
def test_strengths_are_given_as_pairs_or_as_json(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMREC_INTERACTION_STRENGTHS", text)
    assert Settings().interaction_strengths == {"tip": 3.0, "view": 0.5}


def test_strengths_and_names_are_native_in_toml(tmp_path: Path) -> None:
    tmp_path.joinpath("streamrec.toml").write_text(
        'repeatable_kinds = ["play"]\n'
        'execution_providers = ["CPUExecutionProvider"]\n'
        "[interaction_strengths]\n"
        "tip = 3\n"
    )
    settings = Settings()
    assert settings.interaction_strengths == {"tip": 3.0}
    assert settings.repeatable_kinds == ("play",)
    assert settings.execution_providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"metrics_port": "abc"}, "metrics_port"),
        ({"metrics_port": 65_536}, "metrics_port"),
        ({"kafka_bootstrap_servers": "broker"}, "kafka_bootstrap_servers"),
        ({"kafka_bootstrap_servers": "broker:0"}, "kafka_bootstrap_servers"),
        ({"kafka_bootstrap_servers": ""}, "kafka_bootstrap_servers"),
        ({"kafka_bootstrap_servers": "kafka://broker:9092"}, "kafka_bootstrap_servers"),
        ({"topic_prefix": "shop."}, "topic_prefix"),
        ({"topic_prefix": "a b"}, "topic_prefix"),
        ({"collection_prefix": "a/b"}, "collection_prefix"),
        ({"qdrant_url": "localhost:6333"}, "qdrant_url"),
        ({"qdrant_url": "unix:relative"}, "qdrant_url"),
        ({"registry": "s3://"}, "registry"),
        ({"registry": "no scheme://bucket"}, "registry"),
        ({"execution_providers": "cuda"}, "execution_providers"),
        ({"execution_providers": ""}, "execution_providers"),
        ({"interaction_strengths": "tip"}, "interaction_strengths"),
        ({"interaction_strengths": "tip=much"}, "interaction_strengths.tip"),
        ({"interaction_strengths": "search=1"}, "interaction_strengths"),
        ({"interaction_strengths": "tip=nan"}, "interaction_strengths"),
        ({"interaction_strengths": "{"}, "interaction_strengths"),
        ({"repeatable_kinds": "tip"}, "repeatable_kinds"),
        ({"list_length": 101}, "list_length"),
        ({"asked_share": "nan"}, "asked_share"),
        ({"log_level": "loud"}, "log_level"),
        ({"kafka_session_timeout_seconds": 2}, "kafka_heartbeat_interval_seconds"),
        ({"kafka_security_protocol": "SASL_SSL"}, "kafka_sasl_username"),
        ({"kafka_ssl_certfile": "a.pem"}, "kafka_ssl_keyfile"),
    ],
)
def test_what_cannot_work_is_refused_by_the_settings_name(flags: dict[str, object], named: str) -> None:
    assert f"`{named}`" in refusal(**flags)


def test_several_mistakes_are_told_at_once() -> None:
    assert len(refusal(metrics_port="x", chunk_size=0, log_level="loud").splitlines()) == 3


def test_a_kubernetes_service_link_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMREC_METRICS_PORT", "tcp://10.0.0.1:9464")
    assert "enableServiceLinks" in refusal()


def test_secrets_are_never_printed() -> None:
    settings = Settings(
        kafka_sasl_password="hunter2",
        qdrant_api_key="hunter2",
        qdrant_url="https://me:hunter2@example.org:6333",
        registry="sftp://me:hunter2@example.org/models",
    )
    shown = settings.redacted()
    for text in (repr(settings), str(settings), json.dumps(shown)):
        assert "hunter2" not in text.replace(settings.qdrant_url, "").replace(settings.registry, "")
    assert shown["kafka_sasl_password"] == HIDDEN
    assert shown["qdrant_url"] == f"https://{HIDDEN}@example.org:6333"
    assert shown["registry"] == f"sftp://{HIDDEN}@example.org/models"
    assert "hunter2" not in refusal(kafka_sasl_password={"hunter2": 1}, qdrant_api_key=["hunter2"])


def test_the_registry_lies_in_the_data_directory_unless_it_is_set() -> None:
    assert Settings(data_dir="there").registry_url == str(Path("there") / "models")
    assert Settings(registry="s3://bucket/models").registry_url == "s3://bucket/models"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().chunk_size = 1  # type: ignore[misc]


def test_every_setting_is_described_for_people() -> None:
    described = list(describe_settings())
    assert [info.name for info in described] == list(Settings.model_fields)
    assert all(info.description.endswith(".") and info.group for info in described)
    table = settings_markdown()
    assert all(f"`{info.environment}`" in table for info in described)
    assert len(table.splitlines()) == len(described) + 2
