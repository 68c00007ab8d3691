"""Rows of several tables from one message, the same on PostgreSQL, MariaDB and SQLite, in batches and one by one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from model_place import MARIADB, POSTGRESQL, Place, message, opened
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import attribute_keyed_dict, mapped_column, relationship

from deimos_async import BatchWriteError, ConfigurationError, DatabaseError, Message, ModelConsumer

DEADLINE = 30.0
"""Seconds after which a wait has failed."""

BOTH_MODES = pytest.mark.parametrize("batch", [True, False], ids=["batch", "message"])

IMPORT_COLUMNS = {"none": None, "text": sa.String(36), "uuid": sa.Uuid()}
"""Types of the column for import ids; None: there is none."""


@pytest.fixture(params=["sqlite", POSTGRESQL, MARIADB])
async def place(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[Place]:
    """One database after the other, each of which checks foreign keys."""
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}"
    else:
        url = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
    async with opened(url, unique_name) as place:
        if request.param == "sqlite":
            sa.event.listen(
                place.engine.sync_engine,
                "connect",
                lambda connection, record: connection.execute("PRAGMA foreign_keys=ON"),
            )
        yield place


class Save(ModelConsumer[Any]):
    """Rows are what payloads are, rows of other tables included."""

    def record_attributes(self, payload: Any, key: Any) -> Any:
        return payload


def by_sku(widget: Any, **settings: Any) -> Any:
    """A consumer whose messages have the unique `sku` as key, while the database makes the primary key."""

    class SaveBySku(Save, ModelConsumer[widget]):  # type: ignore[valid-type, misc]
        def key_columns(self) -> list[str]:
            return ["sku"]

        def record_key(self, key: Any) -> Any:
            return {"sku": key}

    return type("SaveBySku", (SaveBySku,), settings)


async def shop(
    place: Place, *, import_type: Any = None, unique_parts: bool = False, **more: Any
) -> tuple[Any, Any, Any]:
    """Widgets with parts (one-to-many) and a detail (one-to-one); the database makes all primary keys."""
    marks = {} if import_type is None else {"bulk_import_id": mapped_column(import_type, index=True)}

    def mark() -> dict[str, Any]:
        return {name: mapped_column(import_type, index=True) for name in marks}

    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True),
        sku=mapped_column(sa.String(20), unique=True),
        name=mapped_column(sa.String(20)),
        parts=relationship("Widget_parts", cascade="all, delete-orphan"),
        detail=relationship("Widget_details", uselist=False),
        **mark(),
        **more,
    )
    part = await place.model(
        *([sa.UniqueConstraint("widget_id", "language")] if unique_parts else []),
        sa.CheckConstraint("length(title) <= 10", name=f"{place.name}_length"),
        table="_parts",
        id=mapped_column(sa.Integer, primary_key=True),
        widget_id=mapped_column(sa.ForeignKey(f"{place.name}.id"), nullable=False),
        language=mapped_column(sa.String(2)),
        title=mapped_column(sa.String(20)),
        created_at=mapped_column(sa.DateTime(timezone=True)),
        updated_at=mapped_column(sa.DateTime(timezone=True)),
        **mark(),
    )
    detail = await place.model(
        table="_details",
        id=mapped_column(sa.Integer, primary_key=True),
        widget_id=mapped_column(sa.ForeignKey(f"{place.name}.id"), unique=True),
        text=mapped_column(sa.String(20)),
        **mark(),
    )
    return widget, part, detail


def parts(*titles: str) -> list[dict[str, Any]]:
    """Rows with a language each: the first letters of their titles."""
    return [{"language": title[:2], "title": title} for title in titles]


async def linked(place: Place, widget: Any, part: Any) -> dict[str, list[str]]:
    """Titles of parts by the widgets that they belong to."""
    async with AsyncSession(place.engine) as session:
        found = await session.execute(
            sa.select(widget.sku, part.title).join_from(widget, part, part.widget_id == widget.id, isouter=True)
        )
        titles: dict[str, list[str]] = {}
        for sku, title in found:
            titles.setdefault(sku, []).extend([title] if title is not None else [])
    return {sku: sorted(found) for sku, found in sorted(titles.items())}


async def consume(place: Place, cls: Any, *messages: Message[Any], batch: bool = True, **options: Any) -> None:
    """All messages in one call, or one call for each."""
    save = place.consumer(cls, batch=batch, **options)
    if batch:
        await save(*messages)
        return
    for each in messages:
        await save(each)


# --- rows that belong to a row ---------------------------------------------------------------------------------------


@BOTH_MODES
@pytest.mark.parametrize("import_type", IMPORT_COLUMNS.values(), ids=IMPORT_COLUMNS)
@pytest.mark.parametrize("unique_parts", [True, False], ids=["unique", "not unique"])
async def test_what_is_given_replaces_what_was_there_and_what_is_not_named_stays(
    place: Place, batch: bool, import_type: Any, unique_parts: bool
) -> None:
    widget, part, detail = await shop(place, import_type=import_type, unique_parts=unique_parts)
    save = by_sku(widget)
    await place.add(widget(sku="old", name="stored"))
    ((old,),) = await place.rows(widget, "id")
    await place.add(part(widget_id=old, language="xx", title="xx"), detail(widget_id=old, text="stored"))
    await consume(
        place,
        save,
        message("old", {"name": "a", "parts": parts("ab", "cd")}),
        message("new", {"name": "b", "parts": parts("ef"), "detail": {"text": "first"}}),
        message("empty", {"parts": [], "detail": None}),
        message("bare", {"name": "c"}),
        batch=batch,
    )
    assert await linked(place, widget, part) == {"bare": [], "empty": [], "new": ["ef"], "old": ["ab", "cd"]}
    assert await place.rows(detail, "text", "widget_id") == [
        ("first", (await place.rows(widget, "sku", "id"))[2][1]),
        ("stored", old),
    ]
    await consume(
        place,
        save,
        message("old", {"name": "A", "parts": None}),
        message("new", {"parts": [], "detail": {"text": "second"}}),
        message("empty", {"parts": parts("gh")}),
        message("bare", {"parts": parts("ij", "kl"), "detail": {"text": "third"}}),
        batch=batch,
    )
    assert await linked(place, widget, part) == {
        "bare": ["ij", "kl"], "empty": ["gh"], "new": [], "old": ["ab", "cd"],
    }  # fmt: skip
    assert [text for text, _ in await place.rows(detail, "text", "id")] == ["second", "stored", "third"]
    await consume(
        place,
        save,
        message("old", {"parts": parts("cd", "ef"), "detail": None}),
        message("bare", {"detail": None}),
        batch=batch,
    )
    assert (await linked(place, widget, part))["old"] == ["cd", "ef"]
    assert [text for text, _ in await place.rows(detail, "text", "id")] == ["second"]
    assert [row[1] for row in await place.rows(widget, "sku", "name")] == ["c", None, "b", "A"]


@BOTH_MODES
@pytest.mark.parametrize("import_type", IMPORT_COLUMNS.values(), ids=IMPORT_COLUMNS)
async def test_rows_are_only_added_and_changed_without_replacing(place: Place, batch: bool, import_type: Any) -> None:
    widget, part, _ = await shop(place, import_type=import_type, unique_parts=True)
    save = by_sku(widget, replace_associations=False)
    for title, languages in (("old", "ab"), ("new", "bc")):
        rows = [{"language": language, "title": title} for language in languages]
        await consume(place, save, message("w", {"name": title, "parts": rows}), batch=batch)
    assert await place.rows(part, "language", "title") == [("a", "old"), ("b", "new"), ("c", "new")]
    assert await place.rows(widget, "sku", "name") == [("w", "new")]


@BOTH_MODES
async def test_rows_of_known_primary_keys_need_no_column_and_may_move(place: Place, batch: bool) -> None:
    widget = await place.model(
        widget_number=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        parts=relationship("Widget_parts"),
    )
    part = await place.model(
        table="_parts",
        number=mapped_column(sa.Integer, primary_key=True),
        of_widget=mapped_column(sa.ForeignKey(f"{place.name}.widget_number"), nullable=False),
        title=mapped_column(sa.String(20)),
    )

    class SaveThem(Save, ModelConsumer[widget]):  # type: ignore[valid-type, misc]
        pass

    def rows(**titles: str) -> list[dict[str, Any]]:
        return [{"number": name[1:], "title": title} for name, title in titles.items()]

    await consume(
        place, SaveThem, message(1, {"parts": rows(n1="a", n2="b")}), message(2, {"parts": rows(n3="c")}), batch=batch
    )
    assert await place.rows(part, "number", "of_widget", "title") == [(1, 1, "a"), (2, 1, "b"), (3, 2, "c")]
    await consume(
        place, SaveThem, message(2, {"parts": rows(n2="B", n3="C")}), message(1, {"parts": rows(n4="d")}), batch=batch
    )
    assert await place.rows(part, "number", "of_widget", "title") == [(2, 2, "B"), (3, 2, "C"), (4, 1, "d")]


@BOTH_MODES
async def test_foreign_keys_of_several_columns_that_are_no_primary_key(place: Place, batch: bool) -> None:
    widget = await place.model(
        sa.UniqueConstraint("shop", "widget_no"),
        serial=mapped_column(sa.Integer, primary_key=True),
        shop=mapped_column(sa.String(5), nullable=False),
        number=mapped_column("widget_no", sa.Integer, nullable=False),
        parts=relationship("Widget_parts"),
    )
    part = await place.model(
        sa.ForeignKeyConstraint(["of_shop", "of_number"], [f"{place.name}.shop", f"{place.name}.widget_no"]),
        table="_parts",
        of_shop=mapped_column(sa.String(5), primary_key=True),
        of_number=mapped_column(sa.Integer, primary_key=True),
        position=mapped_column(sa.Integer, primary_key=True),
        title=mapped_column(sa.String(20)),
    )

    class SaveThem(Save, ModelConsumer[widget]):  # type: ignore[valid-type, misc]
        def key_columns(self) -> list[str]:
            return ["shop", "number"]

    def rows(*titles: str) -> list[dict[str, Any]]:
        return [{"position": position, "title": title} for position, title in enumerate(titles)]

    keys = [{"shop": "x", "number": 1}, {"shop": "x", "number": 2}, {"shop": "y", "number": 1}]
    await consume(place, SaveThem, *(message(key, {"parts": rows("a", "b")}) for key in keys), batch=batch)
    await consume(place, SaveThem, message(keys[1], {"parts": rows("c")}), message(keys[2], {"parts": []}), batch=batch)
    assert await place.rows(part, "of_shop", "of_number", "position", "title") == [
        ("x", 1, 0, "a"), ("x", 1, 1, "b"), ("x", 2, 0, "c"),
    ]  # fmt: skip


@BOTH_MODES
async def test_rows_lie_in_rows_as_deep_as_messages_say(place: Place, batch: bool) -> None:
    node = await place.model(
        id=mapped_column(sa.Integer, primary_key=True),
        above=mapped_column(sa.ForeignKey(f"{place.name}.id", ondelete="CASCADE")),
        name=mapped_column(sa.String(20), unique=True),
        nodes=relationship("Widget", passive_deletes=True),
    )

    class SaveThem(Save, ModelConsumer[node]):  # type: ignore[valid-type, misc]
        def key_columns(self) -> list[str]:
            return ["name"]

    def tree(name: str, *nodes: Any) -> dict[str, Any]:
        return {"name": name, "nodes": list(nodes)}

    async def paths() -> list[str]:
        names = {number: (above, name) for number, above, name in await place.rows(node, "id", "above", "name")}

        def path(number: int | None) -> str:
            return "" if number is None else f"{path(names[number][0])}/{names[number][1]}"

        return sorted(map(path, names))

    root = tree("a", tree("b", tree("c"), tree("d", tree("e"))), tree("f"))
    await consume(place, SaveThem, message("a", root), message("x", tree("x", tree("y"))), batch=batch)
    assert await paths() == ["/a", "/a/b", "/a/b/c", "/a/b/d", "/a/b/d/e", "/a/f", "/x", "/x/y"]
    await consume(place, SaveThem, message("a", tree("a", tree("b", {"name": "d"}), tree("g"))), batch=batch)
    assert await paths() == ["/a", "/a/b", "/a/b/d", "/a/b/d/e", "/a/g", "/x", "/x/y"]


@pytest.mark.parametrize("import_type", [sa.String(36), sa.Uuid(), sa.CHAR(40)], ids=["text", "uuid", "padded"])
async def test_rows_without_any_key_are_found_by_their_import_ids(place: Place, import_type: Any) -> None:
    widget, part, detail = await shop(place, import_type=import_type)

    class SaveAll(Save, ModelConsumer[widget]):  # type: ignore[valid-type, misc]
        pass

    await consume(
        place,
        SaveAll,
        *(
            message(None, {"sku": f"w{number}", "parts": parts(f"{number}a", f"{number}b"), "detail": {"text": "x"}})
            for number in range(20)
        ),
    )
    assert await linked(place, widget, part) == {
        f"w{number}": [f"{number}a", f"{number}b"] for number in sorted(range(20), key=str)
    }
    assert len(await place.rows(detail, "id")) == 20
    ids = [row[0] for row in await place.rows(widget, "bulk_import_id")]
    assert len(set(ids)) == 20
    assert all(uuid.UUID(str(found).strip()).version == 4 for found in ids)


async def test_nothing_to_find_new_rows_by_is_told_with_the_way_out(place: Place) -> None:
    widget, part, _ = await shop(place)

    class SaveAll(Save, ModelConsumer[widget]):  # type: ignore[valid-type, misc]
        pass

    with pytest.raises(ConfigurationError, match="add a column 'bulk_import_id' to it"):
        await consume(place, SaveAll, message(None, {"sku": "w", "parts": parts("ab")}))
    with pytest.raises(ConfigurationError, match="bulk_import_id_generator gives the same value for several rows"):
        marked, *_ = await other_shop(place)

        class SaveMarked(Save, ModelConsumer[marked]):  # type: ignore[valid-type, misc]
            bulk_import_id_generator = staticmethod(lambda: "same")

        await consume(place, SaveMarked, *(message(None, {"parts": [{"title": "a"}]}) for _ in range(2)))
    assert await place.rows(widget, "id") == []
    assert await place.rows(part, "id") == []


async def other_shop(place: Place) -> tuple[Any, Any, Any]:
    """Three tables, of which each belongs to the one before; all have import ids, and nothing else is unique."""
    top = await place.model(
        table="_top",
        id=mapped_column(sa.Integer, primary_key=True),
        title=mapped_column(sa.String(20)),
        bulk_import_id=mapped_column(sa.String(40)),
        parts=relationship("Widget_middle"),
    )
    middle = await place.model(
        table="_middle",
        id=mapped_column(sa.Integer, primary_key=True),
        top_id=mapped_column(sa.ForeignKey(f"{place.name}_top.id")),
        title=mapped_column(sa.String(20)),
        bulk_import_id=mapped_column(sa.String(40)),
        parts=relationship("Widget_bottom"),
    )
    bottom = await place.model(
        table="_bottom",
        id=mapped_column(sa.Integer, primary_key=True),
        middle_id=mapped_column(sa.ForeignKey(f"{place.name}_middle.id", ondelete="CASCADE")),
        title=mapped_column(sa.String(20)),
        bulk_import_id=mapped_column(sa.String(40)),
    )
    return top, middle, bottom


async def test_rows_within_rows_that_have_no_key_are_replaced_as_a_whole(place: Place) -> None:
    top, middle, bottom = await other_shop(place)

    class SaveThem(Save, ModelConsumer[top]):  # type: ignore[valid-type, misc]
        pass

    def middles(*titles: str) -> list[dict[str, Any]]:
        return [{"title": title, "parts": [{"title": f"{title}{n}"} for n in range(2)]} for title in titles]

    await consume(place, SaveThem, message(1, {"parts": middles("a", "b")}), message(2, {"parts": middles("c")}))
    await consume(place, SaveThem, message(1, {"parts": middles("d", "e")}))
    async with AsyncSession(place.engine) as session:
        found = await session.execute(
            sa.select(middle.top_id, middle.title, bottom.title).join_from(
                bottom, middle, bottom.middle_id == middle.id
            )
        )
        assert sorted(map(tuple, found)) == [
            (1, "d", "d0"), (1, "d", "d1"), (1, "e", "e0"), (1, "e", "e1"), (2, "c", "c0"), (2, "c", "c1"),
        ]  # fmt: skip
    assert len(await place.rows(middle, "id")) == 3


@pytest.mark.parametrize("import_type", [None, sa.String(36)])
async def test_of_two_messages_about_one_row_the_later_has_the_last_word(place: Place, import_type: Any) -> None:
    widget, part, _ = await shop(place, import_type=import_type, unique_parts=True)
    save = by_sku(widget)

    class SaveByPayload(save):  # type: ignore[valid-type, misc]
        def record_key(self, key: Any) -> Any:
            return {}

    await consume(
        place,
        SaveByPayload,
        message("1", {"sku": "w", "name": "a", "parts": parts("ab", "cd")}),
        message("2", {"sku": "w", "name": "b", "parts": parts("cd", "ef")}),
        message("3", {"sku": "w", "name": "c"}),
    )
    assert await linked(place, widget, part) == {"w": ["cd", "ef"]}
    assert await place.rows(widget, "sku", "name") == [("w", "c")]


async def test_unchanged_rows_keep_their_primary_key_and_time_of_creation(place: Place) -> None:
    widget, part, _ = await shop(place, unique_parts=True)
    save = by_sku(widget)
    await consume(place, save, message("w", {"parts": parts("ab", "cd")}))
    before = await place.rows(part, "language", "id", "created_at", "updated_at")
    assert None not in [value for row in before for value in row]
    await consume(place, save, message("w", {"parts": parts("ab", "ef")}))
    after = await place.rows(part, "language", "id", "created_at", "updated_at")
    assert after[0][:3] == before[0][:3]
    assert [row[0] for row in after] == ["ab", "ef"]
    assert after[0][3] >= before[0][3]


@pytest.mark.parametrize("import_type", [None, sa.String(36)])
async def test_statements_do_not_grow_with_rows(place: Place, import_type: Any) -> None:
    widget, part, _ = await shop(place, import_type=import_type)
    save = by_sku(widget)
    seen: list[str] = []
    sa.event.listen(place.engine.sync_engine, "before_cursor_execute", lambda *args: seen.append(args[2]), named=False)
    await consume(place, save, message("warm", {"parts": parts("xx")}))
    counts = []
    for count in (2, 200):
        seen.clear()
        given = [message(f"{count}-{n}", {"parts": parts("ab", "cd"), "detail": {"text": "x"}}) for n in range(count)]
        await consume(place, save, *given)
        counts.append(len(seen))
    assert counts[0] == counts[1]
    assert len(await place.rows(part, "id")) == 405


async def test_lists_that_are_longer_than_a_statement_takes(place: Place) -> None:
    widget, part, _ = await shop(place, unique_parts=True)
    save = by_sku(widget)
    widgets = [message(f"w{n}", {"parts": parts("ab", "cd")}) for n in range(600)]
    await consume(place, save, *widgets)
    await consume(place, save, *(message(f"w{n}", {"parts": parts("cd")}) for n in range(600)))
    assert await linked(place, widget, part) == {f"w{n}": ["cd"] for n in sorted(range(600), key=str)}


# --- rows that a row belongs to --------------------------------------------------------------------------------------


async def joined(place: Place, *, import_type: Any = None) -> dict[str, Any]:
    """Joins of a widget and a fidget, both of which have details."""
    models: dict[str, Any] = {}

    def mark() -> dict[str, Any]:
        return {} if import_type is None else {"bulk_import_id": mapped_column(import_type)}

    for name in ("widget", "fidget"):
        models[name] = await place.model(
            table=f"_{name}",
            id=mapped_column(sa.Integer, primary_key=True),
            code=mapped_column(sa.String(20), unique=True),
            note=mapped_column(sa.String(20)),
            details=relationship(f"Widget_{name}_details"),
            **mark(),
        )
        models[f"{name}_details"] = await place.model(
            table=f"_{name}_details",
            id=mapped_column(sa.Integer, primary_key=True),
            owner=mapped_column(sa.ForeignKey(f"{place.name}_{name}.id"), nullable=False),
            title=mapped_column(sa.String(20), unique=True),
            **mark(),
        )
    models["join"] = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        widget_id=mapped_column(sa.ForeignKey(f"{place.name}_widget.id")),
        fidget_id=mapped_column(sa.ForeignKey(f"{place.name}_fidget.id")),
        widget=relationship("Widget_widget"),
        fidget=relationship("Widget_fidget"),
        **mark(),
    )
    return models


def first(model: Any, **settings: Any) -> Any:
    class SaveFirst(Save, ModelConsumer[model]):  # type: ignore[valid-type, misc]
        save_associations_first = True

    return type("SaveFirst", (SaveFirst,), settings)


@BOTH_MODES
@pytest.mark.parametrize("import_type", IMPORT_COLUMNS.values(), ids=IMPORT_COLUMNS)
async def test_rows_that_a_row_belongs_to_are_written_first_with_their_own(
    place: Place, batch: bool, import_type: Any
) -> None:
    models = await joined(place, import_type=import_type)
    save = first(models["join"])

    def pair(number: int) -> dict[str, Any]:
        return {
            name: {"code": f"{name}{number}", "details": [{"title": f"{name}{number}"}]}
            for name in ("widget", "fidget")
        }

    await consume(place, save, message(1, pair(1)), message(2, pair(2)), batch=batch)
    assert [len(await place.rows(model, "id")) for model in models.values()] == [2] * 5
    codes: list[Any] = []
    async with AsyncSession(place.engine) as session:
        widget, fidget, join = models["widget"], models["fidget"], models["join"]
        statement = (
            sa.select(join.id, widget.code, fidget.code, models["widget_details"].title, models["fidget_details"].title)
            .join_from(join, widget, join.widget_id == widget.id)
            .join(fidget, join.fidget_id == fidget.id)
            .join(models["widget_details"], models["widget_details"].owner == widget.id)
            .join(models["fidget_details"], models["fidget_details"].owner == fidget.id)
            .order_by(join.id)
        )
        codes = [tuple(row) for row in await session.execute(statement)]
    assert codes == [(n, f"widget{n}", f"fidget{n}", f"widget{n}", f"fidget{n}") for n in (1, 2)]


@BOTH_MODES
async def test_owners_may_be_shared_absent_or_none(place: Place, batch: bool) -> None:
    models = await joined(place)
    save = first(models["join"])
    shared = {"code": "shared", "note": "first"}
    await consume(
        place,
        save,
        message(1, {"widget": shared, "fidget": {"code": "f"}}),
        message(2, {"widget": {**shared, "note": "last"}, "fidget": None}),
        batch=batch,
    )
    await consume(place, save, message(1, {"fidget": None}), message(2, {"fidget": {"code": "f"}}), batch=batch)
    ((number, *rest),) = await place.rows(models["widget"], "id", "code", "note")
    assert rest == ["shared", "last"]
    ((fidget,),) = await place.rows(models["fidget"], "id")
    assert await place.rows(models["join"], "id", "widget_id", "fidget_id") == [(1, number, None), (2, number, fidget)]


@BOTH_MODES
async def test_row_may_belong_to_two_rows_of_one_table(place: Place, batch: bool) -> None:
    def address(name: str) -> Any:
        return relationship("Widget_address", foreign_keys=f"Widget.{name}_id", back_populates=f"{name}_orders")

    addresses = await place.model(
        table="_address",
        number=mapped_column(sa.Integer, primary_key=True),
        code=mapped_column(sa.String(5), unique=True),
        billing_orders=relationship("Widget", foreign_keys="Widget.billing_id", back_populates="billing"),
        shipping_orders=relationship("Widget", foreign_keys="Widget.shipping_id", back_populates="shipping"),
    )
    order = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        billing_id=mapped_column(sa.ForeignKey(f"{place.name}_address.number")),
        shipping_id=mapped_column(sa.ForeignKey(f"{place.name}_address.number"), nullable=False),
        billing=address("billing"),
        shipping=address("shipping"),
    )
    a, b, c = ({"code": code} for code in "abc")
    await consume(
        place,
        first(order),
        message(1, {"billing": a, "shipping": b}),
        message(2, {"shipping": a, "billing": None}),
        message(3, {"billing": c, "shipping": c}),
        batch=batch,
    )
    await consume(place, first(order), message(1, {"shipping": c, "billing": b}), batch=batch)
    codes = dict(await place.rows(addresses, "number", "code")) | {None: None}
    found = await place.rows(order, "id", "billing_id", "shipping_id")
    assert [(codes[billing], codes[shipping]) for _, billing, shipping in found] == [
        ("b", "c"),
        (None, "a"),
        ("c", "c"),
    ]
    assert sorted(filter(None, codes.values())) == ["a", "b", "c"]


@pytest.mark.parametrize("place", [POSTGRESQL, MARIADB], indirect=True)
async def test_writers_of_the_same_owners_wait_for_each_other(place: Place) -> None:
    models = await joined(place)
    save = first(models["join"])
    codes = [f"c{n}" for n in range(40)]
    await consume(place, save, *(message(n, {"widget": {"code": code}}) for n, code in enumerate(codes)))
    met = asyncio.Barrier(2)

    class Meet(save):  # type: ignore[valid-type, misc]
        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            await met.wait()

    async with asyncio.timeout(DEADLINE):
        for _ in range(5):
            await asyncio.gather(
                *(
                    consume(
                        place,
                        Meet,
                        *(message(start + n, {"widget": {"code": code}}) for n, code in enumerate(order)),
                    )
                    for start, order in ((1000, codes), (2000, codes[::-1]))
                )
            )
    assert len(await place.rows(models["join"], "id")) == 120


@pytest.mark.parametrize("place", [POSTGRESQL, MARIADB], indirect=True)
@pytest.mark.parametrize("import_type", [None, sa.String(36)])
@pytest.mark.parametrize("unique_parts", [True, False], ids=["unique", "not unique"])
async def test_lists_of_two_writers_are_never_mixed(place: Place, import_type: Any, unique_parts: bool) -> None:
    widget, part, _ = await shop(place, import_type=import_type, unique_parts=unique_parts)
    skus = [f"w{n}" for n in range(20)]
    met = asyncio.Barrier(2)

    class SaveMet(by_sku(widget)):  # type: ignore[misc]
        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            await met.wait()

    async def write(start: Any, *titles: str) -> None:
        given = [message(sku, {"parts": parts(*titles)}) for sku in skus]
        try:
            await consume(place, start, *given)
        except DatabaseError:  # lost against the other, and to be run again
            await write(by_sku(widget), *titles)

    async with asyncio.timeout(DEADLINE):
        for number in range(5):
            await asyncio.gather(write(SaveMet, f"a{number}", "ab"), write(SaveMet, f"b{number}", "ba"))
            found = {tuple(titles) for titles in (await linked(place, widget, part)).values()}
            assert found <= {(f"a{number}", "ab"), (f"b{number}", "ba")}


async def test_owners_need_the_setting(place: Place) -> None:
    models = await joined(place)

    class SaveThem(Save, ModelConsumer[models["join"]]):  # type: ignore[valid-type, misc]
        pass

    with pytest.raises(BatchWriteError, match="widget: rows that others belong to are only written with save_assoc"):
        await consume(place, SaveThem, message(1, {"widget": {"code": "a"}}))


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("import_type", [None, sa.String(36)])
async def test_bad_row_fails_its_message_with_all_that_lies_in_it(place: Place, import_type: Any) -> None:
    widget, part, detail = await shop(place, import_type=import_type)
    save = by_sku(widget)
    bad = {3, 4, 11}
    given = [
        message(
            f"w{n:02}",
            {"parts": parts("ab", "longer than ten" if n in bad else "cd"), "detail": {"text": str(n)}},
        )
        for n in range(16)
    ]
    with pytest.raises(BatchWriteError, match=r"^3 of 16 messages could not be written") as caught:
        await consume(place, save, *given)
    assert {failed.key for failed, _ in caught.value.failures} == {f"w{n:02}" for n in bad}
    good = {f"w{n:02}": ["ab", "cd"] for n in range(16) if n not in bad}
    assert await linked(place, widget, part) == good
    assert len(await place.rows(detail, "id")) == 13


@BOTH_MODES
async def test_values_become_the_columns_of_their_tables(place: Place, batch: bool) -> None:
    widget, part, _ = await shop(place)
    save = by_sku(widget, truncate_columns=True)
    await consume(place, save, message("w", {"parts": [{"language": "english", "title": 17}]}), batch=batch)
    assert await place.rows(part, "language", "title") == [("en", "17")]
    mistakes = {
        r"parts\[1\]: column 'id' .* a value of type str does not fit": {"parts": [{}, {"id": "x"}]},
        r"parts\[0\]: table '\w+_parts' has no column 'nothing'": {"parts": [{"nothing": 1}]},
        "parts takes a list of dicts, not dict": {"parts": {"title": "a"}},
        "parts takes a list of dicts, not items of other types": {"parts": ["a"]},
        "detail takes a dict or None, not list": {"detail": []},
    }
    for text, payload in mistakes.items():
        with pytest.raises((BatchWriteError, ValueError, TypeError), match=text):
            await consume(place, save, message("v", payload), batch=batch)
    assert await place.rows(widget, "sku") == [("w",)]


# --- hooks, settings, events -----------------------------------------------------------------------------------------


@BOTH_MODES
async def test_hook_sees_the_rows_that_are_about_to_be_written(place: Place, batch: bool) -> None:
    widget, part, _ = await shop(place)
    seen: list[Any] = []

    class SaveSome(by_sku(widget)):  # type: ignore[misc]
        def should_consume(self, record: Any, message: Message[Any]) -> bool:
            seen.append([row["title"] for row in record["parts"]])
            return len(record["parts"]) == 1

    await consume(
        place,
        SaveSome,
        message("one", {"parts": [{"title": 1}]}),
        message("two", {"parts": [{"title": 1}, {"title": 2}]}),
        batch=batch,
    )
    assert seen == [["1"], ["1", "2"]]
    assert await linked(place, widget, part) == {"one": ["1"]}


async def test_event_tells_rows_with_what_was_filled_in(place: Place) -> None:
    widget, part, _ = await shop(place)
    told = place.told("deimos.batch_consumption.valid_records")
    await consume(place, by_sku(widget), message("w", {"parts": parts("ab")}), message("v", {}))
    records = {record["sku"]: record for record in told[0]["records"]}
    assert records["w"]["id"] == records["w"]["parts"][0]["widget_id"] == (await place.rows(part, "widget_id"))[0][0]


@pytest.mark.parametrize("related", [True, False])
async def test_every_row_gets_a_new_import_id_where_the_table_has_the_column(place: Place, related: bool) -> None:
    widget, part, _ = await shop(place, import_type=sa.String(36))
    payload: dict[str, Any] = {"bulk_import_id": "theirs", **({"parts": parts("ab", "cd")} if related else {})}
    seen: list[Any] = []
    for _ in range(2):
        await consume(place, by_sku(widget), message("w", payload), message("v", payload))
        seen += [row[0] for row in await place.rows(widget, "bulk_import_id")]
        seen += {row[0] for row in await place.rows(part, "bulk_import_id")}
    assert len(set(seen)) == len(seen) == (6 if related else 4)
    assert not {"theirs", None} & set(seen)


async def test_import_ids_are_the_topic_s_then_the_class_s(place: Place) -> None:
    widget = await place.model(
        sku=mapped_column(sa.String(20), primary_key=True),
        one=mapped_column(sa.String(36)),
        two=mapped_column(sa.String(36)),
    )

    class SaveThem(Save, ModelConsumer[widget]):  # type: ignore[valid-type, misc]
        bulk_import_id_column = "one"
        max_db_batch_size = 3

        def bulk_import_id_generator(self) -> str:  # type: ignore[override]
            return "class"

    sizes: list[int] = []

    class SaveCounting(SaveThem):
        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            sizes.append(len(messages))

    given = [message(str(n), {}) for n in range(4)]
    await consume(place, SaveCounting, *given)
    await consume(
        place,
        SaveCounting,
        *given[:3],
        bulk_import_id_column="two",
        bulk_import_id_generator=lambda: "topic",
        max_db_batch_size=2,
    )
    assert await place.rows(widget, "sku", "one", "two") == [
        ("0", "class", "topic"), ("1", "class", "topic"), ("2", "class", "topic"), ("3", "class", None),
    ]  # fmt: skip
    assert sizes == [3, 1, 2, 1]


@pytest.mark.parametrize("unique_parts", [True, False])
async def test_generator_that_always_says_the_same_does_not_keep_old_rows(place: Place, unique_parts: bool) -> None:
    widget, part, _ = await shop(place, import_type=sa.String(36), unique_parts=unique_parts)
    save = by_sku(widget, bulk_import_id_generator=staticmethod(lambda: "global"))
    for titles in (("ab", "cd"), ("cd", "ef")):
        await consume(place, save, message("w", {"parts": parts(*titles)}))
    assert await linked(place, widget, part) == {"w": ["cd", "ef"]}
    assert {row[0] for row in await place.rows(part, "bulk_import_id")} == {"global"}


@BOTH_MODES
async def test_hooks_may_speak_of_each_model(place: Place, batch: bool) -> None:
    widget, part, _ = await shop(place)
    unique = sa.Index(f"{place.name}_title", part.__table__.c.title, unique=True)
    async with place.engine.begin() as connection:
        await connection.run_sync(unique.create)

    class SaveByTitle(Save, ModelConsumer[widget]):  # type: ignore[valid-type, misc]
        replace_associations = False

        def key_columns(self, model: Any = None) -> Any:
            return {widget: ["sku"], part: ["title"]}.get(model)

        def columns(self, model: Any = None) -> Any:
            return ["title"] if model is part else None

        def record_key(self, key: Any) -> Any:
            return {"sku": key}

    for sku, language in (("w", "aa"), ("v", "bb")):
        await consume(
            place,
            SaveByTitle,
            message(sku, {"name": sku, "parts": [{"title": "same", "language": language}]}),
            batch=batch,
        )
    assert await linked(place, widget, part) == {"v": ["same"], "w": []}
    if batch:  # what columns() leaves out is written in new rows only
        assert await place.rows(part, "language") == [("aa",)]


async def test_older_message_changes_nothing_in_other_tables_either(place: Place) -> None:
    more = {"version": mapped_column(sa.Integer)}
    widget, part, _ = await shop(place, import_type=sa.String(36), **more)

    class SaveNewer(by_sku(widget)):  # type: ignore[misc]
        version_column = "version"

        def delete_record(self, message: Message[Any]) -> bool:
            return False

    await consume(
        place,
        SaveNewer,
        message("w", {"version": 5, "parts": parts("ab")}),
        message("v", {"version": 1, "parts": parts("cd")}),
    )
    await consume(
        place,
        SaveNewer,
        message("w", {"version": 4, "parts": []}),
        message("v", {"version": 2, "parts": parts("ef")}),
    )
    assert await linked(place, widget, part) == {"v": ["ef"], "w": ["ab"]}


async def test_versions_need_the_import_column(place: Place) -> None:
    widget, *related = await shop(place, version=mapped_column(sa.Integer))

    class SaveNewer(by_sku(widget)):  # type: ignore[misc]
        version_column = "version"

        def delete_record(self, message: Message[Any]) -> bool:
            return False

    with pytest.raises(ConfigurationError, match="can only have rows of relationships if the table has a column"):
        await consume(place, SaveNewer, message("w", {"version": 5, "parts": []}))
    await consume(place, SaveNewer, message("w", {"version": 5}))
    assert [len(await place.rows(model, "id")) for model in (widget, *related)] == [1, 0, 0]


async def test_versions_need_import_ids_that_differ(place: Place) -> None:
    more = {"version": mapped_column(sa.Integer), "gone": mapped_column(sa.Boolean)}
    widget, part, _ = await shop(place, import_type=sa.String(36), **more)
    save = by_sku(
        widget,
        version_column="version",
        deleted_column="gone",
        record_version=lambda self, message: message.offset,
        bulk_import_id_generator=staticmethod(lambda: "same"),
    )
    for payload in ({"parts": parts("ab")}, None):
        with pytest.raises(ConfigurationError, match="bulk_import_id_generator gives the same value each time"):
            await consume(place, save, message("w", payload))
    assert await linked(place, widget, part) == {}


async def test_tombstone_of_a_version_takes_along_what_belongs_to_older_rows_only(place: Place) -> None:
    more = {"version": mapped_column(sa.Integer), "gone": mapped_column(sa.Boolean)}
    widget, part, detail = await shop(place, import_type=sa.String(36), **more)
    save = by_sku(
        widget,
        version_column="version",
        deleted_column="gone",
        record_version=lambda self, message: message.offset,
    )
    given = [message(sku, {"parts": parts("ab"), "detail": {"text": "x"}}, offset=5) for sku in "uvw"]
    await consume(place, save, *given)
    await consume(place, save, message("u", offset=4), message("v", offset=6))
    assert await linked(place, widget, part) == {"u": ["ab"], "v": [], "w": ["ab"]}
    assert await place.rows(widget, "sku", "gone") == [("u", None), ("v", True), ("w", None)]
    assert len(await place.rows(detail, "id")) == 3  # its relationship does not say "delete"


@BOTH_MODES
@pytest.mark.parametrize("import_type", [None, sa.String(36)])
async def test_what_belongs_to_removed_rows_is_removed_where_the_relationship_says_so(
    place: Place, batch: bool, import_type: Any
) -> None:
    def mark() -> dict[str, Any]:
        return {} if import_type is None else {"bulk_import_id": mapped_column(import_type)}

    top = await place.model(
        table="_top",
        number=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        parts=relationship("Widget_middle", cascade="all, delete-orphan"),
        **mark(),
    )
    middle = await place.model(
        sa.UniqueConstraint("top_number", "title"),
        table="_middle",
        id=mapped_column(sa.Integer, primary_key=True),
        top_number=mapped_column(sa.ForeignKey(f"{place.name}_top.number"), nullable=False),
        title=mapped_column(sa.String(20)),
        parts=relationship("Widget_bottom", cascade="all, delete-orphan"),
        **mark(),
    )
    bottom = await place.model(
        table="_bottom",
        id=mapped_column(sa.Integer, primary_key=True),
        middle_id=mapped_column(sa.ForeignKey(f"{place.name}_middle.id"), nullable=False),
        title=mapped_column(sa.String(20)),
        **mark(),
    )

    class SaveThem(Save, ModelConsumer[top]):  # type: ignore[valid-type, misc]
        pass

    def middles(*titles: str) -> dict[str, Any]:
        return {"parts": [{"title": title, "parts": [{"title": f"{title}{n}"} for n in range(2)]} for title in titles]}

    async def stored() -> tuple[list[Any], list[Any], list[Any]]:
        found = [await place.rows(model, "title", "id") for model in (middle, bottom)]
        titles = [[title for title, _ in rows] for rows in found]
        return [number for (number,) in await place.rows(top, "number")], *titles

    await consume(place, SaveThem, message(1, middles("a", "b")), message(2, middles("c")), batch=batch)
    await consume(place, SaveThem, message(1, middles("b", "d")), batch=batch)
    assert await stored() == ([1, 2], ["b", "c", "d"], ["b0", "b1", "c0", "c1", "d0", "d1"])
    await consume(place, SaveThem, message(1), message(3), batch=batch)
    assert await stored() == ([2], ["c"], ["c0", "c1"])


async def test_rows_that_belong_to_each_other_are_removed_once(place: Place) -> None:
    node = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        parent_id=mapped_column(sa.Integer),
        nodes=relationship(
            "Widget",
            primaryjoin="foreign(Widget.parent_id) == Widget.id",
            remote_side="Widget.parent_id",
            cascade="all, delete-orphan",
        ),
    )

    class SaveThem(Save, ModelConsumer[node]):  # type: ignore[valid-type, misc]
        pass

    parents = {1: 1, 2: 1, 3: 2, 4: 5, 5: 4, 6: None, 7: 7}
    await consume(place, SaveThem, *(message(number, {"parent_id": parent}) for number, parent in parents.items()))
    await consume(place, SaveThem, message(1), message(4))
    assert await place.rows(node, "id") == [(6,), (7,)]


async def test_only_rows_of_the_relationship_s_class_are_replaced(place: Place) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        bolts=relationship("Bolt"),
    )
    part = await place.model(
        table="_parts",
        id=mapped_column(sa.Integer, primary_key=True),
        widget_id=mapped_column(sa.ForeignKey(f"{place.name}.id")),
        kind=mapped_column(sa.String(10)),
        title=mapped_column(sa.String(10)),
        __mapper_args__={"polymorphic_on": "kind", "polymorphic_identity": "part"},
    )
    type("Bolt", (part,), {"__mapper_args__": {"polymorphic_identity": "bolt"}})

    class SaveThem(Save, ModelConsumer[widget]):  # type: ignore[valid-type, misc]
        pass

    await place.add(widget(id=1), part(widget_id=1, title="kept"))
    for title in "ab":
        await consume(place, SaveThem, message(1, {"bolts": [{"title": title}]}))
    assert await place.rows(part, "title", "kind") == [("b", "bolt"), ("kept", "part")]


@BOTH_MODES
async def test_primary_keys_that_a_default_makes_here(place: Place, batch: bool) -> None:
    widget = await place.model(
        id=mapped_column(sa.Uuid, primary_key=True, default=uuid.uuid4),
        name=mapped_column(sa.String(20)),
        parts=relationship("Widget_parts"),
    )
    part = await place.model(
        table="_parts",
        id=mapped_column(sa.Uuid, primary_key=True, default=uuid.uuid4),
        widget_id=mapped_column(sa.ForeignKey(f"{place.name}.id"), nullable=False),
        title=mapped_column(sa.String(20)),
    )

    class SaveThem(Save, ModelConsumer[widget]):  # type: ignore[valid-type, misc]
        pass

    known = uuid.uuid4()
    for titles in ("ab", "bc"):
        await consume(
            place, SaveThem, message(str(known), {"parts": [{"title": title} for title in titles]}), batch=batch
        )
    await consume(place, SaveThem, message(None, {"name": "new", "parts": [{"title": "x"}]}), batch=batch)
    async with AsyncSession(place.engine) as session:
        found = await session.execute(
            sa.select(widget.name, part.title).join_from(part, widget, part.widget_id == widget.id)
        )
        assert sorted(map(repr, map(tuple, found))) == ["('new', 'x')", "(None, 'b')", "(None, 'c')"]


# --- message mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"lazy": "write_only", "passive_deletes": True},
        {"lazy": "raise", "back_populates": "widget"},
        {"collection_class": set},
        {"collection_class": attribute_keyed_dict("title")},
        {"cascade": "all, delete-orphan", "back_populates": "widget"},
        {"lazy": "joined", "cascade": "all, delete-orphan"},
    ],
    ids=["write only", "raises", "set", "dict", "orphans", "joined"],
)
async def test_message_mode_takes_any_kind_of_relationship(place: Place, options: Any) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        parts=relationship("Widget_parts", **options),
    )
    part = await place.model(
        table="_parts",
        id=mapped_column(sa.Integer, primary_key=True),
        widget_id=mapped_column(sa.ForeignKey(f"{place.name}.id"), nullable=False),
        title=mapped_column(sa.String(20)),
        **({"widget": relationship("Widget", back_populates="parts")} if "back_populates" in options else {}),
    )

    class SaveThem(Save, ModelConsumer[widget]):  # type: ignore[valid-type, misc]
        pass

    for titles in ("ab", "bc", "", "d"):
        rows = [{"title": title} for title in titles]
        await consume(place, SaveThem, message(1, {"parts": rows}), message(2, {"parts": rows}), batch=False)
        assert await place.rows(part, "title", "widget_id") == [(title, n) for title in titles for n in (1, 2)]
    if "back_populates" in options:
        save = place.consumer(SaveThem, batch=False)
        with pytest.raises(ValueError, match=r"parts\[0\]: widget: it is the row that this one lies in; leave it out"):
            await save(message(1, {"parts": [{"widget": {"id": 3}}]}))
