"""What people and programs see: tables and lines for people, one JSON document for programs, errors on stderr."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

# Wide enough for a decision id beside a method name where no terminal says how wide it is.
_WIDTH_WITHOUT_TERMINAL = 200
_WIDTH_OF_PANELS = 100
# Control and format characters, and ends of lines (Unicode 16: Cc, Cf, Zl, Zp), that JSON may leave as they are.
_STEERING = re.compile(
    "[\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001-\U000e007f]"
)


def printable(text: str) -> str:
    """Return `text` without control characters, so that nothing from the network can steer a terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf"))


def one_line(text: str) -> str:
    """Return `printable` text without line ends, so that no value can pose as a line of ours."""
    return " ".join(printable(text).split())


def as_dict(message: Message) -> dict[str, Any]:
    """Return `message` as proto3 JSON with the contract's field names, unset scalars and lists included."""
    document: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return document


def moment(time: Timestamp) -> str:
    """Return a time in UTC to the second; empty when it is unset."""
    if not time.seconds:
        return ""
    return time.ToDatetime(dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def name_of(enum: Any, value: int, prefix: str) -> str:
    """Return an enum value's name in lower case without its prefix; the number of one this build does not know."""
    try:
        return str(enum.Name(value)).removeprefix(prefix).lower()
    except ValueError:
        return str(value)


class Output:
    """Where a command writes. With `as_json`, standard output holds JSON and nothing else."""

    def __init__(self, *, as_json: bool) -> None:
        """Write to the streams of this process as they are now."""
        self.as_json = as_json
        self.people = _console(stderr=False)
        self.aside = _console(stderr=True)

    def emit(self, document: Message | Mapping[str, Any]) -> bool:
        """In JSON mode write `document` as one line and return True; otherwise do nothing and return False."""
        if not self.as_json:
            return False
        data = as_dict(document) if isinstance(document, Message) else document
        text = json.dumps(data, ensure_ascii=False)
        sys.stdout.write(_STEERING.sub(lambda found: json.dumps(found[0])[1:-1], text) + "\n")
        sys.stdout.flush()
        return True

    def line(self, text: str, *, style: str = "") -> None:
        """Tell people something; silent in JSON mode."""
        if not self.as_json:
            self.people.print(Text(printable(text), style=style), soft_wrap=True)

    def note(self, text: str, *, style: str = "dim") -> None:
        """Say something beside the result, on standard error."""
        self.aside.print(Text(printable(text), style=style), soft_wrap=True)

    def table(self, *columns: str, rows: Iterable[Sequence[str]], empty: str) -> None:
        """Show rows under their columns, or say `empty`."""
        if self.as_json:
            return
        table = Table(*columns, header_style="bold", box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(one_line(cell) for cell in row))
        if table.row_count:
            self.people.print(table)
        else:
            self.line(empty)

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Show names and values; empty values are left out."""
        if self.as_json:
            return
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in pairs:
            if value:
                grid.add_row(one_line(name), printable(value))
        self.people.print(grid)

    def failure(self, title: str, lines: Sequence[str], document: Mapping[str, Any]) -> None:
        """Show one panel on standard error; in JSON mode also `{"error": document}` on standard output."""
        body = Text(printable("\n".join(lines)), overflow="fold")
        width = min(self.aside.width, _WIDTH_OF_PANELS)
        self.aside.print(Panel(body, title=Text(printable(title)), title_align="left", border_style="red"), width=width)
        self.emit({"error": dict(document)})


def _console(*, stderr: bool) -> Console:
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr, markup=False, emoji=False, highlight=False, width=None if terminal else _WIDTH_WITHOUT_TERMINAL
    )
