"""Backends by name."""

import importlib.metadata
import subprocess
import sys

import pytest

from deimos_async.errors import ConfigurationError
from deimos_async.schemas import backends
from deimos_async.schemas.backends import BACKEND_NAMES, backend
from deimos_async.schemas.plain import PlainBackend


@pytest.mark.parametrize("name", BACKEND_NAMES)
def test_backend_of_this_version_is_found_and_names_itself(name: str) -> None:
    found = backend(name)
    assert found.name == name
    assert backend(name) is found


@pytest.mark.parametrize(
    ("name", "stand_in"),
    [
        ("avro_schema_registry", "avro_validation"),
        ("avro_local", "avro_validation"),
        ("avro_validation", "avro_validation"),
        ("mock", "mock"),
        ("plain", "plain"),
    ],
)
def test_stand_in_for_tests_is_that_of_deimos(name: str, stand_in: str) -> None:
    assert backend(name).mock == stand_in
    assert not backend(stand_in).uses_registry


@pytest.mark.parametrize("name", ["proto_schema_registry", "proto_local", "json_schema_registry", "json_local"])
def test_backend_of_a_later_version_is_not_available(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{name}' is not available in this version"):
        backend(name)


def test_unknown_backend_lists_the_names_and_the_closest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'avro_local'") as caught:
        backend("avro_locl")
    for name in BACKEND_NAMES:
        assert name in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        backend("xyzzy")
    assert "did you mean" not in str(caught.value)


def offer(monkeypatch: pytest.MonkeyPatch, *offered: tuple[str, str]) -> None:
    group = backends.ENTRY_POINT_GROUP
    entries = importlib.metadata.EntryPoints(importlib.metadata.EntryPoint(name, at, group) for name, at in offered)
    monkeypatch.setattr(backends, "entry_points", lambda *, group: entries.select(group=group))


def test_other_packages_add_backends_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("theirs", "deimos_async.schemas.plain:plain"), ("plain", "nowhere:nothing"))
    assert isinstance(backend("theirs"), PlainBackend)
    assert backend("plain").name == "plain"  # ours stay ours
    with pytest.raises(ConfigurationError, match="theirs"):
        backend("other")


@pytest.mark.parametrize(
    ("at", "problem"),
    [
        ("no_such_package_anywhere:x", "cannot be loaded: ModuleNotFoundError"),
        ("deimos_async.schemas.plain:nothing", "cannot be loaded: AttributeError"),
        ("deimos_async.schemas.plain:PlainBackend", "is a class; name an instance"),
        ("deimos_async.schemas.plain:__doc__", "has no uses_registry"),
    ],
)
def test_broken_entry_point_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, at: str, problem: str) -> None:
    offer(monkeypatch, ("theirs", at))
    with pytest.raises(ConfigurationError, match=problem) as caught:
        backend("theirs")
    assert "'theirs'" in str(caught.value)


def test_codec_module_loads_no_schema_library() -> None:
    code = (
        "import sys, deimos_async.schemas.codec\n"
        "print(sorted({'fastavro', 'httpx2', 'deimos_async.schemas.avro'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
