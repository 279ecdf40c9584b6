"""What the benchmark needs and builds: nginx, PostgreSQL and a C compiler from Debian, two C programs, the peers.

Everything but the Debian packages lies under `.peers/` and is built once; delete the folder to build anew.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE.parent / ".peers"

LITELLM = "1.109.1"
LITELLM_RELAXED = ("certifi>=2026.1", "litellm-proxy-extras>=0.4.100")
"""Pins of LiteLLM that are not, or not everywhere, on the index; any recent version does."""
LITELLM_EXTRAS = ("opentelemetry-sdk", "httptools")
"""Without the first it retries a failing import on each call, without the second it parses HTTP in Python."""
PORTKEY = "1.15.2"
PORTKEY_NODE_SERVER = "1.13.8"
"""With the newest @hono/node-server, Portkey answers 500 to every stream on Node 20."""


class CommandFailed(SystemExit):
    """A command of ours failed; the message has its output."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(argv: Sequence[str | Path], **env: str) -> str:
    """Run a command to its end and return its output; raise with the output when it fails."""
    done = subprocess.run(
        [str(a) for a in argv], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )
    if done.returncode:
        raise CommandFailed(f"bench: {' '.join(map(str, argv))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def debian_packages(*, postgres: bool) -> None:
    if postgres:
        run(["sh", HERE.parent / "tests" / "install.sh"])
    wanted = {"nginx": "nginx-light", "gcc": "gcc libc6-dev", "openssl": "openssl", "taskset": "util-linux"}
    missing = [package for tool, package in wanted.items() if not shutil.which(tool)]
    if not missing:
        return
    packages = " ".join(missing).split()
    if os.geteuid() != 0:
        raise SystemExit(f"bench: install what is missing first: sudo apt-get install {' '.join(packages)}")
    say(f"installing {' '.join(packages)}")
    quiet = {
        "DEBIAN_FRONTEND": "noninteractive",
        "RUNLEVEL": "1",
    }  # RUNLEVEL: do not start nginx as a service
    run(["apt-get", "update"], **quiet)
    run(["apt-get", "install", "-y", "--no-install-recommends", *packages], **quiet)


def program(name: str) -> Path:
    """Compile bench/NAME.c when it is newer than its binary."""
    source, binary = HERE / f"{name}.c", PEERS / "bin" / name
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        binary.parent.mkdir(parents=True, exist_ok=True)
        run(["gcc", "-O2", "-Wall", "-Wextra", "-o", binary, source])
    return binary


def certificate() -> tuple[Path, Path]:
    """Make a self-signed certificate for localhost and 127.0.0.1; return it and its key."""
    cert, key = PEERS / "tls" / "cert.pem", PEERS / "tls" / "key.pem"
    if not cert.exists():
        cert.parent.mkdir(parents=True, exist_ok=True)
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        subject = ["-subj", "/CN=localhost", "-addext", names, "-days", "3650"]
        run(["openssl", "req", "-x509", *curve, *subject, "-keyout", key, "-out", cert])
    return cert, key


def litellm() -> Path:
    """Install LiteLLM into an environment of its own; return its command."""
    home = PEERS / f"litellm-{LITELLM}"
    command = home / "bin" / "litellm"
    if not (home / "complete").exists():
        say(f"installing LiteLLM {LITELLM} (one minute)")
        venv.create(home, clear=True, with_pip=True)
        relaxed = home / "relaxed.txt"
        relaxed.write_text("\n".join(LITELLM_RELAXED) + "\n")
        run([home / "bin" / "pip", "install", "-q", "uv"])
        install = f"pip install -q --only-binary :all: --override {relaxed} litellm[proxy]=={LITELLM}"
        run([home / "bin" / "uv", *install.split(), *LITELLM_EXTRAS], VIRTUAL_ENV=str(home))
        (home / "complete").touch()
    return command


def portkey() -> Path:
    """Install Portkey's gateway into a folder of its own; return its start script."""
    home = PEERS / f"portkey-{PORTKEY}"
    script = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not script.exists():
        say(f"installing Portkey {PORTKEY}")
        home.mkdir(parents=True, exist_ok=True)
        manifest = {
            "private": True,
            "dependencies": {"@portkey-ai/gateway": PORTKEY},
            "overrides": {"@hono/node-server": PORTKEY_NODE_SERVER},
        }
        (home / "package.json").write_text(json.dumps(manifest))
        run(["npm", "install", "--prefix", home, "--no-audit", "--no-fund", "--ignore-scripts"])
    return script
