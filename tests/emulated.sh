#!/bin/bash
# The codec's, the keys' and the vectors' tests on another machine, under emulation: tests/emulated.sh FOLDER ARCHITECTURE
#
# Debian (SUITE, forky unless set) is unpacked into FOLDER/ARCHITECTURE, its programs run by qemu-user; srup is compiled
# there by Debian's own compiler. Nothing is installed in it by its own scripts, which would take an hour under emulation.
# Needs root, and the Debian packages debootstrap and qemu-user-static. CYTHON is a Python that has Cython.
set -euo pipefail
root=$(realpath -m "$1")/$2
architecture=$2
suite=${SUITE:-forky}
source=$(realpath "$(dirname "$0")/..")
packages=python3,python3-cffi-backend,python3-cryptography,python3-pytest,python3-pytest-timeout,python3-hypothesis,gcc,libc6-dev,libpython3-dev,libssl-dev
case $architecture in
arm64) qemu=aarch64 ;;
armhf) qemu=arm ;;
s390x) qemu=s390x ;;
*) echo "$0: arm64, armhf or s390x, not $architecture" >&2 && exit 2 ;;
esac
for program in debootstrap dpkg-deb qemu-$qemu-static; do
  command -v $program >/dev/null || { echo "$0: $program is missing: apt-get install debootstrap qemu-user-static" >&2; exit 2; }
done

if [ "$(dpkg --print-architecture)" != "$architecture" ] && [ ! -e /proc/sys/fs/binfmt_misc/qemu-$qemu ]; then
  [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  cat /usr/lib/binfmt.d/qemu-$qemu.conf >/proc/sys/fs/binfmt_misc/register
fi

if [ ! -e "$root/unpacked" ]; then
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/\?$')
  rm -rf "$root"
  # Debian's later suites need no script of their own.
  debootstrap --foreign --arch="$architecture" --variant=minbase --include=$packages "$suite" "$root" "$mirror" sid
  for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb --extract "$package" "$root"; done
  touch "$root/unpacked"
fi

rm -rf "$root/srup"
mkdir -p "$root/srup"
cp -r "$source/src" "$source/tests" "$source/pyproject.toml" "$root/srup/"
native=$root/srup/src/srup_native
for name in _codec _cut _verify; do
  (cd "$root/srup/src" && "${CYTHON:-python3}" -m cython -3 srup_native/$name.pyx)
done
printf 'import srup_native.%s as %s\n' _codec _codec _cut _cut _verify _verify >"$native/_built.py"

cat >"$root/srup/inside.sh" <<'INSIDE'
set -eu
export PATH=/usr/bin:/bin PYTHONPATH=/srup/src PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
cd /srup/src/srup_native
include=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')
suffix=$(python3 -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
gcc -O0 -fPIC -shared -DOPENSSL_NO_DEPRECATED -I"$include" _codec.c -o "_codec$suffix"
gcc -O0 -fPIC -shared -I"$include" _cut.c -o "_cut$suffix"
gcc -O0 -fPIC -shared -DOPENSSL_NO_DEPRECATED -I"$include" -I. _verify.c rsa_mb.c crypto_mb.c -o "_verify$suffix" -lcrypto -ldl
cd /srup
for backend in native python; do
  export SRUP_BACKEND=$backend
  python3 -c 'import platform, sys, srup; print(platform.machine(), sys.byteorder, sys.version.split()[0], srup.backend_info())'
  SRUP_REQUIRE_NATIVE=1 python3 -m pytest -q -p no:cacheprovider -o addopts=--import-mode=importlib --timeout=1800 \
    -m "not process and not slow" $TESTS
done
INSIDE

# Their mounts end with them.
TESTS=${TESTS:-tests/test_codec.py tests/test_vectors.py tests/test_messages.py tests/test_keys.py tests/test_seal.py} \
  unshare --mount --fork sh -c "mount -t proc proc '$root/proc' && exec chroot '$root' /bin/sh /srup/inside.sh"
