"""SASL and TLS against real listeners, with certificates made here; what is secret shows nowhere."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tokens
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from planted import SECRET, VARIABLE
from servers import KafkaBroker

from deimos_async import BrokerUnavailableError, ConfigurationError, Deimos, DeimosError, Key, Message

PASSWORD = SECRET
DEADLINE = 60.0
pytestmark = pytest.mark.services("own_kafka")


class Authority:
    """A certificate authority, and what it has signed, as PEM files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.certificate = folder / "ca.pem"
        signed = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.certificate.write_bytes(signed.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )

    def sign(self, name: str, *, addresses: tuple[str, ...] = ()) -> tuple[Path, Path]:
        """(certificate, key) for a name; a server's certificate names its addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [x509.DNSName(name), *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses)]
        built = self._builder(subject, key).add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate, private = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(built.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private

    def server_properties(self, name: str, *, addresses: tuple[str, ...]) -> dict[str, str]:
        certificate, key = self.sign(name, addresses=addresses)
        both = self._folder / f"{name}-both.pem"
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(both),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.certificate),
        }


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "authority"
    folder.mkdir()
    return Authority(folder)


PLAIN = {
    "sasl.enabled.mechanisms": "PLAIN",
    "listener.name.client.plain.sasl.jaas.config": (
        f'org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="{PASSWORD}";'
    ),
}
SCRAM = {
    "sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512",
    "listener.name.client.scram-sha-256.sasl.jaas.config": (
        "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    ),
    "listener.name.client.scram-sha-512.sasl.jaas.config": (
        "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    ),
}


OAUTH = {
    "sasl.enabled.mechanisms": "OAUTHBEARER",
    "listener.name.client.oauthbearer.sasl.jaas.config": (
        "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
        'unsecuredLoginStringClaim_sub="broker";'
    ),
    # Connections are closed when their token has ended.
    "listener.name.client.oauthbearer.connections.max.reauth.ms": "60000",
}


@pytest.fixture
async def brokers() -> AsyncIterator[Any]:
    """`await brokers(KafkaBroker(...))` starts one that ends with the test."""
    running: list[KafkaBroker] = []

    async def started(broker: KafkaBroker) -> KafkaBroker:
        running.append(broker)
        await broker.start()
        return broker

    yield started
    for broker in running:
        await broker.stop()
        broker.remove()


async def passes(settings: dict[str, Any]) -> None:
    """A message goes out and comes in."""
    app = Deimos({"kafka.create_topics": True, "kafka.connect_timeout": 15.0, **settings}, metrics=None, tracing=None)
    topic = app.topic("orders", key=Key.plain())
    producer = app.producer(topic)
    came: asyncio.Queue[Any] = asyncio.Queue()

    @app.consumer(topic, group="g")
    async def handle(message: Message) -> None:
        came.put_nowait(message.payload)

    async with app.running():
        await producer.produce(b"hello", key="k")
        async with asyncio.timeout(DEADLINE):
            assert await came.get() == b"hello"
    assert PASSWORD not in repr(app.settings)


async def test_sasl_over_cleartext_is_refused_unless_it_is_allowed(
    brokers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    broker = await brokers(KafkaBroker(client_protocol="SASL_PLAINTEXT", properties=PLAIN))
    settings = {
        "kafka.bootstrap_servers": broker.bootstrap_servers,
        "kafka.security_protocol": "SASL_PLAINTEXT",
        "kafka.sasl_mechanism": "PLAIN",
        "kafka.sasl_username": "alice",
        "kafka.sasl_password": PASSWORD,
    }
    with pytest.raises(ConfigurationError, match="sasl_allow_cleartext"):
        Deimos(settings)
    await passes(settings | {"kafka.sasl_allow_cleartext": True})
    with pytest.raises(BrokerUnavailableError) as caught:
        await passes(
            settings
            | {
                "kafka.sasl_allow_cleartext": True,
                "kafka.sasl_password": f"{PASSWORD}-no",
                "kafka.connect_timeout": 3.0,
            }
        )
    assert PASSWORD not in str(caught.value) + repr(caught.value)
    assert PASSWORD not in caplog.text


async def test_connections_whose_token_has_ended_are_made_anew_and_nothing_is_lost(brokers: Any) -> None:
    broker = await brokers(KafkaBroker(client_protocol="SASL_PLAINTEXT", properties=OAUTH))
    app = Deimos(
        {
            "kafka.bootstrap_servers": broker.bootstrap_servers,
            "kafka.security_protocol": "SASL_PLAINTEXT",
            "kafka.sasl_mechanism": "OAUTHBEARER",
            "kafka.sasl_oauth_token_provider": "tokens:short",
            "kafka.sasl_allow_cleartext": True,
            "kafka.create_topics": True,
        },
        metrics=None,
        tracing=None,
    )
    topic = app.topic("orders", key=Key.plain())
    producer = app.producer(topic)
    came: asyncio.Queue[bytes] = asyncio.Queue()

    @app.consumer(topic, group="g")
    async def handle(message: Message) -> None:
        came.put_nowait(message.payload)

    async with app.running(), asyncio.timeout(2 * DEADLINE):
        at_start, number = len(tokens.given), 0
        while len(tokens.given) < at_start + 12:  # some for each of the connections, one after another
            payload = b"%d" % number
            await producer.produce(payload, key="k")
            while await came.get() != payload:
                pass  # one that was handled and not yet committed when its connection ended
            number += 1


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_scram_over_tls_with_an_authority_of_ones_own(
    brokers: Any,
    authority: Authority,
    mechanism: str,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    caplog.set_level(logging.DEBUG)
    properties = SCRAM | authority.server_properties("broker.test", addresses=("127.0.0.1",))
    broker = await brokers(
        KafkaBroker(client_protocol="SASL_SSL", properties=properties, scram_users={"alice": PASSWORD})
    )
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("DEIMOS_KAFKA__SASL_PASSWORD_FILE", str(secret))
    settings = {
        "kafka.bootstrap_servers": broker.bootstrap_servers,
        "kafka.security_protocol": "SASL_SSL",
        "kafka.sasl_mechanism": mechanism,
        "kafka.sasl_username": "alice",
        "kafka.ssl_ca": str(authority.certificate),
    }
    await passes(settings)
    await passes(settings | {"kafka.ssl_ca": authority.certificate.read_text()})  # PEM text instead of a path
    with pytest.raises(BrokerUnavailableError):
        await passes(
            {name: v for name, v in settings.items() if name != "kafka.ssl_ca"} | {"kafka.connect_timeout": 3.0}
        )
    assert PASSWORD not in caplog.text


async def test_mutual_tls_takes_a_certificate_and_the_host_name_is_verified(
    brokers: Any, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    properties = authority.server_properties("broker.test", addresses=()) | {"ssl.client.auth": "required"}
    broker = await brokers(KafkaBroker(client_protocol="SSL", properties=properties))
    certificate, key = authority.sign("client")
    settings = {
        "kafka.bootstrap_servers": broker.bootstrap_servers,
        "kafka.security_protocol": "SSL",
        "kafka.ssl_ca": str(authority.certificate),
        "kafka.ssl_certificate": str(certificate),
        "kafka.ssl_key": key.read_text(),
    }
    quick = {"kafka.connect_timeout": 3.0}
    with pytest.raises(BrokerUnavailableError):  # the certificate does not name 127.0.0.1
        await passes(settings | quick)
    await passes(settings | {"kafka.ssl_check_hostname": False})
    without = {name: value for name, value in settings.items() if "certificate" not in name and "key" not in name}
    with pytest.raises(DeimosError):
        await passes(without | quick | {"kafka.ssl_check_hostname": False})
    secret_lines = key.read_text().splitlines()[1:-1]
    assert not any(line in caplog.text for line in secret_lines)
