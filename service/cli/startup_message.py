"""The message of `winnow serve` once it serves: a command to paste, and addresses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from service.cli.client import DEFAULT_URL
from service.config import Settings


def print_startup_message(
    console: Console,
    url: str,
    seconds: float,
    settings: Settings,
    admin_key: str | None,
    folder: Path,
) -> None:
    """Print it. `admin_key` was made for this run; it is printed to a terminal alone."""
    key = "" if settings.auth.anonymous else '-H "Authorization: Bearer $YOUR_KEY" '
    body = json.dumps({"prompt": "", "seed": 7})
    decode = (
        "import base64, json, sys; "
        'image = json.load(sys.stdin)["data"][0]["b64_json"]; '
        'open("image.png", "wb").write(base64.b64decode(image))'
    )
    console.print(f"\n[bold green]Winnow is ready[/] at [bold]{url}[/] after {seconds:.0f} s\n")
    default = settings.default_policy
    if settings.policies[default].trained:
        console.print(
            f"`{default}` delivers nothing until a reward is promoted for it: label at "
            f"{url}/feedback, train one, promote it. Then",
            markup=False,
            soft_wrap=True,
        )
    console.print("Paste this for a censored image in image.png:\n", markup=False)
    line = (
        f"curl -s {url}/v1/images/generations -H 'Content-Type: application/json' "
        f"{key}-d '{body}' \\\n  | python3 -c '{decode}'\n"
    )
    console.print(line, markup=False, soft_wrap=True)
    if settings.feedback.enabled:
        console.print(f"Label    {url}/feedback")
    console.print(f"Docs     {url}/docs")
    if url != DEFAULT_URL:
        console.print(f"CLI      export WINNOW_URL={url}")
    if settings.ingress_metrics:
        console.print(f"Metrics  {url}/metrics")
    console.print(f"Logs     {folder}", soft_wrap=True)
    if admin_key and sys.stdout.isatty():
        console.print(f"Admin key (this run only)  {admin_key}", markup=False)
    elif admin_key:
        console.print(
            "Admin key  made for this run, shown on a terminal only; or set WINNOW_ADMIN_KEY"
        )
    console.print("\nCtrl-C stops it.\n")
