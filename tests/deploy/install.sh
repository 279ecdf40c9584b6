#!/bin/sh
# Install the load balancers that the tests here start, and what they look at the service unit with.
# Quick when all is there already. Nothing is started by the installation.
set -eu

want() { # command, Debian package
    command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}

missing=
want nginx nginx-light
want haproxy haproxy
want caddy caddy
want systemd-analyze systemd
want openssl openssl
want curl curl
want ssh-keygen openssh-client
[ -z "$missing" ] && exit

echo "Installing$missing ..."
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
policy=/usr/sbin/policy-rc.d # what Debian asks before it starts a service it has just installed
if ! [ -e "$policy" ]; then
    trap '$sudo rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod +x "$policy"
fi
$sudo apt-get update -qq
# shellcheck disable=SC2086  a list of words
$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
