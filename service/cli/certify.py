"""`winnow certify`: what is proved of a policy, over REST, and evidence checked offline."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from service.cli.client import ServiceUrl, base, call, send
from service.cli.common import bars, console, faults

POLL_S = 1.0


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
CertificateId = Annotated[str, typer.Argument(help="The certificate's id: cert_…")]


@app.command()
def start(
    policy: Annotated[str, typer.Argument(help="The policy, as it is in force now.")],
    epsilon: Annotated[float, typer.Option(help="The malign rate to stay below.")],
    delta: Annotated[float, typer.Option(help="How likely it may be wrong, over all attempts.")],
    allowed: Annotated[int, typer.Option(min=0, help="Malign images that may be among them.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="The number of steps; the policy's first.")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="What to draw images of: JSON, a list as `POST /v1/datasets` takes it. "
            "Without it, what the policy draws when nothing is asked."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the last label.")] = False,
    url: ServiceUrl = None,
) -> None:
    """Begin to certify: fix the terms, draw the images, and tell where to label them."""
    with faults():
        body: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "allowed": allowed}
        body |= {} if inputs is None else {"inputs": _inputs(inputs)}
        body |= {} if steps is None else {"num_inference_steps": steps}
        found = call("POST", f"/v1/policies/{quote(policy, safe='')}/certify", body, url)
        out = Console(highlight=False)
        fixed = found["terms"]
        out.print(
            f"{found['id']}: attempt {fixed['attempt']} for policy {policy}, which spends "
            f"{fixed['delta_attempt']:g} of delta {delta:g}. {fixed['n']} images"
            f"{found['inputs'] and ' ' + found['inputs']}, of which {fixed['allowed']} may be "
            "malign or unsure.",
            soft_wrap=True,
        )
        found = _follow(url, found, "drawn", ("drawing",))
        if found["status"] == "abandoned":
            raise ValueError(f"abandoned: {found['result']['reason']}")
        out.print(f"Label them at {base(url)}{found['page']}", soft_wrap=True)
        if wait:
            found = _follow(url, found, "labelled", ("drawing", "labelling"))
            _show(found)
            if found["status"] != "passed":
                raise typer.Exit(1)


@app.command()
def show(certificate_id: CertificateId, url: ServiceUrl = None) -> None:
    """Show a certificate: terms, progress, result, what it covers and what not."""
    with faults():
        _show(call("GET", f"/v1/certificates/{certificate_id}", url=url))


@app.command("list")
def listed(url: ServiceUrl = None) -> None:
    """List every attempt, the newest first."""
    with faults():
        found = call("GET", "/v1/certificates", url=url)["data"]
    table = Table("created", "id", "policy", "attempt", "n", "status", "bound", box=None)
    for one in found:
        bound = (one["result"] or {}).get("bound")
        names = (one["created"][:19], one["id"], one["policy"], str(one["terms"]["attempt"]))
        shown = "" if bound is None else f"{bound:.3%}"
        table.add_row(*names, str(one["terms"]["n"]), one["status"], shown)
    Console(highlight=False, width=max(140, Console().width)).print(table)


@app.command()
def abandon(
    certificate_id: CertificateId,
    reason: Annotated[str, typer.Option(help="Why; it stays on record.")],
    url: ServiceUrl = None,
) -> None:
    """End an attempt without a result; it stays on record and counts."""
    with faults():
        path = f"/v1/certificates/{quote(certificate_id, safe='')}/abandon"
        found = call("POST", path, {"reason": reason}, url)
    typer.echo(f"{certificate_id}: {found['status']}, and kept as attempt {_attempt(found)}")


@app.command()
def export(
    certificate_id: CertificateId,
    file: Annotated[Path, typer.Argument(help="Where to write the evidence: FILE.zip")],
    url: ServiceUrl = None,
) -> None:
    """Write the signed evidence of a finished certificate to a file."""
    with faults():
        file.write_bytes(send("GET", f"/v1/certificates/{certificate_id}/evidence", url=url))
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


def _inputs(file: Path) -> Any:
    """What the file holds; the service says what is wrong inside. Raises ValueError."""
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{file}: is no JSON") from None


def _attempt(found: dict[str, Any]) -> str:
    return f"{found['terms']['attempt']} of policy {found['policy']}"


def _follow(
    url: str | None, found: dict[str, Any], what: str, while_in: tuple[str, ...]
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
            found = call("GET", f"/v1/certificates/{found['id']}", url=url)


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
        *([("images", found["inputs"])] if found.get("inputs") else []),
        ("progress", ", ".join(f"{count} {what}" for what, count in progress.items())),
        ("result", _result(result)),
        ("fingerprint", found["fingerprint"]),
        *((f"covers {name}", _text(value)) for name, value in found["covered"].items()),
        *(("not covered", sentence) for sentence in found["not_covered"]),
    ]
    if found["status"] == "passed":
        rows.insert(2, ("statement", found["statement"]))
    if found.get("public_key"):
        rows.append(("signed by", found["public_key"]))
    for name, value in rows:
        table.add_row(name, value)
    Console(highlight=False).print(table)


def _result(result: dict[str, Any]) -> str:
    if "reason" in result:
        return f"none: {result['reason']}"
    return ", ".join(f"{name} {value}" for name, value in result.items()) or "none yet"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_short(value))


def _short(value: Any) -> Any:
    """Fractions with the four digits that people read; the evidence keeps them all."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [_short(one) for one in value]
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    return value
