"""How to reach a Kafka cluster: one frozen value that every client is made from. Secrets stay out of its repr."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiokafka.helpers import create_ssl_context

from models.domain.errors import SettingsError

SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
# What aiokafka does with a user name and a password alone.
SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


class Secret(Protocol):
    """A value that must be asked for, as pydantic's SecretStr."""

    def get_secret_value(self) -> str: ...


class KafkaSettings(Protocol):
    """The settings a connection is made from."""

    @property
    def kafka_bootstrap_servers(self) -> str: ...
    @property
    def kafka_security_protocol(self) -> str: ...
    @property
    def kafka_sasl_mechanism(self) -> str: ...
    @property
    def kafka_sasl_username(self) -> str: ...
    @property
    def kafka_sasl_password(self) -> Secret: ...
    @property
    def kafka_ssl_cafile(self) -> str: ...
    @property
    def kafka_ssl_certfile(self) -> str: ...
    @property
    def kafka_ssl_keyfile(self) -> str: ...


@dataclass(frozen=True, slots=True)
class KafkaConnection:
    """Address and credentials of a cluster. Raises: SettingsError, naming the setting, when they cannot work."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""

    def __post_init__(self) -> None:
        if not self.bootstrap_servers.strip():
            raise SettingsError("kafka_bootstrap_servers is empty: name at least one host:port")
        if self.security_protocol not in SECURITY_PROTOCOLS:
            raise SettingsError(
                f"kafka_security_protocol is {self.security_protocol!r}: one of {', '.join(SECURITY_PROTOCOLS)}"
            )
        if self.uses_sasl:
            if self.sasl_mechanism not in SASL_MECHANISMS:
                raise SettingsError(
                    f"kafka_sasl_mechanism is {self.sasl_mechanism!r}: one of {', '.join(SASL_MECHANISMS)}"
                )
            if not self.sasl_username:
                raise SettingsError(f"kafka_sasl_username is empty, but {self.security_protocol} needs one")
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise SettingsError("kafka_ssl_certfile and kafka_ssl_keyfile go together: one of them is empty")

    @classmethod
    def from_settings(cls, settings: KafkaSettings) -> KafkaConnection:
        return cls(
            bootstrap_servers=settings.kafka_bootstrap_servers,
            security_protocol=settings.kafka_security_protocol,
            sasl_mechanism=settings.kafka_sasl_mechanism,
            sasl_username=settings.kafka_sasl_username,
            sasl_password=settings.kafka_sasl_password.get_secret_value(),
            ssl_cafile=settings.kafka_ssl_cafile,
            ssl_certfile=settings.kafka_ssl_certfile,
            ssl_keyfile=settings.kafka_ssl_keyfile,
        )

    @property
    def uses_sasl(self) -> bool:
        return self.security_protocol.startswith("SASL_")

    @property
    def uses_tls(self) -> bool:
        return self.security_protocol.endswith("SSL")

    def ssl_context(self) -> ssl.SSLContext | None:
        """None without TLS. Without a CA file the system's authorities are trusted; host names are always checked."""
        if not self.uses_tls:
            return None
        try:
            context: ssl.SSLContext = create_ssl_context(
                cafile=self.ssl_cafile or None, certfile=self.ssl_certfile or None, keyfile=self.ssl_keyfile or None
            )
        except OSError as error:
            raise SettingsError(
                "kafka_ssl_cafile, kafka_ssl_certfile or kafka_ssl_keyfile cannot be used "
                f"({self.ssl_cafile!r}, {self.ssl_certfile!r}, {self.ssl_keyfile!r}): {error}"
            ) from error
        return context

    def client_options(self, client_id: str | None = None) -> dict[str, Any]:
        """Keyword arguments for any client of aiokafka. They hold the password: never log them."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
            "ssl_context": self.ssl_context(),
        }
        if client_id is not None:
            options["client_id"] = client_id
        if self.uses_sasl:
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        return options
