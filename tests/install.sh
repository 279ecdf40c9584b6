#!/bin/sh
# Install Debian's PostgreSQL server for the tests, where it is missing. They start one of their own: the server that the
# package would make and start on port 5432 is not made. Does nothing, and says nothing, when the programs are there.
set -eu

ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && exit
command -v initdb >/dev/null && exit

sudo=$([ "$(id -u)" = 0 ] || echo sudo)
install() {
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >/dev/null
}

echo "Installing postgresql ..."
$sudo apt-get update -qq
install postgresql-common # brings the file that includes the one below
settings=/etc/postgresql-common/createcluster.d
trap '$sudo rm -f "$settings/farebox-tests.conf"; $sudo rmdir --ignore-fail-on-non-empty "$settings"' EXIT
$sudo mkdir -p "$settings"
echo "create_main_cluster = false" | $sudo tee "$settings/farebox-tests.conf" >/dev/null
install postgresql
