"""Apache Kafka brokers in KRaft mode."""

import asyncio
import struct
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from servers import downloads
from servers.ports import HOST, exchange, free_port
from servers.process import Server
from servers.programs import Need, java, java_missing

VERSION = "4.1.0"
"""Must be the version in pom.xml."""

_JARS = f"kafka-{VERSION}"
_JAVA_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_ON_ONE_MACHINE = {
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "auto.create.topics.enable": "false",
    "delete.topic.enable": "true",
    # A broker that was killed is let in again when its last session has ended: after 9 s if nothing is said.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "1000",
    "offsets.topic.num.partitions": "5",
    "transaction.state.log.num.partitions": "5",
}


class KafkaBroker(Server):
    """One broker that is its own controller, or one of a `KafkaCluster`.

    Clients connect to the listener CLIENT on `port`; brokers talk to each other on listeners of their own, always
    without security, so that a test may give CLIENT any protocol by properties alone:

        KafkaBroker(client_protocol="SASL_PLAINTEXT", properties={
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.client.plain.sasl.jaas.config": "...",
        })
    """

    name = "kafka"

    def __init__(
        self,
        *,
        port: int | None = None,
        client_protocol: str = "PLAINTEXT",
        properties: Mapping[str, str] | None = None,
        java_options: Sequence[str] = _JAVA_OPTIONS,
        node_id: int = 1,
        scram_users: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            port: The clients' port; None: a free one.
            client_protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
            properties: Broker settings; they win over ours.
            java_options: Options of the JVM, instead of ours, which favour a quick start in little memory.
            scram_users: Passwords by user name, for SCRAM-SHA-256 and SCRAM-SHA-512.
        """
        super().__init__()
        self._scram_users = dict(scram_users or {})
        self.node_id = node_id
        self.port = port or free_port()
        self._internal_port = free_port()
        self._controller_port = free_port()
        self._client_protocol = client_protocol
        self._properties = dict(properties or {})
        self._java_options = tuple(java_options)
        self._cluster_id = _new_cluster_id()
        self._voters = [self]

    @classmethod
    def missing(cls) -> list[Need]:
        return java_missing() + downloads.missing_for(_JARS)

    @classmethod
    async def prepare(cls) -> None:
        await downloads.fetch(_JARS, "dependency:copy-dependencies", "-DincludeScope=runtime")

    @property
    def bootstrap_servers(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def address(self) -> str:
        return self.bootstrap_servers

    async def _create(self) -> None:
        settings = self._server_properties()
        self._properties_file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        tool = self._java("kafka.tools.StorageTool", "format", "-t", self._cluster_id, "-c", str(self._properties_file))
        for user, password in self._scram_users.items():
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                tool += ["--add-scram", f"{mechanism}=[name={user},password={password}]"]
        await self._run(tool)

    def _command(self) -> list[str]:
        return self._java("kafka.Kafka", str(self._properties_file))

    async def _is_ready(self) -> bool:
        # The broker opens its ports early, but serves requests only once the controller has let it in. ApiVersions,
        # version 0, from the Kafka protocol guide: header (size, key 18, version, correlation, no client id), no body.
        request = struct.pack(">ihhih", 10, 18, 0, 7, -1)
        answer = await exchange(HOST, self._internal_port, request, 10)
        return answer is not None and answer[4:] == struct.pack(">ih", 7, 0)

    def _java(self, *arguments: str) -> list[str]:
        jars = f"{downloads.cache_directory() / _JARS}/*"  # Java expands it
        # Without a configuration log4j shows errors only.
        return [java(), *self._java_options, "-Dorg.apache.logging.log4j.level=INFO", "-cp", jars, *arguments]

    def _server_properties(self) -> dict[str, str]:
        copies = str(min(3, len(self._voters)))
        return {
            "process.roles": "broker,controller",
            "node.id": str(self.node_id),
            "controller.quorum.voters": ",".join(f"{b.node_id}@{HOST}:{b._controller_port}" for b in self._voters),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "INTERNAL",
            "listeners": ",".join(
                f"{listener}://{HOST}:{port}"
                for listener, port in (
                    ("CLIENT", self.port),
                    ("INTERNAL", self._internal_port),
                    ("CONTROLLER", self._controller_port),
                )
            ),
            "listener.security.protocol.map": (
                f"CLIENT:{self._client_protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT"
            ),
            "log.dirs": str(self.directory / "data"),
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": "1" if copies == "1" else "2",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": "1",
            **_ON_ONE_MACHINE,
            **self._properties,
        }

    @property
    def _properties_file(self) -> Path:
        return self.directory / "server.properties"


class KafkaCluster:
    """Several brokers that form one cluster. `cluster[1].kill()` takes one away; `async with` works as for a server.

    A majority must be there for the cluster to work: start them together by `start`.
    """

    def __init__(
        self,
        size: int = 3,
        *,
        client_protocol: str = "PLAINTEXT",
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.brokers = [
            KafkaBroker(client_protocol=client_protocol, properties=properties, node_id=node_id)
            for node_id in range(1, size + 1)
        ]
        for broker in self.brokers:
            broker._voters = self.brokers
            broker._cluster_id = self.brokers[0]._cluster_id

    def __iter__(self) -> Iterator[KafkaBroker]:
        return iter(self.brokers)

    def __getitem__(self, index: int) -> KafkaBroker:
        return self.brokers[index]

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    async def start(self, *, deadline: float = 120.0) -> None:
        """Start all brokers and wait for all. Raises what `Server.start` raises; then none is left running."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for broker in self.brokers:
                    tasks.create_task(broker.start(deadline=deadline), name=f"start broker {broker.node_id}")
        except BaseExceptionGroup as group:
            await self.kill()
            raise group.exceptions[0] from group
        except BaseException:
            await self.kill()
            raise

    async def stop(self) -> None:
        """Stop all at once. The last ones find no majority left for an orderly end, and are killed after a while."""
        async with asyncio.TaskGroup() as tasks:
            for broker in self.brokers:
                tasks.create_task(broker.stop(timeout=10), name=f"stop broker {broker.node_id}")

    async def kill(self) -> None:
        for broker in self.brokers:
            await broker.kill()

    def remove(self) -> None:
        for broker in self.brokers:
            broker.remove()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.remove()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self.stop()
        finally:
            self.remove()


def _new_cluster_id() -> str:
    """A random id in Kafka's form: 16 bytes in URL-safe base64 without padding."""
    # A leading dash would look like an option to the storage tool.
    return "D" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
