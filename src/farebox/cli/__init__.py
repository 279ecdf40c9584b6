"""The command line: every command of `farebox`, what goes wrong in one clear line, and the exit codes."""

import os
import sys
from collections.abc import Sequence

import click

from farebox.cli.account import account
from farebox.cli.backup import backup
from farebox.cli.bills import bills
from farebox.cli.books import audit, ledger, usage
from farebox.cli.common import Invocation, common_options, fail, write_examples
from farebox.cli.demo import demo
from farebox.cli.doctor import doctor
from farebox.cli.invite import invite
from farebox.cli.key import key
from farebox.cli.migrate import migrate
from farebox.cli.outbox import outbox
from farebox.cli.payments import payments
from farebox.cli.receipt import receipt
from farebox.cli.retention import books
from farebox.cli.serve import serve, simulate
from farebox.cli.settings import config, version
from farebox.cli.upstream import upstream
from farebox.errors import FareboxError

_SECTIONS = {
    "Serve": (demo, serve, simulate),
    "Customers": (account, invite, key, outbox),
    "Books": (usage, ledger, audit, books, receipt),
    "Operate": (doctor, upstream, bills, payments, backup, migrate, config, version),
}
_EXAMPLES = (
    "farebox demo                             # a gateway to try, with a customer and a key",
    "farebox config example > farebox.toml",
    "farebox doctor && farebox serve          # the real thing",
)


class _Sectioned(click.Group):
    """A group whose help lists commands under headings, in the order one needs them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for heading, commands in _SECTIONS.items():
            with formatter.section(heading):
                limit = formatter.width - 6 - max(len(name) for name in self.commands)
                formatter.write_dl([(str(c.name), c.get_short_help_str(limit)) for c in commands])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        write_examples(formatter, _EXAMPLES)


@click.group(cls=_Sectioned, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="farebox", message="farebox %(version)s")
@common_options
def cli() -> None:
    """Farebox: a prepaid, metered gateway for the Anthropic Messages API.

    Settings come from --config, else $FAREBOX_CONFIG, else ./farebox.toml, with FAREBOX_* variables over
    them. Commands about customers and books work while the server runs, which sees the change at once, and
    while it does not.
    """


for commands in _SECTIONS.values():
    for command in commands:
        cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 when it did what was asked, 1 when it could not, 2 when it made no sense."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    invocation = Invocation(as_json="--json" in words)
    try:
        result = cli.main(args=words, prog_name="farebox", standalone_mode=False, obj=invocation)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        hint = f" (`{error.ctx.command_path} --help` tells more)" if error.ctx else ""
        fail(invocation, error.format_message().rstrip(".") + hint)
        sys.exit(2)
    except click.ClickException as error:
        fail(invocation, error.format_message())
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        fail(invocation, "stopped")
        sys.exit(130)
    except FareboxError as error:
        fail(invocation, str(error))
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has had enough; nothing to tell
        sys.exit(1)
    except OSError as error:
        fail(invocation, f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)
