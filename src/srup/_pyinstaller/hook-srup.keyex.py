"""The parts of the key exchange, which srup.keyex imports at first use."""

from srup._pyinstaller import at_first_use
from srup.keyex import _AT_FIRST_USE

hiddenimports = at_first_use("srup.keyex", _AT_FIRST_USE)
