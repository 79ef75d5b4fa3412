"""The transports, which srup.transport imports at first use."""

from srup._pyinstaller import at_first_use
from srup.transport import _AT_FIRST_USE

hiddenimports = at_first_use("srup.transport", _AT_FIRST_USE)
