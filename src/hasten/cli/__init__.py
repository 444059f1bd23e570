"""Provide the command line: parse options, call the library, print; no logic."""

from hasten.cli.commands import main
from hasten.cli.completion import completion
from hasten.cli.init import init
from hasten.cli.inspecting import inspect
from hasten.cli.label import label
from hasten.cli.lighten import lighten
from hasten.cli.loadtest import loadtest
from hasten.cli.monitor import monitor
from hasten.cli.opening import open_report
from hasten.cli.packing import pack, unpack
from hasten.cli.plan import plan
from hasten.cli.serve import serve
from hasten.cli.shortlist import shortlist
from hasten.cli.signing import keygen, sign
from hasten.cli.watch import watch

main.add_command(inspect)
main.add_command(shortlist)
main.add_command(lighten)
main.add_command(serve)
main.add_command(loadtest)
main.add_command(watch)
main.add_command(label)
main.add_command(plan)
main.add_command(monitor)
main.add_command(pack)
main.add_command(unpack)
main.add_command(sign)
main.add_command(keygen)
main.add_command(init)
main.add_command(open_report)
main.add_command(completion)

__all__ = ["main"]
