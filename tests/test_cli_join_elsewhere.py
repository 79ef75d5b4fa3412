"""srup join: people compare beside a server that has no terminal."""

import json

import pytest

from srup.store import RedisStore

from .command import Command
from .redis_server import redis_server
from .test_cli_join import broker, keys, not_in_what_stays, restored, shown, stage, words

__all__ = ["broker", "keys", "stage"]

pytestmark = pytest.mark.process


@pytest.fixture
def database(stage):
    """Starts a server as a service, whose joins are decided elsewhere."""
    path = stage.folder / "server.db"
    arguments = stage.server_arguments("--admission", "human", "--moderation", "orders", "--store", path)
    with Command(*arguments) as service:
        service.heard("connected to")
        stage.service = service
        yield path


def desk(stage, store, *options):
    return stage._run(["join", "--store", str(store), "--identity", "5e", *options])


def command(store, *arguments):
    return Command("join", "--store", store, "--identity", "5e", *arguments)


def listed(store):
    with command(store, "--json") as lists:
        assert lists.wait() == 0, lists.text
        return [json.loads(line) for line in lists.said]


def test_somebody_compares_on_another_terminal(stage, database):
    device = stage.device()
    value = shown(device)
    stage.service.heard("d0 waits to be compared: srup join")
    beside = desk(stage, database)
    assert shown(beside) == value
    assert words(beside) == value.words.split()
    beside.expect(r"1[45]:\d\d left")
    beside.send("x\r")
    beside.expect("type a, r or f")
    beside.send("a\r")
    device.expect("joined server 5e")
    beside.expect("d0: accepted")
    assert beside.wait() == 0
    stage.service.heard("d0 has joined")
    restored(beside)
    not_in_what_stays(beside, value)
    assert value.text not in stage.service.text


def test_one_after_the_other_and_then_it_waits_for_more(stage, database):
    first = stage.device()
    value = shown(first)
    second = stage.device(identity=0xD1)
    other = shown(second)
    beside = desk(stage, database, "--watch")
    assert shown(beside) == value
    beside.expect(r"1\s+more\s+waiting")
    beside.send("r\r")
    first.expect("JOIN_REFUSED")
    while shown(beside) != other:  # the rest of the screen before, perhaps
        pass
    beside.send("f\r")
    second.expect("JOIN_FAIL")
    beside.expect("no join waits")
    assert beside.end() == 0
    assert "d1: ended, it could not be compared" in beside.text


def test_without_a_terminal_what_waits_is_listed_and_named_by_its_id(stage, database):
    device = stage.device()
    value = shown(device)
    [join] = listed(database)
    assert (join["device"], join["kind"], join["words"]) == ("d0", "human", value.words)
    assert (join["number"], join["qr"]) == (value.groups, value.text)
    with command(database) as lists:
        assert lists.wait() == 0
        assert f"  id       {join['id']}\n" in lists.said
        assert "1 join waits\n" in lists.said
    with command(database, "accept", "d0") as unnamed:
        assert unnamed.wait() == 2
        assert "which join?" in unnamed.text
    with command(database, "accept", "d0", "--id", "0" * 32) as wrong:
        assert wrong.wait() == 2
        assert f"no such join of d0 waits; the one that waits now is {join['id']}" in wrong.text
    with command(database, "refuse", "d1") as nobody:
        assert nobody.wait() == 2
        assert "no such join of d1 waits" in nobody.text
    with command(database, "accept", "d0", "--id", join["id"][:12], "--by", "ada") as right:
        assert right.wait() == 0, right.text
        assert right.said == ["d0: accepted\n"]
    device.expect("joined server 5e")
    assert listed(database) == []


def test_the_device_is_told_of_a_refusal(stage, database):
    device = stage.device()
    shown(device)
    with command(database, "refuse", "d0") as refusal:
        assert refusal.wait() == 0, refusal.text
    device.expect("refused the join: JOIN_REFUSED: whoever compared the values has refused it")


def test_nothing_waits(stage, database):
    beside = desk(stage, database)
    beside.expect("no join waits to be compared")
    assert beside.wait() == 0


def test_a_server_that_does_not_run_says_so(stage, database):
    device = stage.device()
    shown(device)
    [join] = listed(database)
    stage.service.process.kill()
    stage.service.wait()
    assert listed(database) == [join]  # it was killed, and has taken nothing away
    arguments = stage.server_arguments("--admission", "human", "--moderation", "orders", "--store", database)
    with Command(*arguments) as again:
        again.heard("d0 waits to be compared")
        [newer] = listed(database)
        assert newer["id"] != join["id"]
        while shown(device).groups != newer["number"]:  # its screen is drawn once a second
            pass
        with command(database, "accept", "d0", "--id", join["id"]) as older:
            assert older.wait() == 2
        assert again.end() == 0
    assert listed(database) == []


@pytest.mark.slow
def test_workers_have_their_joins_decided_elsewhere(stage, tmp_path):
    with redis_server(tmp_path / "redis") as redis:
        RedisStore.create(redis.url, 0x5E, partitions=4)
        options = ("--admission", "human", "--moderation", "orders", "--store", redis.url, "--workers", "1")
        with Command("-v", *stage.server_arguments(*options)) as workers:
            for partition in range(4):
                workers.heard(f"serves partition {partition}:")
            devices = [stage.device(), stage.device(identity=0xD1)]
            values = [shown(device) for device in devices]
            joins = sorted(listed(redis.url), key=lambda join: join["device"])
            assert [join["words"] for join in joins] == [value.words for value in values]
            for join in joins:
                with command(redis.url, "accept", join["device"], "--id", join["id"]) as accepted:
                    assert accepted.wait() == 0, accepted.text
            for device in devices:
                device.expect("joined server 5e")
            assert listed(redis.url) == []


def test_orders_need_a_store(stage):
    with Command(*stage.server_arguments("--moderation", "orders")) as server:
        assert server.wait() == 2
        assert "--moderation orders needs --store" in server.text
