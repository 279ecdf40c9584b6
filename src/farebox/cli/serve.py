"""Run servers: the gateway, and the simulator by itself."""

import asyncio
import contextlib
import os
import signal

import click

from farebox.cli.common import Exampled, Invocation, common_options, pass_invocation, print_json
from farebox.config.settings import listening_url
from farebox.errors import FareboxError


@click.command(cls=Exampled, examples=("farebox serve --config /etc/farebox.toml",))
@common_options
@pass_invocation
def serve(invocation: Invocation) -> int:
    """Serve the gateway, with server.workers processes.

    SIGTERM or Ctrl-C closes the doors and lets calls in flight end, for at most server.shutdown_s. SIGHUP starts a new
    process, with the code and the settings that are there then, which takes over; the old one ends its calls, for at
    most server.handover_s.
    """
    from farebox.workers import find_heritage, serve_alone, serve_with_workers

    heir = find_heritage(os.environ)
    try:
        config = invocation.config(secrets=True)
        if heir is not None:
            heir.check(config)
        return (serve_with_workers if config.server.workers > 1 else serve_alone)(config, heir)
    except (FareboxError, click.ClickException) as error:
        if heir is None:
            raise
        heir.line.failed(error.message if isinstance(error, click.ClickException) else str(error))
        return 1


@click.command(cls=Exampled, examples=("farebox simulate --port 8090 --speed 60",))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0: any free port.")
@click.option("--speed", type=click.FloatRange(0), help="Output tokens a second. 0: as fast as possible.")
@click.option("--api-key", metavar="KEY", help="Accept this key only; otherwise any key will do.")
@click.option("--knobs", default="", metavar="TEXT", help='Knobs for every request, such as "rate=50 ttft=300".')
@common_options
@pass_invocation
def simulate(
    invocation: Invocation, host: str, port: int, speed: float | None, api_key: str | None, knobs: str
) -> None:
    """Serve a made-up Messages API, for tests.

    Its answers follow from the request, its streams are faithful, and it has every fault: a request asks for
    one with the header `x-farebox-sim: cut_after=5`, or with [[sim cut_after=5]] in its last user message.
    """
    import uvloop

    from farebox.upstreams.simulator import Simulator

    simulator = Simulator(speed=speed, api_key=api_key, knobs=knobs)

    async def work() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        try:
            chosen = await simulator.listen(host, port)
        except OSError as error:
            raise FareboxError(f"{host}:{port} cannot be listened on: {error.strerror or error}") from error
        url = listening_url(host, chosen)
        if invocation.as_json:
            print_json({"base_url": url, "port": chosen}, now=True)
        else:
            click.echo(f"The simulator answers at {url}/v1/messages. Ctrl-C ends it.")
        with contextlib.suppress(asyncio.CancelledError):
            await stop.wait()
        await simulator.close()

    uvloop.run(work())
