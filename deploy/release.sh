#!/usr/bin/env bash
# Make what a release consists of, of what is committed: a wheel, the same whoever makes it, a bill of materials, the
# locked dependencies and their checksums; signed, where a key is given. `make release` calls it; docs/releasing.md tells
# how to check what it made.
#
#   release.sh BIN OUT [KEY]    BIN: directory of the environment's programs; OUT: where to; KEY: an SSH signing key
set -euo pipefail
bin=$(realpath "$1") out=$2 key=${3:+$(realpath "$3")}
cd "$(dirname "$0")/.."

# Nothing of this machine may go in: no time, no zone, no rights, no leftovers, no order of its directories.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C.UTF-8 PYTHONHASHSEED=0
umask 022
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
git archive HEAD | tar --extract --no-same-permissions --directory "$tree"

mkdir -p "$out"
out=$(realpath "$out")
rm -f "$out"/farebox-* "$out"/SHA256SUMS "$out"/SHA256SUMS.sig
"$bin/python" -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir "$out" "$tree"
wheel=$(basename "$out"/farebox-*.whl)
name=${wheel%%-py3-*}
cp "$tree/requirements.lock" "$out/$name.lock"
"$bin/cyclonedx-py" requirements "$tree/requirements.lock" --pyproject "$tree/pyproject.toml" \
    --output-reproducible --output-format JSON --output-file "$out/$name.cdx.json"
cd "$out"
sha256sum "$name"* >SHA256SUMS
[ -z "$key" ] || ssh-keygen -q -Y sign -n farebox-release -f "$key" SHA256SUMS
ls "$name"* SHA256SUMS*
