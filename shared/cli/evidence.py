"""`bastide audit receipt`: fetching the proof of a call, and checking one offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format

from bastide.audit.v1 import audit_pb2
from shared.cli import receipt as receipts
from shared.cli.connection import AUDIT, Session
from shared.cli.failures import USAGE, Failure
from shared.cli.logs import read_key
from shared.statements import TrustRoot

_PROVES = """It proves: the log's key signed a tree that holds exactly this entry at this place; nobody can have changed
or removed it since without breaking that signature or showing two different trees."""
_PROVES_NOT = """It does not prove: that what the writer stated is true, who the pseudonym is, that the answer was
delivered, or that others see the same tree (compare the root with a checkpoint you got elsewhere)."""
_UNSIGNED = "The guard's own signatures in the entry were not checked; give --trust FILE to do so."
_NOTHING_SIGNED = "The entry embeds nothing that the guard signed: what it says is its writer's word."
_UNCHECKED = "Prompt and answer were not compared; give --prompt FILE and --answer FILE to do so."


def register(audit: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Receipts: proof that a call was recorded.")
    group.command("get", epilog="Example: bastide audit receipt get --decision ID --out receipt.json")(get)
    group.command("verify", epilog="Example: bastide audit receipt verify receipt.json --key log.vkey")(verify)
    audit.add_typer(group, name="receipt")


def get(
    context: typer.Context,
    decision: Annotated[str, typer.Option(metavar="ID", help="Decision id, as errors and receipts name it.")] = "",
    call: Annotated[str, typer.Option(metavar="ID", help="Call id.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the receipt to this file.")] = None,
) -> None:
    """Fetch the receipt of a call. Salts are not kept by the log: only the receipt sent with the answer has them."""
    session = Session.of(context)
    if bool(decision) == bool(call):
        raise Failure("give one of --decision and --call", exit_code=USAGE)
    request = (
        audit_pb2.GetReceiptRequest(decision_id=decision) if decision else audit_pb2.GetReceiptRequest(call_id=call)
    )
    receipt = session.ask(AUDIT, "GetReceipt", request).receipt
    text = json_format.MessageToJson(receipt, preserving_proto_field_name=True)
    if out is not None:
        out.write_text(text + "\n")
    if session.output.emit(receipt):
        return
    if out is None:
        session.output.line(text)
    else:
        session.output.line(f"{out}; check it: bastide audit receipt verify {out}")


def verify(  # noqa: PLR0917  (typer passes them by name)
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A receipt as `chat --receipt` and `receipt get` write it.")],
    key: Annotated[Path | None, typer.Option(help="The log's public key; default: the set-up's.")] = None,
    trust: Annotated[
        Path | None,
        typer.Option(help="The suite's trust root, to check the guard's word; default: the set-up's."),
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help='The prompt: JSON [{"role","content"}], or the text of one user message.')
    ] = None,
    answer: Annotated[Path | None, typer.Option(help="The answer's text.")] = None,
) -> None:
    """Check a receipt offline: the log's public key is enough; with a trust root the guard's word is checked too."""
    session = Session.of(context)
    found = receipts.verify(receipts.read(file), read_key(session, key))
    if trust is None and key is None and session.home.trust_root.exists():
        trust = session.home.trust_root
    signed = receipts.verify_decisions(found.leaf, TrustRoot.load(trust)) if trust is not None else []
    opened = []
    for name, path, candidates in (("prompt", prompt, receipts.prompts), ("completion", answer, receipts.answers)):
        if path is not None:
            found.opens(name, candidates(path.read_bytes()))
            opened.append(name)
    document = {
        "verified": True,
        "index": found.index,
        "leaf_hash": found.leaf_hash.hex(),
        "origin": found.checkpoint.origin,
        "tree_size": found.checkpoint.size,
        "root": found.checkpoint.root.hex(),
        "opened": opened,
        "guard_signed": signed,
        "leaf": found.leaf.document,
    }
    if session.output.emit(document):
        return
    output = session.output
    output.line(f"The receipt verifies: entry {found.index} of {found.checkpoint.origin}.", style="bold green")
    output.facts(
        [
            *found.leaf.facts(),
            ("leaf hash", found.leaf_hash.hex()),
            ("checkpoint", f"{found.checkpoint.size:,} entries, root {found.checkpoint.root.hex()}"),
            *((f"the guard's {name}", "is signed by the guard") for name in signed),
            *((f"{name} given", "is the one that was recorded") for name in opened),
        ]
    )
    unsigned = _NOTHING_SIGNED if trust is not None else _UNSIGNED
    unchecked = (*(() if signed else (unsigned,)), *(() if opened else (_UNCHECKED,)))
    output.line("\n".join(("", _PROVES, _PROVES_NOT, *unchecked)), style="dim")
