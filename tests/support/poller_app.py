"""An application whose pollers are run by programs under test. Its settings come from the environment."""

import os
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, mapped_column

from deimos_async import Deimos, Key, ModelProducer

PAGE = 50
STAMP = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
TABLES = ("widgets", "gadgets")


class Base(DeclarativeBase):
    pass


def model(table: str) -> Any:
    columns = {
        "id": mapped_column(sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
        "some_int": mapped_column(sa.Integer, nullable=False),
        "updated_at": mapped_column(STAMP, nullable=False, index=True),
    }
    return type(table.title(), (Base,), {"__tablename__": table} | columns)


def name_the_sender(self: Any, attributes: dict[str, Any], record: Any) -> dict[str, Any]:
    return attributes | {"name": str(os.getpid())}


app = Deimos({"pollers.batch_rows": PAGE, "pollers.lease_ttl": 2.0}, metrics=None, tracing=None)
MODELS = {table: model(table) for table in TABLES}
for table, row in MODELS.items():
    topic = app.topic(
        os.environ["POLLER_TOPIC"] + table,
        schema="com.acme.Widget",
        key=Key.field("id"),
        schema_backend="avro_local",
    )
    cls: Any = type(f"{table.title()}Producer", (ModelProducer,), {"generate_payload": name_the_sender})
    cls.__orig_bases__ = (ModelProducer[row],)
    app.poller(app.producer(topic, cls), name=table, run_every=0.05, delay_time=0.2)
