"""Bytes to topics and back: one protocol, over MQTT or in memory, and a local broker to try it with."""

from srup.transport.base import Delivery, Transport
from srup.transport.broker import LocalBroker
from srup.transport.memory import MemoryNetwork, MemoryTransport
from srup.transport.mosquitto import access_list, broker_configuration
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

__all__ = [
    "Address",
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
    "join_filter",
    "join_topic",
    "parse_topic",
]
