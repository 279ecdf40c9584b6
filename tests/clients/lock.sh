#!/bin/sh
# Lock clients anew, after a change of envs/NAME/requirements.in or package.json: versions and hashes, no addresses.
set -eu
cd "$(dirname "$0")/envs"
compile=${PIP_COMPILE:-../../../../.venv/bin/pip-compile}

for name in "$@"; do
    (
        cd "$name"
        if [ -f requirements.in ]; then
            "$compile" --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras --no-annotate --no-header \
                --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements.txt requirements.in
        else
            npm install --package-lock-only --ignore-scripts --no-audit --no-fund --loglevel=error
        fi
    )
done
