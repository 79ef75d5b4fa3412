"""Topics have exactly one spelling, in both directions, and filters match as MQTT says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srup.errors import PolicyError, TransportError
from srup.transport.topics import (
    Address,
    check_filter,
    check_topic,
    device_filter,
    device_topic,
    join_filter,
    join_topic,
    matches,
    parse_topic,
)

identities = st.integers(0, 2**64 - 1)


@given(identities)
def test_a_device_topic_round_trips(device):
    assert parse_topic(device_topic(device)) == Address(None, device)


@given(identities, identities)
def test_a_join_topic_round_trips(server, device):
    assert parse_topic(join_topic(server, device)) == Address(server, device)


@given(identities, identities)
def test_filters_select_their_topics_and_no_others(one, other):
    assert matches(device_filter(one), device_topic(one))
    assert matches(join_filter(one), join_topic(one, other))
    assert not matches(join_filter(one), device_topic(one))
    assert not matches(device_filter(one), join_topic(one, other))
    assert matches(device_filter(one), device_topic(other)) == (one == other)
    assert matches(join_filter(one), join_topic(other, one)) == (one == other)


def test_the_spelling_is_that_of_deployed_peers():
    assert device_topic(0xAB) == "SRUP/ab"
    assert device_topic(0) == "SRUP/0"
    assert device_topic(2**64 - 1) == "SRUP/ffffffffffffffff"
    assert join_topic(0x51, 0xD0) == "SRUP/servers/51/d0"
    assert join_filter(0x51) == "SRUP/servers/51/#"
    assert device_filter(0xD0) == "SRUP/d0/#"


@pytest.mark.parametrize("identity", [-1, 2**64, True, 1.0, "1", None], ids=repr)
@pytest.mark.parametrize("make", [device_topic, device_filter, join_filter, lambda i: join_topic(1, i)])
def test_what_is_no_identity_gets_no_topic(make, identity):
    with pytest.raises(ValueError, match="64-bit"):
        make(identity)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "SRUP",
        "SRUP/",
        "SRUP/AB",
        "SRUP/00",
        "SRUP/0ab",
        "SRUP/0x1",
        "SRUP/-1",
        "SRUP/1_0",
        "SRUP/10000000000000000",
        "SRUP/1/",
        "SRUP/1/2",
        "SRUP/1\n",
        " SRUP/1",
        "srup/1",
        "SRUP//1",
        "/SRUP/1",
        "SRUP/+",
        "SRUP/#",
        "SRUP/1/#",
        "SRUP/\u0661",  # a digit to int(), not to us
        "SRUP/servers",
        "SRUP/servers/1",
        "SRUP/servers/1/",
        "SRUP/servers//1",
        "SRUP/servers/1/2/3",
        "SRUP/servers/1/A",
        "SRUP/servers/01/1",
        "SRUP/servers/1/#",
        "OTHER/servers/1/2",
    ],
)
def test_a_topic_of_any_other_form_is_refused(topic):
    with pytest.raises(PolicyError):
        parse_topic(topic)


@given(st.text(max_size=200))
def test_whatever_parses_is_what_we_would_have_written(topic):
    try:
        server, device = parse_topic(topic)
    except PolicyError:
        return
    assert topic == (device_topic(device) if server is None else join_topic(server, device))


@given(st.text(max_size=1000))
def test_a_refusal_is_one_short_printable_line(junk):
    with pytest.raises(PolicyError) as caught:
        parse_topic("SRUP/\x1b[2J\n" + junk)
    said = str(caught.value)
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [  # MQTT 5.0, sections 4.7.1 and 4.7.2
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/tennis/player1/#", "sport/tennis/player10", False),
        ("sport/#", "sport", True),
        ("#", "anything/at/all", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("+/b/#", "a/b", True),
        ("+/b/#", "a/c", False),
        ("#", "$SYS/load", False),
        ("+/load", "$SYS/load", False),
        ("$SYS/#", "$SYS/load", True),
        ("a/b", "a/b", True),
        ("a/b", "a/B", False),
        ("a/b", "a/b/c", False),
    ],
)
def test_filters_match_as_the_standard_says(topic_filter, topic, expected):
    check_filter(topic_filter)
    check_topic(topic)
    assert matches(topic_filter, topic) is expected


levels = st.lists(st.sampled_from(["", "a", "b", "SRUP"]), min_size=1, max_size=5)


@given(levels, st.data())
def test_wildcards_put_over_levels_still_match(topic, data):
    pattern = [data.draw(st.sampled_from(["+", level])) for level in topic]
    if data.draw(st.booleans()):
        pattern = [*pattern[: data.draw(st.integers(0, len(pattern)))], "#"]
    assert matches("/".join(pattern), "/".join(topic))


@given(levels, levels)
def test_without_wildcards_matching_is_equality(one, other):
    assert matches("/".join(one), "/".join(other)) == (one == other)


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0", "a" * 65536, "\ud800"], ids=ascii)
def test_some_topics_cannot_be_published_to(topic):
    with pytest.raises(TransportError):
        check_topic(topic)


@pytest.mark.parametrize(
    "topic_filter", ["", "a+", "a/#/b", "#a", "a#", "a/b+/c", "a\0", "a" * 65536], ids=lambda f: f[:9]
)
def test_some_filters_are_none(topic_filter):
    with pytest.raises(TransportError):
        check_filter(topic_filter)
