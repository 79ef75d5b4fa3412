"""The value of a moderated join, in the forms in which people and cameras compare it (docs/protocol/flows.md#f-35).

The server makes it and seals it to the device; the device shows it, and a person or an observer compares. It is a
secret until the join is over: nothing here shows it unasked, and it is never logged (T17).
"""

from hashlib import sha256
from hmac import compare_digest
from typing import Final

from .errors import SealError
from .extras import missing_named

__all__ = ["SIZE", "JoinValue"]

SIZE: Final = 16
"""The bytes of a value."""

_HEX: Final = frozenset("0123456789abcdef")
_DIGITS: Final = 40  # 2**128 has 39 decimal digits
_GROUP: Final = 5


class JoinValue:
    """A value of 128 bits; ``plaintext``, 32 lower-case hex digits as peers send them, is what is sealed.

    A plaintext of another form, which a deployed server may send, stands for the first 128 bits of its SHA-256 where it
    is shown as words or numbers. Equality takes the same time whatever differs.
    """

    __slots__ = ("_bits", "plaintext")

    def __init__(self, plaintext: bytes) -> None:
        self.plaintext = plaintext.rstrip(b"\0")
        if not self.plaintext.strip():
            raise SealError("the value of a join is empty")
        if len(self.plaintext) == 2 * SIZE and _HEX.issuperset(self.plaintext.decode("latin-1")):
            self._bits = bytes.fromhex(self.plaintext.decode())
        else:
            self._bits = sha256(self.plaintext).digest()[:SIZE]

    @classmethod
    def new(cls, random: bytes) -> "JoinValue":
        """Make a value of 16 random bytes."""
        if len(random) != SIZE:
            raise ValueError(f"a join value takes {SIZE} random bytes, not {len(random)}")
        return cls(random.hex().encode())

    @property
    def groups(self) -> str:
        """Eight groups of five digits, to be read aloud or typed."""
        digits = f"{int.from_bytes(self._bits):0{_DIGITS}d}"
        return " ".join(digits[start : start + _GROUP] for start in range(0, _DIGITS, _GROUP))

    @property
    def words(self) -> str:
        """Twelve English words of the BIP 39 list; needs the extra ``srup[join]``."""
        with missing_named():
            from mnemonic import Mnemonic

        return str(Mnemonic("english").to_mnemonic(self._bits))

    @property
    def text(self) -> str:
        """The text of the QR code: the value in hex."""
        return self._bits.hex()

    def qr(self, border: int = 2) -> str:
        """Return a QR code of :attr:`text` for a terminal, two rows of it a line; needs the extra ``srup[join]``."""
        import io

        with missing_named():
            import segno

        out = io.StringIO()
        segno.make(self.text, error="m", micro=False).terminal(out, border=border, compact=True)
        return out.getvalue()

    def matches(self, read: str | bytes) -> bool:
        """Return whether what was read is this value, in any of the forms above or as it was sealed.

        Case and white space do not matter, except within a plaintext that has another form than ours.
        """
        exact = read if isinstance(read, bytes) else read.encode(errors="replace")
        plain = " ".join(exact.decode(errors="replace").lower().split())
        forms = [self.text, self.groups, self.groups.replace(" ", "")]
        if plain.count(" ") == 11:
            forms.append(self.words)
        same = [compare_digest(form.encode(), plain.encode()) for form in forms]
        return any(same) or compare_digest(self.plaintext.strip(), exact.strip())

    def __eq__(self, other: object) -> bool:
        return compare_digest(self._bits, other._bits) if isinstance(other, JoinValue) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._bits)

    def __repr__(self) -> str:
        return "<JoinValue, not shown>"
