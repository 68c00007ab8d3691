"""From a topic into a handler: fetching, ordering, calling, what follows an error, committing.

Pure modules decide (`lanes`, `offsets`, `on_error`, `dead_letters`), acting ones obey (`fetch`, `dispatch`,
`handling`, `commit`), and `runner` only connects them. What does not belong here: bytes (see `schemas`), transports
(see `brokers`).
"""
