"""A registry whose subjects go away with the client. That they do is seen on a real one, by the tests of the plugin."""

from __future__ import annotations

import logging

import pytest

from deimos_async.errors import RegistryUnavailableError
from deimos_async.schemas.registry_disposable import DisposableSchemaRegistry
from deimos_async.schemas.registry_options import RegistryOptions


async def test_subjects_that_cannot_be_deleted_are_logged_and_the_client_closes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = DisposableSchemaRegistry(RegistryOptions(("http://127.0.0.1:9",), deadline=0.05), "mine-")
    with pytest.raises(RegistryUnavailableError):
        await registry.register("mine-orders-value", '"string"')
    with caplog.at_level(logging.WARNING):
        await registry.close()
        assert caplog.text.count("the schema registry keeps subjects of a test") == 1
        await registry.close()
        assert caplog.text.count("the schema registry keeps subjects of a test") == 1


async def test_subjects_of_others_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    registry = DisposableSchemaRegistry(RegistryOptions(("http://127.0.0.1:9",), deadline=0.05), "mine-")
    with pytest.raises(RegistryUnavailableError):
        await registry.register("com.acme.Order", '"string"')
    with caplog.at_level(logging.WARNING):
        await registry.close()
    assert "keeps subjects" not in caplog.text
