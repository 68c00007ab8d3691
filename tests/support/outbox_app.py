"""An application whose outbox is sent by programs under test. Its settings come from the environment."""

import os

from deimos_async import Deimos, Key

app = Deimos({"producers.backend": "outbox"})
orders = app.topic(os.environ["OUTBOX_TOPIC"], key=Key.plain())
to_orders = app.producer(orders)
