"""`winnow certify`: certificates of a running service, and evidence checked offline."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from service.cli.client import ServiceUrl, base, call, path_of, send
from service.cli.common import bars, print_facts, print_table, say

POLL_S = 1.0


class PolicyOrCommand(TyperGroup):
    """`winnow certify POLICY` stands for `winnow certify start POLICY`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `start` where the first argument is no command."""
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
    body: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "allowed": allowed}
    body |= {} if inputs is None else {"inputs": _read_json(inputs)}
    body |= {} if steps is None else {"num_inference_steps": steps}
    found = call("POST", path_of("policies", policy, "certify"), body, url)
    out = Console(highlight=False)
    fixed = found["terms"]
    out.print(
        f"{found['id']}: attempt {fixed['attempt']} for policy {policy}, which spends "
        f"{fixed['delta_attempt']:g} of delta {delta:g}. {fixed['n']} images"
        f"{found['inputs'] and ' ' + found['inputs']}, of which {fixed['allowed']} may be "
        "malign or unsure.",
        soft_wrap=True,
    )
    found = _wait(url, found, "drawn", ("drawing",))
    if found["status"] == "abandoned":
        raise ValueError(f"abandoned: {found['result']['reason']}")
    out.print(f"Label them at {base(url)}{found['page']}", soft_wrap=True)
    if wait:
        found = _wait(url, found, "labelled", ("drawing", "labelling"))
        print_facts(_facts(found))
        if found["status"] != "passed":
            raise typer.Exit(1)


@app.command()
def show(certificate_id: CertificateId, url: ServiceUrl = None) -> None:
    """Show a certificate: terms, progress, result, what it covers and what not."""
    print_facts(_facts(call("GET", path_of("certificates", certificate_id), url=url)))


@app.command("list")
def list_(url: ServiceUrl = None) -> None:
    """List every attempt, the newest first."""
    rows = []
    for one in call("GET", "/v1/certificates", url=url)["data"]:
        if "unreadable" in one:
            attempt = n = bound = None
            status = f"{one['status']}, and cannot be read"
        else:
            attempt, n, status = one["terms"]["attempt"], one["terms"]["n"], one["status"]
            bound = (one["result"] or {}).get("bound")
        shown = None if bound is None else f"{bound:.3%}"
        rows.append((one["created"][:19], one["id"], one["policy"], attempt, n, status, shown))
    print_table(("created", "id", "policy", "attempt", "n", "status", "bound"), rows)


@app.command()
def abandon(
    certificate_id: CertificateId,
    reason: Annotated[str, typer.Option(help="Why; it stays on record.")],
    url: ServiceUrl = None,
) -> None:
    """End an attempt without a result; it stays on record and counts."""
    path = path_of("certificates", certificate_id, "abandon")
    found = call("POST", path, {"reason": reason}, url)
    attempt = f"{found['terms']['attempt']} of policy {found['policy']}"
    typer.echo(f"{certificate_id}: {found['status']}, and kept as attempt {attempt}")


@app.command()
def export(
    certificate_id: CertificateId,
    file: Annotated[Path, typer.Argument(help="Where to write the evidence: FILE.zip")],
    url: ServiceUrl = None,
) -> None:
    """Write the signed evidence of a finished certificate to a file."""
    file.write_bytes(send("GET", path_of("certificates", certificate_id, "evidence"), url=url))
    say(f"{file}: check it with `winnow certify verify {file}`")


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

    trusted = None
    if public_key is not None:
        path = Path(public_key)
        try:
            trusted = read_public(path.read_bytes() if path.is_file() else public_key.encode())
        except ValueError as error:
            raise ValueError(f"--public-key: {public_key} {error}") from None
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file")
    out = Console(highlight=False)
    for sentence in check(file, trusted):
        out.print(sentence, markup=False, soft_wrap=True)


def _read_json(file: Path) -> Any:
    """The content of a JSON file; the service checks it. Raises OSError or ValueError."""
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        raise ValueError(f"{file}: is no JSON") from None


def _wait(
    url: str | None, found: dict[str, Any], what: str, while_in: tuple[str, ...]
) -> dict[str, Any]:
    """Show progress until the certificate is in another state; returns it as it is then."""
    with bars() as start_bar:
        advance, done = start_bar(what, found["terms"]["n"]), 0
        while True:
            progress = found["progress"]
            advance(progress[what] - done, f"({progress['blocked']} blocked)")
            done = progress[what]
            if found["status"] not in while_in:
                return found
            time.sleep(POLL_S)
            found = call("GET", path_of("certificates", found["id"]), url=url)


def _facts(found: dict[str, Any]) -> Iterator[tuple[str, object]]:
    fixed, result = found["terms"], found["result"] or {}
    yield "certificate", f"{found['id']} of policy {found['policy']} {found['policy_version']}"
    yield "status", found["status"]
    yield "stage", found.get("stage")
    if found["status"] == "passed":
        yield "statement", found["statement"]
    yield "begun", f"{found['created'][:19]} UTC by {found['created_by']}"
    yield (
        "terms",
        f"epsilon {fixed['epsilon']:g}, delta {fixed['delta']:g}, attempt {fixed['attempt']}: "
        f"{fixed['allowed']} of {fixed['n']} may be malign or unsure",
    )
    yield "question", found["question"]
    yield "images", found.get("inputs")
    yield "progress", ", ".join(f"{count} {what}" for what, count in found["progress"].items())
    if "reason" in result:
        yield "result", f"none: {result['reason']}"
    else:
        figures = ", ".join(f"{name} {value}" for name, value in result.items())
        yield "result", figures or "none yet"
    yield "fingerprint", found["fingerprint"]
    for name, value in found["covered"].items():
        yield f"covers {name}", value if isinstance(value, str) else json.dumps(_rounded(value))
    for sentence in found["not_covered"]:
        yield "not covered", sentence
    yield "signed by", found.get("public_key")


def _rounded(value: Any) -> Any:
    """A copy with fractions of four digits, for people; the evidence keeps them all."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return value
