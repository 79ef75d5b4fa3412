"""The table of verbs: each is a record in a mailbox, a method of Fleet and a command, which check the same."""

import json

import pytest
from typer.main import get_command

from srup import EncodeError, Fleet, MemoryStore, StoreError
from srup.agent.verbs import VERBS, load_order
from srup.cli.order import app
from srup.store.mailbox import Position

from .fleet import DIGEST, SERVER, URL, key_of

DEVICE = 0xD1
BEGIN = Position()
ID = f"{DEVICE:x}.{'0' * 32}"
DETAILS = {  # of an order of each verb, and as it stands in the mailbox
    "action": ((7,), {"action_id": 7}),
    "identify": ((), {}),
    "update": ((URL, DIGEST), {"url": URL, "digest": DIGEST, "hold": False}),
    "activate": ((ID,), {"update": "0" * 32}),
    "cancel": ((ID,), {"update": "0" * 32}),
    "send_data": (("n", b"\x05"), {"data_id": "n", "data": "BQ=="}),
    "command_join": ((0x99,), {"server": 0x99}),
    "register": ((key_of(DEVICE).public_key,), {"key": key_of(DEVICE).public_key.to_pem().decode()}),
    "remove": ((), {}),
    "revoke": ((), {}),
    "terminate": ((), {}),
    "deregister": ((), {}),
    "decide_join": (("accept", "0" * 32), {"decision": "accept", "join": "0" * 32, "by": ""}),
    "tag": (("site", "berlin"), {"name": "site", "value": "berlin"}),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_record_a_method_and_a_command(verb):
    """What stands in a mailbox has the form that earlier versions wrote."""
    arguments, details = DETAILS[verb]
    store = MemoryStore()
    about = verb in ("activate", "cancel")
    with Fleet(store, SERVER) as fleet:
        posted = getattr(fleet, verb)(*(() if about else (DEVICE,)), *arguments)
        [(_, entry), *_] = store.mailbox(SERVER).read({0: BEGIN}, 0.0)
    assert posted.device == DEVICE
    assert json.loads(entry.order) == {"order": verb, "device": f"{DEVICE:x}"} | details
    assert entry.urgent is VERBS[verb].urgent
    assert load_order(entry.order).dump() == entry.order
    command = get_command(app).commands[VERBS[verb].command]
    assert command.help == VERBS[verb].__doc__


@pytest.mark.parametrize("verb", VERBS)
def test_a_record_with_a_detail_too_many_or_too_few_is_refused(verb):
    _, details = DETAILS[verb]
    record = {"order": verb, "device": f"{DEVICE:x}"} | details
    with pytest.raises(TypeError, match="more"):
        load_order(json.dumps(record | {"more": 1}).encode())
    for name in details.keys() - {"hold", "server", "by"}:
        with pytest.raises((TypeError, ValueError, EncodeError)):
            load_order(json.dumps({key: value for key, value in record.items() if key != name}).encode())
        with pytest.raises((TypeError, ValueError, EncodeError)):
            load_order(json.dumps(record | {name: [1]}).encode())


def test_a_store_of_nobody_is_refused():
    store = MemoryStore()
    store.open(0x77)
    with pytest.raises(StoreError, match="belongs to 77"):
        Fleet(store, SERVER)
