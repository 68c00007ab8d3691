"""The pytest plugin as users have it: installed, found by its entry point, in a pytest run of its own."""

from __future__ import annotations

import asyncio
import json
import urllib.request

import pytest
from aiokafka.admin import AIOKafkaAdminClient

pytest_plugins = ["pytester"]

_INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
pythonpath = .
addopts = --strict-markers --strict-config
filterwarnings = error
"""

_SCHEMAS = {
    "Order": [("order_id", "int"), ("total", "double")],
    "Invoice": [("order_id", "int"), ("amount", "double")],
    "InvoiceKey": [("order_id", "int")],
}

_EVENTS = """
from deimos_async import Deimos, Key, Message, OnError

app = Deimos()

orders = app.topic("orders", schema="com.acme.Order", key=Key.field("order_id"))
invoices = app.topic("invoices", schema="com.acme.Invoice", key=Key.schema("com.acme.InvoiceKey"))
to_orders = app.producer(orders)
to_invoices = app.producer(invoices)

@app.consumer(orders, group="billing")
async def bill(message: Message) -> None:
    if message.payload["total"] < 0:
        raise ValueError("negative total")
    await to_invoices.produce({"order_id": message.payload["order_id"], "amount": message.payload["total"]},
                              key={"order_id": message.key})

refunds = app.topic("refunds", schema="com.acme.Invoice", key=Key.field("order_id"), partitions=3)
to_refunds = app.producer(refunds)
tries = []

@app.consumer(refunds, group="billing", on_error=OnError(attempts=1, retry_topics=(3600, 86400)))
async def refund(message: Message) -> None:
    tries.append(message.key)
    if len(tries) < 3:
        raise ValueError("the bank is closed")

@app.consumer(orders, group="statistics", batch=True, max_batch=1000, max_wait=0.2)
async def count(messages: list[Message]) -> None:
    pass
"""

_CONFTEST = """
import pytest

@pytest.fixture
def deimos_app():
    from shop.events import app
    return app
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """The application of the documentation, with its schemas, and no test yet."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makefile(".ini", pytest=_INI)
    for name, fields in _SCHEMAS.items():
        path = pytester.path / "schemas" / "com" / "acme" / f"{name}.avsc"
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = {
            "type": "record",
            "name": name,
            "namespace": "com.acme",
            "fields": [{"name": field, "type": kind} for field, kind in fields],
        }
        path.write_text(json.dumps(schema))
    shop = pytester.mkdir("shop")
    (shop / "events.py").write_text(_EVENTS)
    pytester.makeconftest(_CONFTEST)
    return pytester


_EXAMPLES = """
import pytest
from shop.events import app, bill, count, to_orders, to_refunds, tries

@pytest.fixture(autouse=True)
def prefix(deimos):
    with open("prefixes.txt", "a") as file:
        print(app.settings.producers.topic_prefix, file=file)

async def test_bill(deimos):
    await deimos.consume_message(bill, {"order_id": 1, "total": 9.5}, key=1)
    deimos.assert_sent("invoices", {"order_id": 1, "amount": 9.5}, key={"order_id": 1})

async def test_count(deimos):
    await deimos.consume_batch(count, [{"order_id": 1, "total": 9.5}], keys=[1])
    deimos.assert_not_sent("invoices")

async def test_shop(deimos):
    await to_orders.produce({"order_id": 2, "total": 1})
    await deimos.run_until_idle()
    deimos.assert_sent("invoices", {"order_id": 2, "amount": 1.0})
    assert len(deimos.sent_messages()) == 2
    await to_orders.produce({"order_id": 3, "total": 1}, backend="kafka_async")
    await deimos.run_until_idle()
    await deimos.run_until_idle()
    assert [message.key for message in deimos.sent_messages("invoices")] == [{"order_id": 2}, {"order_id": 3}]

async def test_mocks(deimos):
    with deimos.mock_backends():
        await deimos.consume_message(bill, {"order_id": 3, "total": 1})
        await to_orders.produce({"order_id": 4, "total": 1})
        await deimos.run_until_idle()
    deimos.assert_sent_including("invoices", {"order_id": 3})
    deimos.assert_sent_including("invoices", {"order_id": 4})

async def test_error(deimos):
    await to_orders.produce({"order_id": 1, "total": -1})
    with pytest.raises(ValueError, match="negative total") as caught:
        await deimos.run_until_idle()
    assert "stopped at orders[0]@0" in caught.value.__notes__[0]

@pytest.mark.deimos(settings={"consumers.reraise_errors": False, "consumers.on_error.backoff_initial": 30.0})
async def test_letter(deimos):
    await to_orders.produce({"order_id": 1, "total": -1})
    await deimos.run_until_idle(timeout=25)
    deimos.assert_sent("orders-dlt", {"order_id": 1, "total": -1.0}, key=1, headers={})
    deimos.assert_sent("orders-dlt", {"order_id": 1, "total": -1.0}, headers={
        "deimos-dlq-topic": "orders", "deimos-dlq-group": "billing", "deimos-dlq-attempts": "3"})

@pytest.mark.deimos(settings={"consumers.reraise_errors": False})
async def test_retries(deimos):
    tries.clear()
    await to_refunds.produce({"order_id": 7, "amount": 1})
    await deimos.run_until_idle(advance=False)
    deimos.assert_sent("refunds-retry-1", {"order_id": 7, "amount": 1.0}, key=7)
    assert tries == [7]
    deimos.advance(3601)
    await deimos.run_until_idle(advance=False)
    deimos.assert_sent("refunds-retry-2", {"order_id": 7, "amount": 1.0}, headers={"deimos-retry-topic": "refunds",
                       "deimos-retry-attempts": "2"})
    await deimos.run_until_idle(timeout=25)
    assert tries == [7, 7, 7]
    deimos.assert_not_sent("refunds-dlt")
"""


def run(project: pytest.Pytester, test: str, *arguments: str) -> pytest.RunResult:
    project.makepyfile(test_shop=test)
    return project.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=120)


def test_example_of_the_documentation_passes_and_tests_share_nothing(project: pytest.Pytester) -> None:
    run(project, _EXAMPLES).assert_outcomes(passed=7)


async def test_same_tests_pass_on_kafka_with_a_registry_in_memory(
    project: pytest.Pytester, kafka_bootstrap: str
) -> None:
    result = await asyncio.to_thread(
        run, project, _EXAMPLES, "--deimos-kafka", kafka_bootstrap, "-k", "letter or mocks"
    )
    result.assert_outcomes(passed=2)
    assert await _left(kafka_bootstrap, _prefixes(project)) == []


def _prefixes(project: pytest.Pytester) -> tuple[str, ...]:
    """What names of topics, groups and subjects began with, a different word in each test."""
    return tuple(set((project.path / "prefixes.txt").read_text().split()))


async def test_same_tests_pass_on_kafka_and_a_registry_and_leave_nothing_there(
    project: pytest.Pytester, kafka_bootstrap: str, registry_url: str
) -> None:
    result = await asyncio.to_thread(
        run, project, _EXAMPLES, "--deimos-kafka", kafka_bootstrap, "--deimos-registry", registry_url
    )
    result.assert_outcomes(passed=7)
    assert len(_prefixes(project)) == 7
    assert await _left(kafka_bootstrap, _prefixes(project)) == []
    subjects = await asyncio.to_thread(_subjects, registry_url)
    assert [subject for subject in subjects if subject.startswith(_prefixes(project))] == []


def _subjects(registry_url: str) -> list[str]:
    """Every subject, those included that are not deleted for good."""
    with urllib.request.urlopen(f"{registry_url}/subjects?deleted=true") as answer:
        subjects: list[str] = json.load(answer)
    return subjects


async def _left(bootstrap: str, prefixes: tuple[str, ...]) -> list[str]:
    """Topics and groups on a broker whose names begin so."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        names = await admin.list_topics() + [group for group, _ in await admin.list_consumer_groups()]
    finally:
        await admin.close()
    return sorted(name for name in names if name.startswith(prefixes))


@pytest.mark.parametrize("arguments", [("--deimos-kafka", "nowhere"), ("--deimos-registry", "nowhere")])
def test_address_that_is_none_is_told(project: pytest.Pytester, arguments: tuple[str, str]) -> None:
    result = run(project, "async def test_it(deimos): pass", *arguments)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ConfigurationError: *"])


def test_failed_assertion_shows_closest_message_and_hides_the_library(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        from shop.events import bill

        async def test_bill(deimos):
            await deimos.consume_message(bill, {"order_id": 1, "total": 9.5})
            deimos.assert_sent("invoices", {"order_id": 1, "amount": 9.0})
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: expected on topic 'invoices': payload={'order_id': 1, 'amount': 9.0}",
            "*the closest message is number 1 of 1; 1 difference:",
            "*payload.amount: expected 9.0, is 9.5",
            "*sent to 'invoices':",
            "*1. payload={'order_id': 1, 'amount': 9.5}, key={'order_id': 1}",
        ]
    )
    result.stdout.no_fnmatch_line("*explain_missing*")


def test_settings_of_a_test_come_from_the_fixture_and_above_it_the_marker(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import pytest
        from shop.events import app, bill

        @pytest.fixture
        def deimos_settings():
            return {"consumers.reraise_errors": False, "consumers.max_records": 7}

        async def test_fixture(deimos):
            await deimos.consume_message(bill, {"order_id": 1, "total": -1})
            assert app.settings.consumers.max_records == 7

        @pytest.mark.deimos(settings={"consumers.reraise_errors": True, "consumers": {"max_records": 8}})
        class TestMarked:
            @pytest.mark.deimos(settings={"consumers.max_records": 9})
            async def test_marker(self, deimos):
                with pytest.raises(ValueError, match="negative"):
                    await deimos.consume_message(bill, {"order_id": 1, "total": -1})
                assert app.settings.consumers.max_records == 9

        @pytest.mark.deimos("consumers.reraise_errors")
        async def test_wrong_marker(deimos):
            pass
        """,
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*UsageError: write @pytest.mark.deimos(settings={*"])


def test_without_deimos_app_the_failure_shows_the_lines_to_write(project: pytest.Pytester) -> None:
    project.makeconftest("")
    result = run(project, "async def test_it(deimos): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*write in conftest.py:", "*def deimos_app():"])


def test_mistake_in_the_application_fails_the_test_that_uses_it(project: pytest.Pytester) -> None:
    (project.path / "shop" / "events.py").write_text(_EVENTS.replace("com.acme.InvoiceKey", "com.acme.Missing"))
    result = run(project, "async def test_it(deimos): pass\ndef test_other(): pass")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*ConfigurationError: topic 'invoices': *com.acme.Missing*"])


def test_fixture_works_in_the_strict_mode_of_pytest_asyncio(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import pytest
        from shop.events import bill

        @pytest.mark.asyncio
        async def test_bill(deimos):
            await deimos.consume_message(bill, {"order_id": 1, "total": 9.5})
            deimos.assert_sent("invoices", {"order_id": 1, "amount": 9.5})
        """,
        "-o",
        "asyncio_mode=strict",
    )
    result.assert_outcomes(passed=1)


def test_without_pytest_asyncio_other_tests_run_and_the_fixture_says_what_to_install(
    project: pytest.Pytester,
) -> None:
    (project.path / "hidden.py").write_text("import sys\nsys.modules['pytest_asyncio'] = None\n")
    project.makefile(".ini", pytest="[pytest]\npythonpath = .\n")
    project.makepyfile(test_shop="def test_it(deimos): pass\ndef test_other(): pass")
    project.syspathinsert()
    result = project.runpytest_subprocess("-p", "hidden", "-p", "no:asyncio", timeout=120)
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*pip install 'deimos-async*testing*'"])


def test_nothing_of_the_library_is_loaded_until_a_fixture_is_used(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import sys

        def test_modules():
            ours = {name for name in sys.modules if name.startswith("deimos_async")}
            assert ours == {"deimos_async", "deimos_async.testing", "deimos_async.testing.plugin"}
            heavy = {"sqlalchemy", "pydantic", "aiokafka", "fastavro", "httpx2", "opentelemetry"}
            assert not heavy & sys.modules.keys()
        """,
    )
    result.assert_outcomes(passed=1)
