"""The registry's client on sockets: a real registry, TLS, dead addresses, slow and greedy servers."""

import asyncio
import datetime as dt
import gc
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deimos_async.errors import RegistryUnavailableError, SchemaIncompatibleError, SchemaNotFoundError
from deimos_async.schemas.registry import HttpSchemaRegistry, RegistryOptions

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def say_found(writer: asyncio.StreamWriter) -> None:
    content = json.dumps({"schema": '"string"'}).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))


class SmallServer:
    """Gives every request the same answer, and keeps the heads of the requests."""

    def __init__(self, answer: Answer) -> None:
        self.heads: list[str] = []
        self.ended = asyncio.Event()
        self.port = 0
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                await self._answer(writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            self.ended.set()
            writer.close()


@asynccontextmanager
async def serving(answer: Answer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[SmallServer]:
    small = SmallServer(answer)
    server = await asyncio.start_server(small.serve, "127.0.0.1", 0, ssl=tls)
    small.port = server.sockets[0].getsockname()[1]
    try:
        yield small
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def client_of(*urls: str, **options: Any) -> AsyncIterator[HttpSchemaRegistry]:
    client = HttpSchemaRegistry(RegistryOptions(urls=urls, **options))
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def dead_address() -> AsyncIterator[str]:
    """URL of a port that nobody can listen on meanwhile."""
    reserved = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, start_serving=False)
    try:
        yield f"http://127.0.0.1:{reserved.sockets[0].getsockname()[1]}"
    finally:
        reserved.close()
        await reserved.wait_closed()


# A real registry


@pytest.mark.services("registry")
async def test_incompatible_schema_is_refused_and_the_newest_version_stays(registry_url: str, unique_name: str) -> None:
    def text(of: str) -> str:
        return json.dumps({"type": "record", "name": unique_name, "fields": [{"name": "id", "type": of}]})

    async with client_of(registry_url) as client:
        registered = await client.register(unique_name, text("long"))
        async with httpx2.AsyncClient(trust_env=False) as http:
            answer = await http.put(f"{registry_url}/config/{unique_name}", json={"compatibility": "BACKWARD"})
            assert answer.status_code == 200
        with pytest.raises(SchemaIncompatibleError, match=unique_name) as caught:
            await client.register(unique_name, text("string"))
        assert not caught.value.retriable
        assert (await client.latest(unique_name)).id == registered.id


@pytest.mark.services("registry")
async def test_dead_url_is_passed_over_and_not_asked_first_again(registry_url: str, unique_name: str) -> None:
    async with dead_address() as dead, client_of(dead, registry_url) as client:
        await client.ping()
        assert (await client.register(unique_name, '"string"')).id > 0
        with pytest.raises(SchemaNotFoundError):
            await client.latest(f"{unique_name}-other")


@pytest.mark.services("registry")
async def test_wrong_path_in_the_url_is_not_taken_for_a_missing_schema(registry_url: str) -> None:
    async with client_of(f"{registry_url}/wrong") as client:
        with pytest.raises(RegistryUnavailableError, match=r"is the path of the URL right\?"):
            await client.by_id(1)
        with pytest.raises(RegistryUnavailableError):
            await client.ping()


@pytest.mark.services("registry")
async def test_schema_larger_than_usual_goes_there_and_back(registry_url: str, unique_name: str) -> None:
    text = json.dumps(
        {"type": "enum", "name": unique_name, "symbols": [f"SYMBOL_{number}" for number in range(20_000)]}
    )
    async with client_of(registry_url) as client, client_of(registry_url) as other:
        registered = await client.register(unique_name, text)
        assert json.loads((await other.by_id(registered.id)).text) == json.loads(text)


# Sockets


async def test_registry_that_is_away_is_unavailable_when_the_deadline_is_over() -> None:
    async with dead_address() as dead, client_of(dead, deadline=0.3) as client:
        with pytest.raises(RegistryUnavailableError, match=dead):
            await client.by_id(1)


async def test_registry_that_comes_up_is_found_within_the_deadline() -> None:
    answered = 0

    async def hang_up_at_first(writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        answered += 1
        if answered == 1:
            writer.transport.abort()
        else:
            await say_found(writer)

    async with serving(hang_up_at_first) as server, client_of(f"http://127.0.0.1:{server.port}") as client:
        assert (await client.by_id(1)).text == '"string"'
    assert answered == 2


async def test_server_that_drips_is_given_up_after_the_time_for_a_request() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0)

    async with (
        serving(drip) as server,
        client_of(f"http://127.0.0.1:{server.port}", request_timeout=0.2, deadline=0.3) as client,
    ):
        with pytest.raises(RegistryUnavailableError, match="no answer within"):
            await client.by_id(1)
        await asyncio.wait_for(server.ended.wait(), 30)


async def test_thousand_askers_on_a_socket_make_one_request() -> None:
    async with serving(say_found) as server, client_of(f"http://127.0.0.1:{server.port}") as client:
        found = await asyncio.gather(*(client.by_id(1) for _ in range(1000)))
        assert {schema.text for schema in found} == {'"string"'}
        assert len(server.heads) == 1


async def test_credentials_do_not_follow_a_redirect_to_another_port() -> None:
    async with serving(say_found) as other:

        async def redirect(writer: asyncio.StreamWriter) -> None:
            location = f"http://127.0.0.1:{other.port}/schemas/ids/1"
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

        async with (
            serving(redirect) as server,
            client_of(f"http://127.0.0.1:{server.port}", user="ann", password="secret") as client,
        ):
            with pytest.raises(RegistryUnavailableError, match=f"redirects to http://127.0.0.1:{other.port}"):
                await client.by_id(1)
        assert "authorization: basic " in server.heads[0].lower()
        assert other.heads == []


# TLS


class Authority:
    """Makes certificates for 127.0.0.1 that nobody else trusts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
        certificate = self._sign(self._name, self._key, authority=True)
        self.path = self._write("ca.pem", certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[str, str]:
        """Paths of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, authority=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return (
            self._write(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{name}.key", private),
        )

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(address, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _write(self, name: str, content: bytes) -> str:
        path = self._folder / name
        path.write_bytes(content)
        return str(path)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def server_context(authority: Authority, *, wants_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    if wants_client:
        context.load_verify_locations(authority.path)
        context.verify_mode = ssl.CERT_REQUIRED
        # With TLS 1.3 the client would hear of its missing certificate only after the handshake.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


async def test_https_with_an_authority_of_ones_own(authority: Authority) -> None:
    async with (
        serving(say_found, tls=server_context(authority)) as server,
        client_of(f"https://127.0.0.1:{server.port}", ssl_ca=authority.path) as client,
    ):
        assert (await client.by_id(1)).text == '"string"'


async def test_certificate_of_an_unknown_authority_is_refused_and_the_setting_named(authority: Authority) -> None:
    async with (
        serving(say_found, tls=server_context(authority)) as server,
        client_of(f"https://127.0.0.1:{server.port}", token="abc", deadline=0.3) as client,
    ):
        with pytest.raises(RegistryUnavailableError, match=r"TLS fails \(.*certificate.*\).*schema\.ssl_ca"):
            await client.by_id(1)
        assert server.heads == []


async def test_handshake_that_is_cut_leaves_no_connection(authority: Authority) -> None:
    # The more moments the deadline hits, the surer it hits one within the handshake.
    async with serving(say_found, tls=server_context(authority)) as server:
        for milliseconds in range(1, 21):
            async with client_of(f"https://127.0.0.1:{server.port}", deadline=milliseconds / 1000) as client:
                with pytest.raises(RegistryUnavailableError):
                    await client.by_id(1)
    gc.collect()  # a transport that nobody closed warns when it goes, and warnings are errors


async def test_mutual_tls_needs_the_clients_certificate(authority: Authority) -> None:
    certificate, key = authority.issue("client")
    async with serving(say_found, tls=server_context(authority, wants_client=True)) as server:
        url = f"https://127.0.0.1:{server.port}"
        async with client_of(url, ssl_ca=authority.path, ssl_certificate=certificate, ssl_key=key) as client:
            assert (await client.by_id(1)).text == '"string"'
        async with client_of(url, ssl_ca=authority.path, deadline=0.3) as client:
            with pytest.raises(RegistryUnavailableError):
                await client.by_id(1)
        assert len(server.heads) == 1
