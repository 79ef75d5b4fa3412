"""Devices and servers in an event loop (srup.aio)."""

import asyncio
import threading
from functools import partial

import pytest

from srup import Device, KeyRing, PolicyError, Server, Status, TransportError
from srup.aio import AsyncDevice, AsyncServer
from srup.fetch import MemoryFetcher
from srup.store import MemoryStore
from srup.transport import MemoryNetwork, MemoryTransport
from srup.update import UpdateState

from .fleet import DIGEST, FIRMWARE, SERVER, URL, WAIT, key_of, wait_until

pytestmark = pytest.mark.backend

DEVICE = 0xD0


class Pair:
    """A server and a device on a network with threads, not started."""

    def __init__(self, tmp_path, server=AsyncServer, device=AsyncDevice):
        network = MemoryNetwork()
        self.ring = KeyRing({DEVICE: key_of(DEVICE).public_key})
        self.server = server(SERVER, key_of(SERVER), devices=self.ring, broker=MemoryTransport(network, "server"))
        self.device = device(
            DEVICE,
            key_of(DEVICE),
            server=SERVER,
            server_key=key_of(SERVER).public_key,
            broker=MemoryTransport(network, "device"),
            firmware=tmp_path,
            fetcher=MemoryFetcher({URL: FIRMWARE}),
        )


def run(coroutine):
    asyncio.run(asyncio.wait_for(coroutine, WAIT))


def test_coroutines_ask_and_answer(tmp_path):
    async def main():
        pair = Pair(tmp_path)
        loop_thread, heard = threading.get_ident(), asyncio.Queue()

        @pair.device.on_action(1)
        async def act(server):
            assert threading.get_ident() == loop_thread
            await asyncio.sleep(0)
            return Status.ACTION_SUCCESS

        @pair.device.on_action(2)
        def plain(server):
            return False

        @pair.server.on_data("n", "uint32")
        async def take(device, name, value):
            await heard.put((device, value, await pair.server.action(device, 1)))  # a handler may ask as well

        async with pair.server as server, pair.device as device:
            assert (server, device) == (pair.server, pair.device)
            await device.wait_joined(WAIT)
            await device.send("n", 7, "uint32")
            assert await heard.get() == (DEVICE, 7, Status.ACTION_SUCCESS)
            assert await server.action(DEVICE, 2) is Status.ACTION_FAIL
            assert await server.update(DEVICE, URL, DIGEST) is UpdateState.ACTIVATED
            assert server.counts["faults"] == device.counts["faults"] == 0
        assert server.stopped
        assert device.stopped
        with pytest.raises(TransportError):
            await server.action(DEVICE, 1)

    run(main())


def test_what_a_coroutine_raises_is_an_answer_and_a_fault(tmp_path):
    async def main():
        pair = Pair(tmp_path)

        @pair.device.on_action(1)
        async def act(server):
            raise RuntimeError("it does not work")

        async with pair.server, pair.device:
            await pair.device.wait_joined(WAIT)
            assert await pair.server.action(DEVICE, 1) is Status.ACTION_FAIL
            assert pair.device.counts["faults"] == 1

    run(main())


def test_who_stops_waiting_does_not_end_what_was_asked(tmp_path):
    async def main():
        pair = Pair(tmp_path)
        go_on = asyncio.Event()
        pair.device.on_action(1)(lambda server: go_on.wait())
        async with pair.server, pair.device:
            await pair.device.wait_joined(WAIT)
            asked = pair.server.action(DEVICE, 1)
            waiting = asyncio.ensure_future(asyncio.wait_for(asked, WAIT))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not asked.done()
            go_on.set()
            assert await asked is Status.ACTION_SUCCESS

    run(main())


def test_what_a_handler_waits_for_may_be_cancelled(tmp_path):
    async def main():
        pair = Pair(tmp_path)

        @pair.device.on_action(1)
        async def act(server):
            raise asyncio.CancelledError

        async with pair.server, pair.device:
            await pair.device.wait_joined(WAIT)
            assert await pair.server.action(DEVICE, 1) is Status.ACTION_FAIL

    run(main())


def test_a_handler_whose_loop_has_ended_has_done_nothing(tmp_path):
    store, heard = MemoryStore(), []
    pair = Pair(tmp_path, device=Device, server=partial(AsyncServer, store=store))

    async def main():
        begun = asyncio.Event()

        @pair.server.on_data("n", "uint32")
        async def take(device, name, value):
            begun.set()
            await asyncio.Event().wait()

        await pair.server.start()  # and nobody stops it
        with pair.device:
            await asyncio.to_thread(pair.device.wait_joined, WAIT)
            for value in range(3):
                await pair.device.send("n", value, "uint32")
            await begun.wait()

    run(main())
    asyncio.run(pair.server.stop())
    name = f"srup-{SERVER:x}-application"
    wait_until(lambda: not any(thread.name.startswith(name) for thread in threading.enumerate()))
    network = MemoryNetwork()
    again = Server(SERVER, key_of(SERVER), devices=KeyRing(), broker=MemoryTransport(network, "server"), store=store)
    again.on_data("n", "uint32")(lambda device, name, value: heard.append(value))
    with again:
        wait_until(lambda: heard == [0, 1, 2])


def test_a_start_that_is_cancelled_leaves_nothing_that_runs(tmp_path):
    opening, go_on = threading.Event(), threading.Event()

    class SlowStore(MemoryStore):
        def open(self, owner):
            opening.set()
            go_on.wait(WAIT)
            return super().open(owner)

    async def main():
        pair = Pair(tmp_path, server=partial(AsyncServer, store=SlowStore()))
        entering = asyncio.ensure_future(pair.server.__aenter__())
        await asyncio.to_thread(opening.wait, WAIT)
        entering.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert pair.server.stopped

    run(main())


@pytest.mark.slow
def test_a_join_that_is_not_answered_or_refused(tmp_path):
    async def main():
        pair = Pair(tmp_path)
        pair.server.on_join(lambda device: False)
        async with pair.device:
            with pytest.raises(TimeoutError, match="has not answered the join"):
                await pair.device.wait_joined(0.0)
            async with pair.server:
                with pytest.raises(PolicyError, match="JOIN_REFUSED"):
                    await pair.device.wait_joined(WAIT)

    run(main())


def test_it_stays_until_it_is_cancelled_or_stopped(tmp_path):
    async def main():
        pair = Pair(tmp_path)
        running = [asyncio.ensure_future(agent.run()) for agent in (pair.server, pair.device)]
        while not pair.device.joined:
            await asyncio.sleep(0)
        await pair.device.stop()
        await running[1]
        running[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await running[0]
        assert pair.server.stopped

    run(main())


def test_what_belongs_to_asyncio_is_not_used_otherwise(tmp_path):
    with pytest.raises(TypeError, match="async with"), Pair(tmp_path).device:
        pass
    with pytest.raises(TypeError, match="a handler is a function"):
        Pair(tmp_path).device.on_action(1)(7)
    with pytest.raises(TypeError, match="plain function"):  # the control
        Pair(tmp_path, Server, Device).device.on_action(1)(asyncio.sleep)


def test_the_futures_of_other_agents_can_be_awaited_too(tmp_path):
    async def main():
        pair = Pair(tmp_path, Server, Device)
        pair.device.on_action(1)(lambda server: None)
        with pair.server, pair.device:
            pair.device.wait_joined(WAIT)
            assert await pair.server.action(DEVICE, 1) is Status.ACTION_SUCCESS

    run(main())


def test_a_fault_in_a_turn_is_raised_where_it_runs(tmp_path):
    async def main():
        pair, told = Pair(tmp_path), asyncio.Queue()

        @pair.server.on_fault
        async def fault(error):
            await told.put(error)

        def broken():
            raise TypeError("nobody has foreseen this")

        running = asyncio.ensure_future(pair.server.run())
        async with pair.device:
            await pair.device.wait_joined(WAIT)
            pair.server.engine.session.deadline = broken
            with pytest.raises(TransportError):
                await pair.server.action(DEVICE, 1)
            with pytest.raises(TypeError) as raised:
                await running
            assert await told.get() is raised.value

    run(main())
