"""One answer for all who ask at the same time, whoever of them goes away."""

import asyncio

import pytest

from deimos_async.errors import RegistryError, RegistryUnavailableError
from deimos_async.schemas.registry_flights import PerLoop, SingleFlight


class Question:
    """Waits until it is answered, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.begun = asyncio.Event()
        self.answered = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> str:
        self.asked += 1
        self.begun.set()
        await self.answered.wait()
        if self.error is not None:
            raise self.error
        return "answer"


async def test_thousand_askers_share_one_answer() -> None:
    flights, question = SingleFlight(), Question()
    askers = [asyncio.create_task(flights.ask("q", question)) for _ in range(1000)]
    await question.begun.wait()
    question.answered.set()
    assert await asyncio.gather(*askers) == ["answer"] * 1000
    assert question.asked == 1


async def test_different_questions_are_asked_apart() -> None:
    flights, first, second = SingleFlight(), Question(), Question()
    first.answered.set()
    second.answered.set()
    await asyncio.gather(flights.ask("a", first), flights.ask("b", second))
    assert (first.asked, second.asked) == (1, 1)


async def test_cancelled_first_asker_leaves_the_others_their_answer() -> None:
    flights, question = SingleFlight(), Question()
    first = asyncio.create_task(flights.ask("q", question))
    await question.begun.wait()
    second = asyncio.create_task(flights.ask("q", question))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    question.answered.set()
    assert await second == "answer"
    assert question.asked == 1


async def test_question_goes_on_after_its_only_asker_was_cancelled() -> None:
    flights, question = SingleFlight(), Question()
    asker = asyncio.create_task(flights.ask("q", question))
    await question.begun.wait()
    asker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asker
    question.answered.set()
    assert await flights.ask("q", question) == "answer"
    assert question.asked == 1


async def test_error_reaches_every_asker_as_its_own_instance_and_is_not_kept() -> None:
    flights, question = SingleFlight(), Question()
    question.error = RegistryError("refused", status=500, code=50001)
    question.error.__cause__ = OSError("away")
    askers = [asyncio.create_task(flights.ask("q", question)) for _ in range(3)]
    await question.begun.wait()
    question.answered.set()
    errors = await asyncio.gather(*askers, return_exceptions=True)
    assert [(type(error), str(error), error.status, error.code) for error in errors] == [
        (RegistryError, "refused", 500, 50001)
    ] * 3
    assert len({id(error) for error in errors}) == 3
    assert all(error.__cause__ is question.error.__cause__ for error in errors)
    question.error = None
    assert await flights.ask("q", question) == "answer"
    assert question.asked == 2


async def test_error_that_nobody_waits_for_is_not_reported_to_the_loop() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    flights, question = SingleFlight(), Question()
    question.error = RegistryError("refused")
    asker = asyncio.create_task(flights.ask("q", question))
    await question.begun.wait()
    asker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asker
    question.answered.set()
    await flights.close()
    del asker, flights
    assert reported == []


async def test_close_ends_askers_with_an_error_and_not_with_a_cancellation() -> None:
    flights, question = SingleFlight(), Question()
    asker = asyncio.create_task(flights.ask("q", question))
    await question.begun.wait()
    await flights.close()
    with pytest.raises(RegistryUnavailableError, match="closed before the answer came"):
        await asker
    await flights.close()


def test_each_loop_has_its_own_and_those_of_closed_loops_are_forgotten() -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    per_loop = PerLoop(make)

    async def get_twice() -> tuple[object, object]:
        return per_loop.get(), per_loop.get()

    async def pop_and_get() -> tuple[object, object, object]:
        first = per_loop.get()
        return first, per_loop.pop(), per_loop.get()

    one, again = asyncio.run(get_twice())
    assert one is again
    first, popped, second = asyncio.run(pop_and_get())
    assert first is popped
    assert len({id(thing) for thing in (one, first, second)}) == 3
    assert len(per_loop._made) == 1
