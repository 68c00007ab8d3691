"""What leaves with a commit, and what a rollback drops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, insert, select, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.util import greenlet_spawn

from deimos_async.database.transactions import (
    current_scope,
    depart_with,
    enter_scope,
    leave_scope,
    open_scope,
    tell_with,
    write_with,
)
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


@pytest.mark.parametrize("give", [depart_with, write_with])
async def test_what_is_given_while_the_rest_is_leaving_is_refused(engine: AsyncEngine, give: Any) -> None:
    """It would wait for ever, for a transaction that nobody ends."""
    send = Sender()
    async with AsyncSession(engine) as session:

        async def give_more(items: Sequence[str]) -> None:
            give(session, send, ["late"])

        depart_with(session, give_more, ["first"])
        depart_with(session, send, ["second"])
        with pytest.raises(LifecycleError, match="is committed; produce before that"):
            await session.commit()
        assert send.sent == [["second"]]
        depart_with(session, send, ["third"])
        await session.commit()
    assert send.sent == [["second"], ["third"]]


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


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(default="new")


class Entry(Base):
    """What is written at the end of a transaction."""

    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Writer:
    """Writes entries, and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.orders_seen: list[int] = []
        self.error: BaseException | None = None

    def __call__(self, session: Session, items: Sequence[str]) -> None:
        with session.no_autoflush:
            self.orders_seen.append(len(session.execute(select(Order.id)).all()))
        session.connection().execute(insert(Entry), [{"text": item} for item in items])
        if self.error is not None:
            raise self.error
        self.calls.append(list(items))


@pytest.fixture
async def orders(engine: AsyncEngine) -> AsyncEngine:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return engine


async def entries(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list(await connection.scalars(select(Entry.text).order_by(Entry.id)))


async def test_writer_is_called_once_at_the_end_after_the_flush(orders: AsyncEngine) -> None:
    write = Writer()
    async with AsyncSession(orders) as session, session.begin():
        write_with(session, write, ["a"])
        session.add(Order(id=1))
        write_with(session, write, ["b", "c"])
        await session.flush()
        session.add(Order(id=2))
        assert write.calls == []
    assert write.calls == [["a", "b", "c"]]
    assert write.orders_seen == [2]
    assert await entries(orders) == ["a", "b", "c"]


async def test_items_alone_make_a_transaction_and_a_session_has_several(orders: AsyncEngine) -> None:
    write = Writer()
    async with AsyncSession(orders) as session:
        write_with(session, write, ["a"])
        await session.commit()
        await session.commit()
        write_with(session, write, ["b"])
        await session.commit()
        write_with(session, write, ["dropped"])
        await session.rollback()
        await session.commit()
        write_with(session, write, ["closed"])
    assert write.calls == [["a"], ["b"]]
    assert await entries(orders) == ["a", "b"]


async def test_neighbours_of_one_writer_are_written_together_and_in_order(orders: AsyncEngine) -> None:
    one, two = Writer(), Writer()
    async with AsyncSession(orders) as session, session.begin():
        write_with(session, one, ["a"])
        write_with(session, one, ["b"])
        write_with(session, two, ["c"])
        write_with(session, one, ["d"])
    assert (one.calls, two.calls) == ([["a", "b"], ["d"]], [["c"]])
    assert await entries(orders) == ["a", "b", "c", "d"]


async def test_savepoints_drop_what_was_given_in_them_when_they_roll_back(orders: AsyncEngine) -> None:
    write = Writer()
    async with AsyncSession(orders) as session, session.begin():
        write_with(session, write, ["outer"])
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                session.add(Order(id=1))
                write_with(session, write, ["dropped"])
                async with session.begin_nested():
                    write_with(session, write, ["released within"])
                raise ZeroDivisionError
        async with session.begin_nested():
            write_with(session, write, ["released"])
        assert write.calls == []  # a savepoint's release is no commit, though SQLAlchemy tells it as one
    assert write.calls == [["outer", "released"]]


async def test_commit_with_an_open_savepoint_writes_what_is_in_it(orders: AsyncEngine) -> None:
    write = Writer()
    async with AsyncSession(orders) as session:
        await session.begin()
        await session.begin_nested()
        write_with(session, write, ["within"])
        await session.commit()
    assert write.calls == [["within"]]


@pytest.mark.parametrize("error", [RuntimeError("full"), asyncio.CancelledError()])
async def test_what_a_writer_raises_reaches_the_caller_and_nothing_is_committed(
    orders: AsyncEngine, error: BaseException
) -> None:
    write, send = Writer(), Sender()
    write.error = error
    async with AsyncSession(orders) as session:
        with pytest.raises(type(error)):
            async with session.begin():
                session.add(Order(id=1))
                write_with(session, write, ["a"])
                depart_with(session, send, ["message"])
        assert await session.scalar(select(Order.id)) is None
        write.error = None
        write_with(session, write, ["next"])
        await session.commit()
    assert await entries(orders) == ["next"]
    assert send.sent == []


@pytest.mark.parametrize("flushed", [True, False])
async def test_commit_that_could_not_write_is_not_repeated_but_rolled_back(
    orders: AsyncEngine, *, flushed: bool
) -> None:
    """It may have written a part, which a second commit would write twice or leave alone without the rest."""
    write = Writer()
    write.error = RuntimeError("full")
    async with AsyncSession(orders) as session:
        session.add(Order(id=1))
        if flushed:
            await session.flush()
        write_with(session, write, ["a"])
        with pytest.raises(RuntimeError, match="full"):
            await session.commit()
        write.error = None
        # SQLAlchemy itself refuses after a flush that failed.
        with pytest.raises(LifecycleError if flushed else PendingRollbackError, match=r"roll it back|rolled back"):
            await session.commit()
        await session.rollback()
        session.add(Order(id=2))
        await session.commit()
        assert list(await session.scalars(select(Order.id))) == [2]
    assert await entries(orders) == []


async def test_async_writer_is_waited_for_and_may_use_the_session_by_greenlet_spawn(orders: AsyncEngine) -> None:
    async def write(session: Session, items: Sequence[str]) -> None:
        await asyncio.sleep(0)
        await greenlet_spawn(session.connection().execute, insert(Entry), [{"text": item} for item in items])

    async with AsyncSession(orders) as session, session.begin():
        await session.connection()
        write_with(session, write, ["a"])
    assert await entries(orders) == ["a"]


async def test_writers_that_give_more_are_called_until_nothing_comes(orders: AsyncEngine) -> None:
    write = Writer()

    def first(session: Session, items: Sequence[str]) -> None:
        session.add(Order(id=7))
        write_with(session, write, [f"{item}, then" for item in items])

    async with AsyncSession(orders) as session, session.begin():
        write_with(session, first, ["a"])
    assert write.calls == [["a, then"]]
    assert write.orders_seen == [1]


async def test_writers_that_never_end_are_told(orders: AsyncEngine) -> None:
    def again(session: Session, items: Sequence[str]) -> None:
        write_with(session, again, items)

    async with AsyncSession(orders) as session:
        write_with(session, again, ["a"])
        with pytest.raises((LifecycleError, RecursionError)):
            await session.commit()


@pytest.mark.parametrize("flushes_itself", [True, False])
async def test_what_a_later_listener_adds_is_written_too(orders: AsyncEngine, *, flushes_itself: bool) -> None:
    """A listener that is told of the commit after ours adds a row; one that watches flushes gives an item for it."""
    write = Writer()

    def on_commit(session: Session) -> None:
        session.add(Order(id=5))
        if flushes_itself:
            session.flush()

    def on_flush(session: Session, context: object) -> None:
        write_with(session, write, [f"order {row.id}" for row in session.new if isinstance(row, Order)])

    async with AsyncSession(orders) as session:
        event.listen(session.sync_session, "after_flush", on_flush)
        session.add(Order(id=1))
        await session.flush()
        event.listen(session.sync_session, "before_commit", on_commit)
        await session.commit()
    assert write.calls == [["order 1"], ["order 5"]]
    assert await entries(orders) == ["order 1", "order 5"]


async def test_what_a_later_listener_gives_itself_is_written_at_once(orders: AsyncEngine) -> None:
    write = Writer()
    async with AsyncSession(orders) as session:
        write_with(session, write, ["a"])
        event.listen(session.sync_session, "before_commit", lambda inner: write_with(inner, write, ["late"]))
        await session.commit()
    assert write.calls == [["a"], ["late"]]
    assert await entries(orders) == ["a", "late"]


async def test_flush_that_has_nothing_to_do_does_not_hold_back_what_comes_after_it(orders: AsyncEngine) -> None:
    write = Writer()
    async with AsyncSession(orders, expire_on_commit=False) as session:
        order = Order(id=1)
        session.add(order)
        await session.commit()

        def late(inner: Session) -> None:
            order.state = order.state  # touched, and the same as before: flushed without any statement
            inner.flush()
            write_with(inner, write, ["late"])

        write_with(session, write, ["a"])
        event.listen(session.sync_session, "before_commit", late)
        await session.commit()
    assert await entries(orders) == ["a", "late"]


async def test_failed_flush_within_a_savepoint_leaves_the_rest_in_order(orders: AsyncEngine) -> None:
    write = Writer()
    async with AsyncSession(orders) as session, session.begin():
        session.add(Order(id=1))
        write_with(session, write, ["outer"])
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                write_with(session, write, ["dropped"])
                await session.execute(insert(Order), [{"id": 1}])
        write_with(session, write, ["after"])
    assert write.calls == [["outer", "after"]]


async def test_coroutine_that_gives_more_to_a_commit_that_has_begun_is_refused(orders: AsyncEngine) -> None:
    write = Writer()
    async with AsyncSession(orders) as session:
        write_with(session, write, ["a"])

        def fail(inner: Session) -> None:
            raise ZeroDivisionError

        event.listen(session.sync_session, "before_commit", fail)
        with pytest.raises(ZeroDivisionError):
            await session.commit()
        with pytest.raises(LifecycleError, match="commit of this session has begun"):
            write_with(session, write, ["late"])
        await session.rollback()
        write_with(session, write, ["next"])
        event.remove(session.sync_session, "before_commit", fail)
        await session.commit()
    assert await entries(orders) == ["next"]


async def test_what_is_told_of_a_commit_comes_after_it_and_never_after_a_rollback(orders: AsyncEngine) -> None:
    told: list[str] = []

    def write(session: Session, items: Sequence[str]) -> None:
        tell_with(session, told.extend, items)

    async with AsyncSession(orders) as session:
        write_with(session, write, ["a"])
        event.listen(session.sync_session, "after_commit", lambda inner: told.append("committed"))
        await session.commit()
        write_with(session, write, ["b"])
        await session.rollback()
    assert told == ["committed", "a"]


def test_plain_session_writes_without_a_loop_and_cannot_wait(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'plain.sqlite3'}")
    Base.metadata.create_all(engine)
    write = Writer()

    async def ready(session: Session, items: Sequence[str]) -> None:
        write(session, items)

    async def waiting(session: Session, items: Sequence[str]) -> None:
        await asyncio.sleep(0)

    with Session(engine) as session:
        write_with(session, write, ["a"])
        session.add(Order(id=1))
        session.commit()
        write_with(session, ready, ["b"])
        session.commit()
        write_with(session, waiting, ["c"])
        with pytest.raises(LifecycleError, match="a plain Session cannot wait"):
            session.commit()
        session.rollback()
        assert list(session.scalars(select(Entry.text))) == ["a", "b"]
    engine.dispose()


def test_only_a_session_is_written_with() -> None:
    with pytest.raises(LifecycleError, match="AsyncSession or a Session, not str"):
        write_with("session", Writer(), [])  # type: ignore[arg-type]
