"""Real servers for tests and benchmarks: started on 127.0.0.1, waited for, stopped by process id.

Here belongs what it takes to have a Kafka broker, a schema registry, PostgreSQL or MariaDB on a developer's machine
without Docker. Nothing of this is installed with the library, and nothing of it imports the library: only the standard
library is used, so that it runs before anything is installed. Tests may import it (`from servers import KafkaBroker`)
to start, kill and restart brokers of their own.
"""

from servers.kafka import KafkaBroker, KafkaCluster
from servers.mariadb import MariaDB
from servers.ports import answers, free_port
from servers.postgres import Postgres
from servers.process import ProcessRecord, Server, ServerError, end_recorded
from servers.programs import Need
from servers.registry import Registry

__all__ = [
    "KafkaBroker",
    "KafkaCluster",
    "MariaDB",
    "Need",
    "Postgres",
    "ProcessRecord",
    "Registry",
    "Server",
    "ServerError",
    "answers",
    "end_recorded",
    "free_port",
]
