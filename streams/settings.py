"""What an operator can set: names, defaults, limits, where a value may come from. It must not know what uses a setting.

Precedence: flags (arguments) > environment `STREAMREC_*` > TOML file > defaults. Nothing is read before `Settings()`.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import TomlConfigSettingsSource as TomlSource

from models.domain.errors import SettingsError
from models.domain.events import INTERACTION_STRENGTHS, MAX_LIST_LENGTH, RESERVED_TYPES
from models.domain.releases import Rollout, RolloutMode

ENV_PREFIX = "STREAMREC_"
DEFAULT_CONFIG_FILE = "streamrec.toml"
HIDDEN = "********"
# Strengths enter sums and the encoder's input; ten times the strongest built-in kind is already a mistake.
MAX_STRENGTH = 30.0


def _setting(default: Any, group: str, description: str, **limits: Any) -> Any:
    return Field(default=default, description=description, json_schema_extra={"group": group}, **limits)


def _strengths(value: object) -> object:
    """Text of the environment and of flags: JSON, or `kind=number,kind=number`."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("{"):
        return json.loads(text)
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError("expected `kind=strength,kind=strength` or a JSON object")
    return {kind.strip(): strength.strip() for kind, _, strength in pairs}


def _names(value: object) -> object:
    """Text of the environment and of flags: JSON, or names with commas between them."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        return json.loads(text)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _bootstrap_servers(value: str) -> str:
    servers = [server.strip() for server in value.split(",") if server.strip()]
    if not servers:
        raise ValueError("give at least one `host:port`")
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or "/" in host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
            raise ValueError(f"`{server}` is not `host:port`")
    return ",".join(servers)


def _topic_prefix(value: str) -> str:
    # Kafka allows 249 characters a topic; the longest of our names takes 16 of them.
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,200}", value):
        raise ValueError("letters, digits, `.`, `_` and `-`, at most 200 of them")
    if value.endswith("."):
        raise ValueError("leave the dot at the end out; it is added between the prefix and the topic's name")
    return value


def _qdrant_url(value: str) -> str:
    if not value:
        return value
    if value.startswith("unix:"):
        if not value.removeprefix("unix:").startswith("/"):
            raise ValueError("a socket is given as `unix:/absolute/path`")
        return value
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("empty (embedded), `unix:/path/to/socket`, or `http(s)://host:port`")
    return value


def _registry(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if separator and not (re.fullmatch(r"[a-z0-9+.-]+(::[a-z0-9+.-]+)*", scheme) and rest):
        raise ValueError("empty, a directory, or a URL such as `s3://bucket/path`")
    return value


def _providers(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not name.endswith("ExecutionProvider"):
            raise ValueError(
                f"`{name}` is no execution provider; ONNX Runtime calls them `CPUExecutionProvider` and alike"
            )
    return value


def _checked_strengths(value: dict[str, float]) -> dict[str, float]:
    for kind, strength in value.items():
        if not kind or kind in RESERVED_TYPES:
            raise ValueError(f"`{kind}` is reserved and cannot be an interaction kind")
        if not math.isfinite(strength) or abs(strength) > MAX_STRENGTH:
            raise ValueError(f"the strength of `{kind}` must lie between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}")
    return value


class Settings(BaseSettings):
    """Every setting of every command. Raises: SettingsError naming the setting and how to mend it."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=False, hide_input_in_errors=True
    )

    config_file: str = _setting(
        "", "General", f"TOML file with settings; empty = `./{DEFAULT_CONFIG_FILE}` where it exists."
    )
    data_dir: Path = _setting(Path("data"), "General", "Directory for the embedded index, bundles and caches.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _setting(
        "INFO", "General", "Least severe log line written."
    )
    log_format: Literal["text", "json"] = _setting(
        "text", "General", "`text` for people, `json` for one object a line."
    )

    kafka_bootstrap_servers: Annotated[str, AfterValidator(_bootstrap_servers)] = _setting(
        "127.0.0.1:9092", "Kafka", "Brokers to start from, `host:port` with commas between them."
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = _setting(
        "PLAINTEXT", "Kafka", "How to speak to the brokers."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = _setting(
        "PLAIN", "Kafka", "SASL mechanism, where the protocol is `SASL_*`."
    )
    kafka_sasl_username: str = _setting("", "Kafka", "SASL user.")
    kafka_sasl_password: SecretStr = _setting(SecretStr(""), "Kafka", "SASL password; never printed.")
    kafka_ssl_cafile: str = _setting("", "Kafka", "File with the brokers' certificate authority; empty = the system's.")
    kafka_ssl_certfile: str = _setting("", "Kafka", "File with this client's certificate, where brokers ask for one.")
    kafka_ssl_keyfile: str = _setting("", "Kafka", "File with the key of that certificate.")
    kafka_session_timeout_seconds: float = _setting(
        6.0, "Kafka", "A worker silent for that long loses its partitions; longer in production.", ge=1, le=1800
    )
    kafka_heartbeat_interval_seconds: float = _setting(
        1.0, "Kafka", "Time between two signs of life; at most a third of the session timeout.", gt=0, le=600
    )
    kafka_commit_interval_seconds: float = _setting(
        0.5, "Kafka", "Time between two offset commits; what a crash replays.", gt=0, le=60
    )
    consumer_group: str = _setting("streamrec", "Kafka", "Consumer group of the workers.", min_length=1, max_length=249)
    topic_prefix: Annotated[str, AfterValidator(_topic_prefix)] = _setting(
        "", "Kafka", "Put before each topic's name, with a dot between: `shop` gives `shop.events`."
    )
    topic_partitions: int = _setting(
        4, "Kafka", "Partitions of a keyed topic that `topics create` makes.", ge=1, le=10_000
    )
    topic_replication_factor: int = _setting(1, "Kafka", "Copies of a topic that `topics create` makes.", ge=1, le=15)

    qdrant_url: Annotated[str, AfterValidator(_qdrant_url)] = _setting(
        "",
        "Qdrant",
        "Empty = embedded in the data directory; `unix:/path` = `streamrec store`; `http(s)://host:port` = server.",
    )
    qdrant_api_key: SecretStr = _setting(SecretStr(""), "Qdrant", "API key of the server; never printed.")
    qdrant_grpc_port: int = _setting(6334, "Qdrant", "Port of the server's gRPC.", ge=1, le=65_535)
    qdrant_prefer_grpc: bool = _setting(True, "Qdrant", "gRPC instead of HTTP towards a server.")
    collection_prefix: str = _setting(
        "",
        "Qdrant",
        "Put before each collection's name, so that two deployments can share a Qdrant.",
        pattern=r"^[A-Za-z0-9_-]{0,100}$",
    )

    bundle: str = _setting(
        "", "Model", "Directory of the bundle to serve; empty = the bootstrap bundle, made when absent."
    )
    registry: Annotated[str, AfterValidator(_registry)] = _setting(
        "",
        "Model",
        "Where model versions are kept: a directory or any fsspec URL (`s3://`, `gs://`); empty = `<data_dir>/models`.",
    )
    follow_models: bool = _setting(
        True, "Model", "Serve the champion of the topic `models`; false = the bundle of the settings, whatever it says."
    )
    rollout: RolloutMode = _setting(
        "at_once",
        "Model",
        "How a promoted version reaches the users: all of them at once; `shadow` scores it beside the served one first,"
        " `canary` serves a share of them first. A rollback is at once.",
    )
    rollout_share: float = _setting(
        0.1, "Model", "Share of the users, by hash, who are in a shadow's or a canary's trial.", gt=0, le=1
    )
    rollout_seconds: float = _setting(
        3_600, "Model", "Length of the trial, from the promotion on; then everybody is served.", ge=1, le=2_592_000
    )
    text_model: str = _setting(
        "", "Model", "Text encoder: a directory or a hub name; empty = MiniLM from the installed package."
    )
    execution_providers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names), AfterValidator(_providers)] = (
        _setting(
            ("CUDAExecutionProvider", "CPUExecutionProvider"),
            "Model",
            "ONNX Runtime's execution providers, the first one available wins; commas between them.",
            min_length=1,
        )
    )
    onnx_threads: int = _setting(1, "Model", "Threads of one ONNX session.", ge=1, le=256)

    interaction_strengths: Annotated[
        dict[str, float], NoDecode, BeforeValidator(_strengths), AfterValidator(_checked_strengths)
    ] = _setting(
        {},
        "Recommending",
        "Further interaction kinds, or other strengths of built-in ones: `play=1,tip=3`; negative speaks against.",
    )
    repeatable_kinds: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = _setting(
        (), "Recommending", "Kinds after which an item may be recommended again (`play,purchase`)."
    )
    value_scale: float = _setting(
        5.0, "Recommending", "Largest value of a rating or review: what a full liking is.", gt=0, le=1_000_000
    )
    list_length: int = _setting(
        10, "Recommending", "Items in a list published after an event.", ge=1, le=MAX_LIST_LENGTH
    )
    allowed_lateness_seconds: float = _setting(
        86_400, "Recommending", "An event older than its user's newest by more than that is a dead letter.", ge=0
    )
    max_future_seconds: float = _setting(
        300, "Recommending", "An event dated after its own Kafka record by more than that is a dead letter.", ge=0
    )
    asked_share: float = _setting(
        1.0,
        "Recommending",
        "Share of scored events for which a list is also asked at that moment, for the quality counters.",
        ge=0,
        le=1,
    )

    feedback: bool = _setting(
        True, "Learning", "Write to `feedback`, for training, what led to each interaction; lists are the same without."
    )
    candidates_share: float = _setting(
        1.0,
        "Learning",
        "Share of the lists asked (`asked_share`) whose candidates go into the feedback: what a ranker learns from.",
        ge=0,
        le=1,
    )
    trainer_round_records: int = _setting(
        500, "Learning", "Records of feedback after which challenger and champion are compared.", ge=50, le=1_000_000
    )
    trainer_round_seconds: float = _setting(
        600, "Learning", "Time after which they are compared with however many records there are.", ge=1
    )
    replay_bytes: int = _setting(
        4_294_967_296, "Learning", "Records kept on disk to learn from again.", ge=1_000_000, le=2**50
    )
    registry_keep: int = _setting(
        20,
        "Learning",
        "Versions that a trainer leaves in the registry, besides those in use; 0 = all. A version is some 25 MB.",
        ge=0,
        le=100_000,
    )
    trainer_metrics_port: int = _setting(
        9465, "Learning", "Port for the trainer's `/metrics` and probes; 0 = any free one.", ge=0, le=65_535
    )

    chunk_size: int = _setting(512, "Worker", "Largest number of events processed together.", ge=1, le=10_000)
    user_cache_size: int = _setting(50_000, "Worker", "User states kept in memory.", ge=0, le=10_000_000)
    partition_stall_seconds: float = _setting(
        60, "Worker", "A partition with events waiting and no progress for that long ends the worker.", ge=1
    )
    metrics_host: str = _setting(
        "127.0.0.1", "Worker", "Address for `/metrics`, `/healthz` and `/readyz`.", min_length=1
    )
    metrics_port: int = _setting(
        9464, "Worker", "Port for them; 0 = any free one, written to the log.", ge=0, le=65_535
    )

    def __init__(self, **flags: Any) -> None:
        try:
            super().__init__(**flags)
        except ValidationError as error:
            # `from None`: the original shows the rejected input, which may be a secret.
            raise SettingsError(_explain(error)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        named = str(init_settings().get("config_file") or os.environ.get(f"{ENV_PREFIX}CONFIG_FILE", ""))
        path = Path(named or DEFAULT_CONFIG_FILE)
        if named and not path.is_file():
            raise SettingsError(f"`config_file`: there is no file {named!r}; correct the path or leave the setting out")
        try:
            return init_settings, env_settings, TomlSource(settings_cls, path)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} is not valid TOML: {error}") from error

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.kafka_heartbeat_interval_seconds * 3 > self.kafka_session_timeout_seconds:
            raise ValueError(
                "`kafka_heartbeat_interval_seconds` must be at most a third of `kafka_session_timeout_seconds`,"
                " else one lost heartbeat ends the session"
            )
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_sasl_username and self.kafka_sasl_password.get_secret_value()
        ):
            raise ValueError(
                f"`kafka_security_protocol` = {self.kafka_security_protocol} needs `kafka_sasl_username`"
                " and `kafka_sasl_password`"
            )
        if bool(self.kafka_ssl_certfile) != bool(self.kafka_ssl_keyfile):
            raise ValueError("`kafka_ssl_certfile` and `kafka_ssl_keyfile` go together: set both or neither")
        unknown = set(self.repeatable_kinds) - INTERACTION_STRENGTHS.keys() - self.interaction_strengths.keys()
        if unknown:
            raise ValueError(
                f"`repeatable_kinds` names {sorted(unknown)}, which no event can have;"
                " add them to `interaction_strengths`"
            )
        return self

    @property
    def registry_url(self) -> str:
        """The registry's URL or directory, the default put in."""
        return self.registry or str(self.data_dir / "models")

    @property
    def rollout_plan(self) -> Rollout:
        return Rollout(self.rollout, self.rollout_share, int(self.rollout_seconds * 1_000))

    def redacted(self) -> dict[str, Any]:
        """Every setting as plain JSON values, for people and logs: secrets and passwords in URLs are hidden."""
        shown: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                value = HIDDEN if value.get_secret_value() else ""
            elif isinstance(value, Path):
                value = str(value)
            elif isinstance(value, tuple):
                value = list(value)
            elif name in ("qdrant_url", "registry"):
                value = without_password(value)
            shown[name] = value
        return shown


class SettingInfo(NamedTuple):
    """One setting as documentation and flags need it."""

    name: str
    group: str
    environment: str
    default: str
    description: str
    limits: str
    is_secret: bool
    is_switch: bool


def describe_settings() -> Iterator[SettingInfo]:
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        group = str(extra["group"]) if isinstance(extra, dict) else ""
        yield SettingInfo(
            name=name,
            group=group,
            environment=ENV_PREFIX + name.upper(),
            default=_default_text(field),
            description=field.description or "",
            limits=_limits_text(field),
            is_secret=field.annotation is SecretStr,
            is_switch=field.annotation is bool,
        )


def settings_markdown() -> str:
    """The settings as a Markdown table, for the README."""
    lines = ["| setting | environment | default | what it does |", "|---|---|---|---|"]
    for info in describe_settings():
        limits = f" ({info.limits})" if info.limits else ""
        default = f"`{info.default}`" if info.default else "empty"
        lines.append(
            f"| `{info.name}` | `{info.environment}` | {default} | {(info.description + limits).replace('|', '¦')} |"
        )
    return "\n".join(lines)


def unknown_environment(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Variables `STREAMREC_*` that set nothing, each with the nearest name ("" where none is near).

    They are no error, since Kubernetes adds variables of that form for a service named `streamrec`.
    """
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    strangers = sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known)
    return [(name, next(iter(get_close_matches(name, known, n=1, cutoff=0.8)), "")) for name in strangers]


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        path = [str(part) for part in problem["loc"]]
        message = problem["msg"].removeprefix("Value error, ")
        if not path:
            problems.append(message)
        elif problem["type"] == "extra_forbidden":
            near = get_close_matches(path[0], Settings.model_fields, n=1, cutoff=0.6)
            hint = f"; did you mean `{near[0]}`?" if near else "; `streamrec settings` lists them all"
            problems.append(f"`{'.'.join(path)}` is no setting{hint}")
        else:
            variable = ENV_PREFIX + path[0].upper()
            if os.environ.get(variable, "").startswith("tcp://"):
                message += (
                    " (Kubernetes set it for a service of that name: `enableServiceLinks: false` in the pod stops that)"
                )
            problems.append(
                f"`{'.'.join(path)}`: {message} (flag --{path[0].replace('_', '-')}, environment {variable})"
            )
    return "\n".join(problems)


def _default_text(field: FieldInfo) -> str:
    default = field.default
    if isinstance(default, SecretStr):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, dict):
        return ",".join(f"{key}={value}" for key, value in default.items())
    return str(default)


def _limits_text(field: FieldInfo) -> str:
    if getattr(field.annotation, "__origin__", None) is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in field.annotation.__args__)  # type: ignore[union-attr]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [(signs[key], getattr(limit, key)) for limit in field.metadata for key in signs if hasattr(limit, key)]
    return ", ".join(f"{sign} {value:,}" for sign, value in found)


def without_password(url: str) -> str:
    """The URL for people and logs: what stands before an `@` of its host is hidden."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if not separator or "@" not in host:
        return url
    return f"{scheme}://{HIDDEN}@{host.rpartition('@')[2]}{slash}{path}"
