"""Bytes to topics and back: one protocol, over MQTT or in memory, and a local broker to try it with."""

from typing import TYPE_CHECKING

from srup.extras import at_first_use
from srup.transport.base import Deliveries, Delivery, Transport

if TYPE_CHECKING:
    from srup.transport.broker import LocalBroker
    from srup.transport.memory import MemoryNetwork, MemoryTransport
    from srup.transport.mosquitto import access_list, broker_configuration, filter_list, find_plugin
    from srup.transport.mqtt import MqttTransport
    from srup.transport.reactor import Reactor
    from srup.transport.topics import (
        Address,
        device_filter,
        device_topic,
        join_filter,
        join_topic,
        parse_topic,
    )

_AT_FIRST_USE = {
    "Address": "topics",
    "LocalBroker": "broker",
    "MemoryNetwork": "memory",
    "MemoryTransport": "memory",
    "MqttTransport": "mqtt",
    "Reactor": "reactor",
    "access_list": "mosquitto",
    "broker_configuration": "mosquitto",
    "device_filter": "topics",
    "device_topic": "topics",
    "filter_list": "mosquitto",
    "find_plugin": "mosquitto",
    "join_filter": "topics",
    "join_topic": "topics",
    "parse_topic": "topics",
}

__getattr__ = at_first_use(__name__, _AT_FIRST_USE)

__all__ = [
    "Address",
    "Deliveries",
    "Delivery",
    "LocalBroker",
    "MemoryNetwork",
    "MemoryTransport",
    "MqttTransport",
    "Reactor",
    "Transport",
    "access_list",
    "broker_configuration",
    "device_filter",
    "device_topic",
    "filter_list",
    "find_plugin",
    "join_filter",
    "join_topic",
    "parse_topic",
]
