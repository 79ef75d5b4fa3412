"""What a program that imports srup needs besides the modules that PyInstaller sees: those imported at first use."""

from srup import _AT_FIRST_USE
from srup._pyinstaller import at_first_use

hiddenimports = at_first_use("srup", _AT_FIRST_USE)
