"""What `--deimos-kafka` and `--deimos-registry` change in an application, and that it is changed back."""

from __future__ import annotations

from typing import Any

import pytest

from deimos_async import Deimos
from deimos_async.errors import ConfigurationError
from deimos_async.testing.surroundings import Surroundings

SETTINGS: dict[str, Any] = {
    "kafka.extra": {"metadata_max_age_ms": 1000},
    "clusters.west.bootstrap_servers": "west:9092",
    "producers.topic_prefix": "shop-",
    "consumers.heartbeat_interval": 0.1,
}


@pytest.fixture
def app() -> Deimos:
    return Deimos(SETTINGS, metrics=None, tracing=None)


async def test_in_memory_nothing_is_changed(app: Deimos) -> None:
    before = app.settings
    async with Surroundings().around(app) as prefix:
        assert prefix == ""
        assert app.settings is before


async def test_every_cluster_is_the_one_broker_and_the_prefix_precedes_that_of_the_application(app: Deimos) -> None:
    before = app.settings
    async with Surroundings(kafka="one:1,two:2").around(app) as prefix:
        settings = app.settings
        assert settings.kafka.bootstrap_servers == "one:1,two:2"
        assert settings.clusters["west"].bootstrap_servers == "one:1,two:2"
        assert settings.kafka.extra["metadata_max_age_ms"] == 1000
        assert settings.consumers.heartbeat_interval == 0.1
        assert settings.producers.topic_prefix == prefix + "shop-"
        assert app._broker_factory is not None
        assert app._broker_factory("west", settings).name == "west"
    assert app.settings is before
    assert app._broker_factory is None


async def test_each_use_has_a_prefix_of_its_own(app: Deimos) -> None:
    surroundings = Surroundings(kafka="one:1")
    async with surroundings.around(app) as first:
        pass
    async with surroundings.around(app) as second:
        pass
    assert first
    assert second
    assert first != second


async def test_registry_is_used_within_the_block_only_also_after_an_exception(app: Deimos) -> None:
    with pytest.raises(RuntimeError):
        async with Surroundings(registry="http://registry:8081").around(app):
            assert app._registry is not None
            raise RuntimeError
    assert app._registry is None


@pytest.mark.parametrize("given", [{"kafka": "nowhere"}, {"registry": "nowhere"}])
async def test_address_that_is_none_is_a_mistake_of_configuration(app: Deimos, given: dict[str, str]) -> None:
    before = app.settings
    with pytest.raises(ConfigurationError):
        async with Surroundings(**given).around(app):
            pytest.fail("it must not be entered")
    assert app.settings is before
    assert (app._broker_factory, app._registry) == (None, None)
