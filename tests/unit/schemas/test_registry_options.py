"""Mistakes in the registry's settings are found at once, and secrets are never shown."""

import base64
import ssl
from pathlib import Path

import pytest

from deimos_async.errors import ConfigurationError
from deimos_async.schemas.registry import HttpSchemaRegistry, RegistryOptions


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://ann:secret-1@host:8081", "holds credentials; remove them from the URL and use settings 'schema.user'"),
        ("http://secret-1@host", "holds credentials"),
        ("ann:secret-1@host:8081", "holds credentials"),
        ("http://ann:secret-1@ho st:port", "is not a URL"),
        ("localhost:8081", "give http"),
        ("ftp://host", "give http"),
        ("http://", "give http"),
        ("", "give http"),
        ("http://host/path?x=1", "remove what follows the path"),
        ("http://host/#top", "remove what follows the path"),
        ("http://host:port", "is not a URL"),
    ],
)
def test_url_that_cannot_be_used_is_refused_without_showing_a_password(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RegistryOptions(urls=(url,))
    assert "schema.registry_url" in str(caught.value)
    assert problem in str(caught.value)
    assert "secret-1" not in str(caught.value)


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RegistryOptions(urls=("http://good", "bad"), user="a:b", token="secret-1\n", ssl_key="key.pem")
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    assert "URL 2" in text
    assert "secret-1" not in text


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"password": "secret-1"}, "without its user"),
        ({"user": "ann", "token": "secret-1"}, "exclude each other"),
        ({"token": ""}, "printable ASCII"),
    ],
)
def test_credentials_that_do_not_fit_together_are_refused(given: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        RegistryOptions(urls=("http://host",), **given)
    assert "secret-1" not in str(caught.value)


def test_repr_shows_no_secret() -> None:
    basic = RegistryOptions(
        urls=("https://host",), user="ann", password="secret-1", ssl_certificate="cert.pem", ssl_key="secret-2"
    )
    bearer = RegistryOptions(urls=("https://host",), token="secret-3")
    shown = repr(basic) + repr(bearer)
    assert "secret" not in shown
    assert "ann" in shown


def test_basic_credentials_are_utf_8_and_bearer_tokens_are_taken_as_they_are() -> None:
    basic = RegistryOptions(urls=("http://host",), user="änn", password="pä:ss").authorization()
    assert basic is not None
    assert base64.b64decode(basic.removeprefix("Basic ")).decode() == "änn:pä:ss"
    assert RegistryOptions(urls=("http://host",), token="abc.def").authorization() == "Bearer abc.def"
    assert RegistryOptions(urls=("http://host",)).authorization() is None


@pytest.mark.parametrize(
    ("given", "setting"),
    [({"ssl_ca": "missing.pem"}, "schema.ssl_ca"), ({"ssl_certificate": "missing.pem"}, "schema.ssl_certificate")],
)
def test_certificate_that_cannot_be_read_is_refused_when_the_client_is_made(
    given: dict[str, str], setting: str
) -> None:
    with pytest.raises(ConfigurationError, match=setting):
        HttpSchemaRegistry(RegistryOptions(urls=("https://host",), **given))


def test_file_that_holds_no_certificate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nothing")
    with pytest.raises(ConfigurationError, match=r"schema\.ssl_ca"):
        HttpSchemaRegistry(RegistryOptions(urls=("https://host",), ssl_ca=str(path)))


def test_https_checks_the_certificate_and_its_name() -> None:
    context = RegistryOptions(urls=("https://host",)).ssl_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
