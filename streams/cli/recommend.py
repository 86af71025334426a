"""`streamrec recommend`: asks for one user's list through the `requests` topic and waits for the answer."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated

import msgspec
import typer

from models.domain.errors import RecommenderError
from models.domain.events import DEFAULT_LIST_LENGTH, MAX_LIST_LENGTH, EventContract, Request
from streams.cli.common import fail, run_async, with_settings
from streams.cli.follow import show
from streams.settings import Settings
from streams.topics import TopicNames

EXIT_NO_ANSWER = 1

app = typer.Typer()


class NoAnswerError(RecommenderError):
    """No worker answered in time."""


@app.command()
@with_settings("Kafka")
def recommend(
    settings: Settings,
    user: Annotated[str, typer.Argument(metavar="USER")],
    k: Annotated[int, typer.Option(min=1, max=MAX_LIST_LENGTH, help="Items.")] = DEFAULT_LIST_LENGTH,
    text: Annotated[str, typer.Option(metavar="Q", help="A query in words; it counts for this list only.")] = "",
    timeout: Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds to wait for the answer.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="The list as published.")] = False,
) -> None:
    """Ask for a user's list now, and show it. A user nobody knows gets what is popular.

    Exit code 1 without an answer.
    """
    request = Request(request_id=uuid.uuid4().hex, user_id=user, k=k, text=text or None)
    data = msgspec.json.encode(request)
    EventContract().decode_request(data)  # the limits of the contract, named before anything is sent
    try:
        answer = run_async(_ask(settings, request, data, timeout))
    except NoAnswerError as error:
        fail(str(error))
        raise typer.Exit(EXIT_NO_ANSWER) from error
    show(None, answer, as_json)


async def _ask(settings: Settings, request: Request, data: bytes, timeout: float) -> bytes:
    from streams.cli.tail import tail
    from streams.kafka.connection import KafkaConnection
    from streams.kafka.publisher import Message, Publisher

    connection, names = KafkaConnection.from_settings(settings), TopicNames(settings.topic_prefix)
    key = str(request.user_id).encode("utf-8", "surrogatepass")
    listening = asyncio.Event()

    async def answer() -> bytes:
        async for record in tail(connection, names.recommendations, key=key, ready=listening):
            if record.value is not None and _RequestId.of(record.value) == request.request_id:
                return bytes(record.value)
        raise AssertionError("a tail has no end")

    waiting = asyncio.create_task(answer())
    ready = asyncio.create_task(listening.wait())
    try:
        async with asyncio.timeout(timeout):
            await asyncio.wait({waiting, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                async with Publisher(
                    connection, client_id="streamrec-recommend", deadline_seconds=timeout
                ) as publisher:
                    await publisher.send(Message(names.requests, key, data))
            return await waiting
    except TimeoutError as error:
        raise NoAnswerError(
            f"no answer within {timeout:g} s: does a worker run? `streamrec doctor` says what is missing"
        ) from error
    finally:
        for task in (waiting, ready):
            task.cancel()
        await asyncio.gather(waiting, ready, return_exceptions=True)


class _RequestId(msgspec.Struct):
    request_id: str | None = None

    @classmethod
    def of(cls, data: bytes) -> str | None:
        try:
            return msgspec.json.decode(data, type=cls).request_id
        except msgspec.DecodeError:
            return None
