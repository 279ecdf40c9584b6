#!/bin/sh
# Install Debian's PostgreSQL server, strace and libfaketime for the tests, where they are missing. They start a PostgreSQL
# of their own: the server that the package would make and start on port 5432 is not made. Does nothing, and says nothing,
# when all is there.
set -eu

sudo=$([ "$(id -u)" = 0 ] || echo sudo)
install() {
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if ! command -v strace >/dev/null || ! command -v faketime >/dev/null; then
    echo "Installing strace and faketime ..."
    $sudo apt-get update -qq
    install strace faketime
fi

ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && exit
command -v initdb >/dev/null && exit

echo "Installing postgresql ..."
$sudo apt-get update -qq
install postgresql-common # brings the file that includes the one below
settings=/etc/postgresql-common/createcluster.d
trap '$sudo rm -f "$settings/farebox-tests.conf"; $sudo rmdir --ignore-fail-on-non-empty "$settings"' EXIT
$sudo mkdir -p "$settings"
echo "create_main_cluster = false" | $sudo tee "$settings/farebox-tests.conf" >/dev/null
install postgresql
