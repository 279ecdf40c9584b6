#!/bin/sh
# Install clients, each with what it needs into an environment of its own, .clients/NAME, at the versions and hashes that
# envs/NAME locks. Without arguments those that `make test` runs, with `all` every one, else those named.
# Quick when all is there already.
set -eu
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
python=${PYTHON:-$root/.venv/bin/python}

want() { # command, Debian package
    command -v "$1" >/dev/null && return
    echo "Installing $2 ..."
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq "$2" >/dev/null
}

add() { # name of a client
    home=$root/.clients/$1
    lock=envs/$1/requirements.txt
    [ -f "$lock" ] || lock=envs/$1/package-lock.json
    if [ ! -f "$lock" ]; then
        echo "there is no client $1; there are:" $(ls envs) >&2
        exit 1
    fi
    cmp -s "$lock" "$home/.installed" && return
    echo "Installing $1 ..."
    rm -rf "$home"
    case $lock in
    *.txt)
        "$python" -m venv --without-pip "$home"
        "$python" -m pip --python "$home/bin/python" install --quiet --disable-pip-version-check --no-compile \
            --require-hashes --only-binary :all: -r "$lock"
        ;;
    *.json)
        mkdir -p "$home"
        cp "envs/$1/package.json" "$lock" "envs/$1/.npmrc" "$home"
        (cd "$home" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
        ;;
    esac
    cp "$lock" "$home/.installed"
}

want curl curl
want node nodejs
want npm npm
case ${1-} in
'') names="anthropic-1 typescript-sdk claude-code pydantic-ai vercel-ai openai-python" ;;
all) names=$(ls envs) ;;
*) names=$* ;;
esac
for name in $names; do
    add "$name"
done
