"""What runs is bounded, and at the end finished: new requests are refused, and health is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from service.errors import Overloaded
from service.http.disconnect import CancelOnDisconnect
from service.http.gate import Gate, GateMiddleware


class Asked:
    """A request to a middleware, and what was answered."""

    def __init__(
        self, app: Any, path: str = "/v1/images/generations", body: list[Message] | None = None
    ) -> None:
        self.sent: list[Message] = []
        self.left, self.more = asyncio.Event(), asyncio.Event()
        whole: Message = {"type": "http.request", "body": b"", "more_body": False}
        self.body = [whole] if body is None else body
        scope = {"type": "http", "path": path, "method": "POST", "headers": []}
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if not self.body:
            waits = [asyncio.ensure_future(one.wait()) for one in (self.left, self.more)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for one in waits:
                one.cancel()
        if self.body:
            self.more.clear()
            return self.body.pop()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int | None:
        """The answer's, once there is one."""
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The answer's."""
        return dict(self.sent[0]["headers"])


def _held(release: asyncio.Event) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if not scope["path"].startswith("/health"):
            await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return app


def test_more_than_may_run_are_refused_and_health_is_not() -> None:
    async def scenario() -> None:
        release = asyncio.Event()
        app = GateMiddleware(_held(release), Gate(2))
        first, second = Asked(app), Asked(app)
        await asyncio.sleep(0)
        third, health = Asked(app), Asked(app, "/health/ready")
        await asyncio.gather(third.task, health.task)
        assert (third.status, health.status) == (429, 200)
        assert int(third.headers[b"retry-after"]) >= 1
        release.set()
        await asyncio.gather(first.task, second.task)
        fourth = Asked(app)
        await fourth.task
        assert [one.status for one in (first, second, fourth)] == [200] * 3

    asyncio.run(scenario())


def test_at_the_end_what_runs_is_finished_and_what_comes_is_refused() -> None:
    async def scenario() -> None:
        release = asyncio.Event()
        gate = Gate(8)
        app = GateMiddleware(_held(release), gate)
        running = Asked(app)
        await asyncio.sleep(0)
        stopped = asyncio.ensure_future(gate.stop(60))
        await asyncio.sleep(0)
        late, ready, live = Asked(app), Asked(app, "/health/ready"), Asked(app, "/health/live")
        await asyncio.gather(late.task, ready.task, live.task)
        assert [one.status for one in (late, ready, live)] == [503, 503, 200]
        assert late.headers[b"connection"] == b"close"
        assert int(late.headers[b"retry-after"]) >= 1
        assert not stopped.done()
        release.set()
        assert await stopped
        assert running.status == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("length", [True, False])
def test_a_whole_answer_that_is_read_slowly_holds_nobodys_place_and_is_waited_for(
    length: bool,
) -> None:
    release = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-length", b"2")] if length else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await release.wait()
        await send({"type": "http.response.body", "body": b"{}"})

    async def scenario() -> None:
        gate = Gate(1)
        first = Asked(GateMiddleware(app, gate))
        await asyncio.sleep(0)
        second = Asked(GateMiddleware(app, gate))
        await asyncio.sleep(0)
        # Without a length the answer is still being made.
        assert gate.running == (0 if length else 1)
        assert not await gate.stop(0.01)
        release.set()
        assert await gate.stop(60)
        await asyncio.gather(first.task, second.task)
        assert (first.status, second.status) == (200, 200 if length else 429)

    asyncio.run(scenario())


def test_half_a_body_holds_nobodys_place() -> None:
    async def scenario() -> None:
        release = asyncio.Event()
        release.set()
        gate = Gate(2)
        app = GateMiddleware(_held(release), gate)
        halves = [Asked(app, body=[]) for _ in range(5)]
        await asyncio.sleep(0)
        whole = Asked(app)
        await whole.task
        assert whole.status == 200
        assert gate.running == 0
        for half in halves:
            half.left.set()
            await half.task

    asyncio.run(scenario())


def test_a_body_that_ends_when_all_places_are_taken_is_refused() -> None:
    async def scenario() -> None:
        release, gate = asyncio.Event(), Gate(1)
        app = GateMiddleware(_held(release), gate)
        late = Asked(app, body=[])
        await asyncio.sleep(0)
        first = Asked(app)
        await asyncio.sleep(0)
        late.body.append({"type": "http.request", "body": b"", "more_body": False})
        late.more.set()
        with pytest.raises(Overloaded):
            await late.task
        release.set()
        await first.task
        assert gate.running == 0

    asyncio.run(scenario())


def test_grace_has_an_end() -> None:
    async def scenario() -> None:
        gate = Gate(8)
        Asked(GateMiddleware(_held(asyncio.Event()), gate))
        await asyncio.sleep(0)
        assert not await gate.stop(0.01)

    asyncio.run(scenario())


def test_work_ends_when_its_client_leaves() -> None:
    async def scenario() -> None:
        ended = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        asked = Asked(CancelOnDisconnect(app))
        await asyncio.sleep(0)
        asked.left.set()
        await asyncio.wait_for(ended.wait(), 30)
        await asked.task

    asyncio.run(scenario())


def test_an_app_that_listens_for_the_leaving_itself_hears_of_it() -> None:
    async def scenario() -> None:
        receive_and_watch: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            try:
                receive_and_watch.append((await receive())["type"])
            except asyncio.CancelledError:
                receive_and_watch.append("cancelled")
                raise

        asked = Asked(CancelOnDisconnect(app))
        await asyncio.sleep(0)
        asked.left.set()
        await asked.task
        assert receive_and_watch in (["http.disconnect"], ["cancelled"])

    asyncio.run(scenario())


def test_a_task_that_is_cancelled_otherwise_stays_cancelled() -> None:
    async def scenario() -> None:
        asked = Asked(CancelOnDisconnect(_held(asyncio.Event())))
        await asyncio.sleep(0)
        asked.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked.task

    asyncio.run(scenario())
