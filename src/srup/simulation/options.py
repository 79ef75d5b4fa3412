"""What a run is made of besides its seed."""

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is made of besides its seed.

    In a ``durable`` world everybody has a store. With ``syndication`` there are several owners, each with servers,
    devices and a broker of their own, who share devices with each other.
    """

    devices: int = 4
    steps: int = 150
    scheme: str = "ed25519"
    attack: bool = True
    durable: bool = False
    syndication: bool = False
