"""Real services for tests, demo and benchmarks: found, else started, and stopped by whoever started them.

    python scripts/services.py start            all four in the background, recorded in .services/
    python scripts/services.py stop             exactly those that `start` recorded
    python scripts/services.py exec -- COMMAND  with the services' addresses in its environment; starts what is missing
    python scripts/services.py install          Debian packages that are missing here

A service is taken from its variable (DEIMOS_TEST_KAFKA, DEIMOS_TEST_REGISTRY, DEIMOS_TEST_POSTGRES,
DEIMOS_TEST_MARIADB), else from what `start` recorded, else started. SERVICES says how:

    (empty)    start what can be started; what cannot is missing, and tests that need it are left out
    required   a missing service is a failure; CI=true means this too, and installs Debian packages
    compose    start all with Docker Compose
    none       start nothing

It needs Python 3.11 and nothing that is not in it.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from servers import (
    KafkaBroker,
    MariaDB,
    Postgres,
    ProcessRecord,
    Registry,
    Server,
    ServerError,
    answers,
    compose,
    debian,
)
from servers.process import end_recorded, process_birth, say

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / ".services" / "services.json"
_SETTINGS = {"kafka": "DEIMOS_KAFKA__BOOTSTRAP_SERVERS", "registry": "DEIMOS_SCHEMA__REGISTRY_URL"}
KINDS: Mapping[str, type[Server]] = {kind.name: kind for kind in (KafkaBroker, Registry, Postgres, MariaDB)}


def variable(name: str) -> str:
    """Environment variable that holds the service's address."""
    return f"DEIMOS_TEST_{name.upper()}"


def reason_variable(name: str) -> str:
    """Environment variable that tells the tests why the service has no address."""
    return f"{variable(name)}_MISSING"


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be done about services that are not there."""

    how: str = ""
    """SERVICES: empty, `required`, `compose` or `none`."""
    in_ci: bool = False

    @classmethod
    def from_environment(cls) -> "Policy":
        """Raises SystemExit when SERVICES is not one of its values."""
        how = os.environ.get("SERVICES", "")
        if how not in ("", "required", "compose", "none"):
            raise SystemExit(f"SERVICES={how}: must be required, compose, none or empty")
        return cls(how, os.environ.get("CI", "").lower() in ("true", "1"))

    @property
    def requires_all(self) -> bool:
        """A missing service is a failure."""
        return self.how == "required" or self.in_ci


@dataclass(slots=True)
class Services:
    """Where services are, and what was started for it."""

    addresses: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Why a service has no address, by name."""
    servers: list[Server] = field(default_factory=list)
    composed: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Variables for a program that uses them, to be put over our own."""
        found = {variable(name): address for name, address in self.addresses.items()}
        reasons = {reason_variable(name): reason for name, reason in self.missing.items()}
        return found | reasons

    async def stop(self) -> None:
        """Stop what was started, and nothing else. Every one gets its turn, whatever happens to the others."""
        stops = [_stop_and_remove(server) for server in self.servers]
        if self.composed:
            stops.append(compose.down(self.composed))
        results = await asyncio.gather(*stops, return_exceptions=True)
        self.servers, self.composed = [], []
        for result in results:
            if isinstance(result, BaseException):
                say(f"stopping services: {result}")


async def _stop_and_remove(server: Server) -> None:
    try:
        await server.stop()
    finally:
        server.remove()


@contextlib.asynccontextmanager
async def provided(policy: Policy) -> AsyncIterator[Services]:
    """The services, as far as they can be had; what was started for it is stopped at the end.
    A service that cannot be started, or for which a package cannot be installed, is reported as missing.
    """
    services = Services()
    try:
        await find_or_start(services, policy)
        yield services
    finally:
        await services.stop()


async def find_or_start(services: Services, policy: Policy) -> None:
    """Fill `services`. What is started is noted there at once: `services.stop` knows it after a cancellation too."""
    recorded = {entry["name"]: entry["address"] for entry in read_record()}
    wanted: list[str] = []
    for name in KINDS:
        given = os.environ.get(variable(name))
        if given:
            # Somebody has said which one to use: another one in its place would hide the mistake.
            try:
                reached = await answers(given)
            except ValueError as error:
                services.missing[name] = f"{variable(name)}: {error}"
                continue
            if reached:
                services.addresses[name] = given
            else:
                services.missing[name] = f"nobody answers at the address in {variable(name)}"
        elif name in recorded and await answers(recorded[name]):
            services.addresses[name] = recorded[name]
        elif policy.how == "none":
            services.missing[name] = "SERVICES=none: it was not started"
        else:
            wanted.append(name)
    if policy.how == "compose":
        await _start_composed(services, wanted)
        return
    if policy.in_ci:
        try:
            await debian.install(need for name in wanted for need in KINDS[name].missing())
        except ServerError as error:
            # The services that miss something are reported below, and all else is tested.
            say(str(error))
    impossible = {name: needs for name in wanted if (needs := KINDS[name].missing())}
    starting = [name for name in wanted if name not in impossible]
    if starting:
        say(f"starting {', '.join(starting)} ...")
    await asyncio.gather(*(_start(services, KINDS[name]) for name in starting))
    if impossible and compose.is_possible():
        await _start_composed(services, list(impossible))
    else:
        for name, needs in impossible.items():
            services.missing[name] = "it needs " + ", ".join(str(need) for need in needs)


async def _start(services: Services, kind: type[Server]) -> None:
    server = kind()
    services.servers.append(server)
    try:
        await server.start()
    except ServerError as error:
        say(f"{kind.name}: {error}")
        services.missing[kind.name] = str(error).splitlines()[0]
    else:
        services.addresses[kind.name] = server.address


async def _start_composed(services: Services, names: list[str]) -> None:
    if not names:
        return
    if not compose.is_possible():
        services.missing |= dict.fromkeys(names, "no Docker engine with Compose answers")
        return
    running = compose.running()
    services.composed = [name for name in names if name not in running]
    if services.composed:
        say(f"starting {', '.join(services.composed)} with Docker Compose ...")
        try:
            await compose.up(services.composed)
        except ServerError as error:
            say(str(error))
            services.missing |= dict.fromkeys(services.composed, str(error).splitlines()[0])
    services.addresses |= {name: compose.ADDRESSES[name] for name in names if name not in services.missing}


# Services that run in the background, recorded in a file


def read_record() -> list[dict[str, Any]]:
    """Services that `start` left running: name, address, process (null: Compose). They may have ended since."""
    try:
        entries: list[dict[str, Any]] = json.loads(RECORD.read_text())
    except FileNotFoundError:
        return []
    return entries


def _write_record(entries: list[dict[str, Any]]) -> None:
    RECORD.parent.mkdir(exist_ok=True)
    draft = RECORD.with_suffix(".new")
    draft.write_text(json.dumps(entries, indent=2) + "\n")
    draft.replace(RECORD)


def _is_alive(entry: dict[str, Any]) -> bool:
    process = entry["process"]
    return process is None or process_birth(process["pid"]) == process["birth"]


async def start_in_background(policy: Policy) -> int:
    """`start`: status 0 when all services have an address, else 1."""
    kept = [entry for entry in read_record() if _is_alive(entry)]
    services = Services()
    try:
        await find_or_start(services, policy)
        started = [server for server in services.servers if server.is_running]
        entries: list[dict[str, Any]] = [
            {"name": server.name, "address": server.address, "process": dataclasses.asdict(server.leave_running())}
            for server in started
        ]
        entries += [
            {"name": name, "address": services.addresses[name], "process": None}
            for name in services.composed
            if name in services.addresses
        ]
        _write_record(kept + entries)
        services.servers = [server for server in services.servers if server not in started]
        services.composed = [name for name in services.composed if name in services.missing]
    finally:
        await services.stop()
    print("\n".join(shown(services.addresses)))
    for name, reason in services.missing.items():
        say(f"{name} is missing: {reason}")
    return 1 if services.missing else 0


def shown(addresses: Mapping[str, str]) -> list[str]:
    """Lines for a shell: what an application is told, then the variables of the tests. Pasted or evaluated."""
    lines = ["# for an application"]
    lines += [
        f"export {setting}={shlex.quote(addresses[name])}" for name, setting in _SETTINGS.items() if name in addresses
    ]
    if databases := [name for name in ("postgres", "mariadb") if name in addresses]:
        lines.append("# and its database, one of these")
        lines += [f"# export DEIMOS_DATABASE__URL={shlex.quote(addresses[name])}" for name in databases]
    lines.append("# for tests that are run without `make test`, which finds the services by itself")
    lines += [f"export {variable(name)}={shlex.quote(address)}" for name, address in sorted(addresses.items())]
    return [*lines, "# `make services-stop` ends them"]


async def stop_in_background() -> int:
    """`stop`: end what `start` recorded. Status 0, also when nothing is left of it."""
    entries = read_record()
    processes = [entry for entry in entries if entry["process"] is not None]
    ended = await asyncio.gather(*(end_recorded(ProcessRecord(**entry["process"])) for entry in processes))
    for entry, was_there in zip(processes, ended, strict=True):
        print(f"{entry['name']}: {'stopped' if was_there else 'had ended already'}")
    composed = [entry["name"] for entry in entries if entry["process"] is None]
    if composed:
        await compose.down(composed)
        print(f"{', '.join(composed)}: stopped")
    RECORD.unlink(missing_ok=True)
    return 0


# Programs that use the services


class Interruption:
    """The first signal that asked us to end. Later ones are ignored: what was started is being stopped."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def watch(self, task: asyncio.Task[Any]) -> None:
        """Cancel `task` at the first SIGINT, SIGTERM or SIGHUP."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._arrived, number, task)

    def _arrived(self, number: signal.Signals, task: asyncio.Task[Any]) -> None:
        if self.signal is None:
            self.signal = number
            task.cancel()


async def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    interruption: Interruption,
    *,
    output: IO[bytes] | None = None,
) -> int:
    """Run a program in our terminal, with `environment` over our own, and wait for it.

    Args:
        output: Where it writes all it has to say, instead of the terminal.

    Returns:
        Its status; 128 + number when a signal ended it.

    Cancelled: the program gets the signal that was the reason, so that it can stop what it started itself, and is
    killed after 30 seconds.
    """
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
    try:
        status = await _wait(process)
    finally:
        if process.poll() is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(30):
                    await _pass_on(process, interruption.signal or signal.SIGTERM)
            process.kill()
            process.wait()
    return status if status >= 0 else 128 - status


async def _pass_on(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Give the program the signal that we got, and wait for its end."""
    if number is signal.SIGINT:
        # The terminal has sent it Ctrl-C as well. A second one would disturb it while it cleans up.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await _wait(process)
                return
    process.send_signal(number)
    await _wait(process)


async def _wait(process: subprocess.Popen[bytes]) -> int:
    while (status := process.poll()) is None:
        await asyncio.sleep(0.05)
    return status


def run_until_signal(program: Callable[[Interruption], Awaitable[int]]) -> int:
    """Run `program` to its status. A signal cancels it, and the status is 128 + the signal's number."""
    interruption = Interruption()

    async def watched() -> int:
        task = asyncio.current_task()
        assert task is not None
        interruption.watch(task)
        return await program(interruption)

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if interruption.signal is None:
            raise
        return 128 + interruption.signal
    except ServerError as error:
        say(str(error))
        return 1


async def execute(command: Sequence[str], policy: Policy, interruption: Interruption) -> int:
    """`exec`: the program's status; 1 without running it when a service is missing and all are required."""
    async with provided(policy) as services:
        for name, reason in services.missing.items():
            say(f"{name} is missing: {reason}")
        if services.missing and policy.requires_all:
            return 1
        return await run_child(command, services.environment(), interruption)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="services.py ACTION"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("start", "stop", "install"):
        actions.add_parser(name)
    actions.add_parser("exec").add_argument("command", nargs="+")
    arguments = parser.parse_args()
    policy = Policy.from_environment()

    async def program(interruption: Interruption) -> int:
        match arguments.action:
            case "start":
                return await start_in_background(policy)
            case "stop":
                return await stop_in_background()
            case "install":
                await debian.install(need for kind in KINDS.values() for need in kind.missing())
                return 0
            case _:
                return await execute(arguments.command, policy, interruption)

    return run_until_signal(program)


if __name__ == "__main__":
    sys.exit(main())
