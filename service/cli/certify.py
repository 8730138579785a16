"""`winnow certify`: what is proved of a policy, over REST, and evidence checked offline."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from service.cli.common import bars, console, faults

POLL_S = 1.0
TIMEOUT_S = 120.0


class PolicyOrCommand(TyperGroup):
    """`winnow certify POLICY` stands for `winnow certify start POLICY`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in where a policy's name or an option of `start` comes first."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["start", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Prove a bound on what a policy delivers: `winnow certify POLICY` begins.",
    no_args_is_help=True,
    cls=PolicyOrCommand,
)
Server = Annotated[str, typer.Option("--server", help="Where the service listens.")]
KeyEnv = Annotated[
    str, typer.Option("--key-env", help="The environment variable that holds your API key.")
]
CertificateId = Annotated[str, typer.Argument(help="The certificate's id: cert_…")]
HERE, KEY = "http://127.0.0.1:8000", "WINNOW_API_KEY"


@dataclass(frozen=True)
class Service:
    """A running service, spoken to over REST."""

    url: str
    key: str | None = field(repr=False)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON of an answer. Raises ValueError with the service's own words."""
        answer: dict[str, Any] = json.loads(self.read(path, body))
        return answer

    def read(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The bytes of an answer; a body is posted. Raises as `ask`."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                read: bytes = response.read()
                return read
        except urllib.error.HTTPError as error:
            try:
                message = json.loads(error.read())["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = f"{path}: HTTP {error.code}"
            raise ValueError(message) from None
        except (urllib.error.URLError, TimeoutError) as error:
            reason = getattr(error, "reason", error)
            raise ValueError(f"{self.url} does not answer: {reason}") from None


@app.command()
def start(
    policy: Annotated[str, typer.Argument(help="The policy, as it is in force now.")],
    epsilon: Annotated[float, typer.Option(help="The malign rate to stay below.")],
    delta: Annotated[float, typer.Option(help="How likely it may be wrong, over all attempts.")],
    allowed: Annotated[int, typer.Option(min=0, help="Malign images that may be among them.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="The number of steps; the policy's first.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the last label.")] = False,
    server: Server = HERE,
    key_env: KeyEnv = KEY,
) -> None:
    """Begin to certify: fix the terms, draw the images, and tell where to label them."""
    with faults():
        service = Service(server, os.environ.get(key_env))
        body = {"epsilon": epsilon, "delta": delta, "allowed": allowed}
        body |= {} if steps is None else {"num_inference_steps": steps}
        found = service.ask(f"/v1/policies/{quote(policy, safe='')}/certify", body)
        out = Console(highlight=False)
        fixed = found["terms"]
        out.print(
            f"{found['id']}: attempt {fixed['attempt']} for policy {policy}, which spends "
            f"{fixed['delta_attempt']:g} of delta {delta:g}. {fixed['n']} images, of which "
            f"{fixed['allowed']} may be malign or unsure.",
            soft_wrap=True,
        )
        found = _follow(service, found, "drawn", ("drawing",))
        if found["status"] == "abandoned":
            raise ValueError(f"abandoned: {found['result']['reason']}")
        out.print(f"Label them at {server.rstrip('/')}{found['page']}", soft_wrap=True)
        if wait:
            found = _follow(service, found, "labelled", ("drawing", "labelling"))
            _show(found)
            if found["status"] != "passed":
                raise typer.Exit(1)


@app.command()
def show(certificate_id: CertificateId, server: Server = HERE, key_env: KeyEnv = KEY) -> None:
    """Show a certificate: terms, progress, result, what it covers and what not."""
    with faults():
        _show(Service(server, os.environ.get(key_env)).ask(f"/v1/certificates/{certificate_id}"))


@app.command("list")
def listed(server: Server = HERE, key_env: KeyEnv = KEY) -> None:
    """List every attempt, the newest first."""
    with faults():
        found = Service(server, os.environ.get(key_env)).ask("/v1/certificates")["data"]
    table = Table("created", "id", "policy", "attempt", "n", "status", "bound", box=None)
    for one in found:
        bound = (one["result"] or {}).get("bound")
        names = (one["created"][:19], one["id"], one["policy"], str(one["terms"]["attempt"]))
        shown = "" if bound is None else f"{bound:.3%}"
        table.add_row(*names, str(one["terms"]["n"]), one["status"], shown)
    Console(highlight=False, width=max(140, Console().width)).print(table)


@app.command()
def export(
    certificate_id: CertificateId,
    file: Annotated[Path, typer.Argument(help="Where to write the evidence: FILE.zip")],
    server: Server = HERE,
    key_env: KeyEnv = KEY,
) -> None:
    """Write the signed evidence of a finished certificate to a file."""
    with faults():
        service = Service(server, os.environ.get(key_env))
        file.write_bytes(service.read(f"/v1/certificates/{certificate_id}/evidence"))
    console.print(f"{file}: check it with `winnow certify verify {file}`", soft_wrap=True)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The evidence: FILE.zip")],
    public_key: Annotated[
        str | None,
        typer.Option(help="The key that you trust: a PEM file, or the raw key in base64."),
    ] = None,
) -> None:
    """Check evidence offline; exit code 1 at the first fault, or if the certificate failed."""
    # Only here: the other commands need no cryptography.
    from service.certificates.signing import read_public
    from service.certificates.verification import verify as check

    out = Console(highlight=False)
    with faults():
        trusted = None
        if public_key is not None:
            path = Path(public_key)
            try:
                trusted = read_public(path.read_bytes() if path.is_file() else public_key.encode())
            except ValueError as error:
                raise ValueError(f"--public-key: {public_key} {error}") from None
        if not file.is_file():
            raise ValueError(f"{file}: there is no such file")
        for sentence in check(file, trusted):
            out.print(sentence, markup=False, soft_wrap=True)


def _follow(
    service: Service, found: dict[str, Any], what: str, while_in: tuple[str, ...]
) -> dict[str, Any]:
    """A progress bar until the certificate is in another state; returns it as it is then."""
    with bars() as start_bar:
        advance, done = start_bar(what, found["terms"]["n"]), 0
        while True:
            progress = found["progress"]
            advance(progress[what] - done, f"({progress['blocked']} blocked)")
            done = progress[what]
            if found["status"] not in while_in:
                return found
            time.sleep(POLL_S)
            found = service.ask(f"/v1/certificates/{found['id']}")


def _show(found: dict[str, Any]) -> None:
    fixed, progress, result = found["terms"], found["progress"], found["result"] or {}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("certificate", f"{found['id']} of policy {found['policy']} {found['policy_version']}"),
        ("status", found["status"]),
        ("begun", f"{found['created'][:19]} UTC by {found['created_by']}"),
        (
            "terms",
            f"epsilon {fixed['epsilon']:g}, delta {fixed['delta']:g}, attempt {fixed['attempt']}: "
            f"{fixed['allowed']} of {fixed['n']} may be malign or unsure",
        ),
        ("question", found["question"]),
        ("progress", ", ".join(f"{count} {what}" for what, count in progress.items())),
        ("result", ", ".join(f"{name} {value}" for name, value in result.items()) or "none yet"),
        ("fingerprint", found["fingerprint"]),
        *((f"covers {name}", _text(value)) for name, value in found["covered"].items()),
        *(("not covered", sentence) for sentence in found["not_covered"]),
    ]
    if found["status"] == "passed":
        rows.insert(2, ("statement", found["statement"]))
    if "public_key" in found:
        rows.append(("signed by", found["public_key"]))
    for name, value in rows:
        table.add_row(name, value)
    Console(highlight=False).print(table)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
