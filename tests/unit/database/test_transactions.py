"""What leaves with a commit, and what a rollback drops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from deimos_async.database.transactions import current_scope, depart_with, enter_scope, leave_scope, open_scope
from deimos_async.errors import LifecycleError


class Sender:
    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.error: Exception | None = None

    async def __call__(self, items: Sequence[str]) -> None:
        await asyncio.sleep(0)  # it really waits within the commit
        if self.error is not None:
            raise self.error
        self.sent.append(list(items))


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE notes (text TEXT)"))
    yield engine
    await engine.dispose()


async def count(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM notes"))).scalar_one())


INSERT = text("INSERT INTO notes VALUES ('x')")


async def test_items_leave_once_after_the_commit_in_order(engine: AsyncEngine) -> None:
    send = Sender()
    async with AsyncSession(engine) as session, session.begin():
        depart_with(session, send, ["a", "b"])
        depart_with(session, send, ["c"])
        assert send.sent == []
    assert send.sent == [["a", "b", "c"]]


async def test_rollback_drops_and_the_session_can_be_used_again(engine: AsyncEngine) -> None:
    send = Sender()
    async with AsyncSession(engine) as session:
        depart_with(session, send, ["dropped"])
        await session.rollback()
        depart_with(session, send, ["kept"])
        await session.commit()
    assert send.sent == [["kept"]]


async def test_session_closed_without_a_commit_sends_nothing(engine: AsyncEngine) -> None:
    send = Sender()
    async with AsyncSession(engine) as session:
        depart_with(session, send, ["dropped"])
    assert send.sent == []


async def test_savepoint_that_rolls_back_drops_its_own_and_what_is_inside_it(engine: AsyncEngine) -> None:
    send = Sender()
    async with AsyncSession(engine) as session, session.begin():
        depart_with(session, send, ["outer"])
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                depart_with(session, send, ["nested"])
                async with session.begin_nested():
                    depart_with(session, send, ["deeper"])
                raise ZeroDivisionError
        async with session.begin_nested():
            depart_with(session, send, ["released"])
    assert send.sent == [["outer", "released"]]


async def test_released_savepoint_inside_a_rolled_back_one_is_dropped(engine: AsyncEngine) -> None:
    send = Sender()
    async with AsyncSession(engine) as session, session.begin():
        outer = await session.begin_nested()
        async with session.begin_nested():
            depart_with(session, send, ["inner"])
        await outer.rollback()
    assert send.sent == []


async def test_error_of_the_sending_reaches_whoever_committed_and_the_rows_are_kept(engine: AsyncEngine) -> None:
    send = Sender()
    send.error = RuntimeError("broker away")
    async with AsyncSession(engine) as session:
        with pytest.raises(RuntimeError, match="broker away"):
            async with session.begin():
                await session.execute(INSERT)
                depart_with(session, send, ["lost"])
    assert await count(engine) == 1


async def test_different_senders_are_called_in_the_order_of_their_items(engine: AsyncEngine) -> None:
    calls: list[tuple[str, list[str]]] = []

    def sender(name: str) -> Any:
        async def send(items: Sequence[str]) -> None:
            calls.append((name, list(items)))

        return send

    one, two = sender("one"), sender("two")
    async with AsyncSession(engine) as session, session.begin():
        depart_with(session, one, ["a"])
        depart_with(session, two, ["b"])
        depart_with(session, one, ["c", "d"])
    assert calls == [("one", ["a"]), ("two", ["b"]), ("one", ["c", "d"])]


async def test_only_an_async_session_is_taken() -> None:
    with pytest.raises(LifecycleError, match="AsyncSession, not str"):
        depart_with("session", Sender(), [])  # type: ignore[arg-type]


async def test_scope_belongs_to_its_owner_and_to_child_tasks_until_it_ends(engine: AsyncEngine) -> None:
    owner, other = object(), object()
    go_on = asyncio.Event()

    async def child() -> None:
        assert current_scope(owner) is scope
        await go_on.wait()
        assert open_scope(owner) is None
        with pytest.raises(LifecycleError, match="has ended"):
            current_scope(owner)

    async with AsyncSession(engine) as session:
        scope, token = enter_scope(owner, session)
        assert current_scope(other) is None
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
        leave_scope(scope, token)
        go_on.set()
        await task
    assert current_scope(owner) is None
