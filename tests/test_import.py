"""What ``import srup`` loads: the codec and little else, so that a small device can afford it."""

import os
import subprocess
import sys

import pytest

import srup

pytestmark = [pytest.mark.process, pytest.mark.backend]

OWN = {
    "srup",
    *(f"srup.{name}" for name in ("codec", "errors", "extras", "messages", "seal", "wire")),
    "srup_native",
    *(f"srup_native.{name}" for name in ("_codec_py", "_verify_py", "errors")),
}
NATIVE = {f"srup_native.{name}" for name in ("_built", "_codec", "_cut", "_verify")}
PURE = {"srup_native._cut_py"}
STANDARD = {
    *("_collections", "_functools", "_operator", "_sre", "_struct", "_types", "_typing", "_warnings", "_weakref"),
    *("annotationlib", "ast", "_ast", "collections", "contextlib", "copyreg", "enum", "functools", "importlib"),
    *("itertools", "keyword", "operator", "re", "reprlib", "struct", "types", "typing", "warnings", "_py_warnings"),
    *("ntpath", "genericpath", "posixpath", "stat", "os", "string", "_string", "weakref", "_weakrefset", "abc"),
    *("cython_runtime", "_cython"),
}
"""What Python's own of these bring differs between its versions."""


def loaded_by(code: str) -> set[str]:
    """The modules that ``code`` loads beyond those of Python's start."""
    program = f"import sys; before = set(sys.modules); {code}; print(*(set(sys.modules) - before))"
    environment = os.environ | {"SRUP_BACKEND": srup.BACKEND}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_modules_that_an_import_loads() -> None:
    loaded = loaded_by("import srup")
    assert {name for name in loaded if name.startswith("srup")} == OWN | (NATIVE if srup.BACKEND == "native" else PURE)
    others = {name.split(".")[0].partition("_cython")[0] or "_cython" for name in loaded} - {"srup", "srup_native"}
    assert others <= STANDARD


@pytest.mark.parametrize(
    "code",
    [
        "import srup; srup.Action(sequence_id=7, sender_id=0x51, token=b't', action_id=3)",
        "import srup; srup.decode(b'\\5\\3' + bytes(16) + b'\\0\\1t\\0\\1s'); srup.KeyServiceError; srup.Status(0)",
        "import srup; srup.decode; srup.peek(b'\\5\\3' + bytes(16) + b'\\0\\1t')",
    ],
)
def test_messages_alone_need_no_cryptography(code: str) -> None:
    assert not {name for name in loaded_by(code) if name.split(".")[0] in ("cryptography", "hashlib", "ssl", "_ssl")}


def test_the_first_key_brings_it() -> None:
    assert "cryptography.hazmat.primitives.asymmetric.rsa" in loaded_by("import srup; srup.PublicKey")


@pytest.mark.parametrize("order", ["import srup.seal, srup", "import srup, srup.seal", "import srup; srup.Device"])
def test_the_function_is_not_hidden_by_the_module_of_its_name(order: str) -> None:
    """``srup.seal`` is the function, whoever imports the module first."""
    program = f"{order}; import srup; print(srup.seal.__name__, srup.unseal.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "seal unseal\n"
