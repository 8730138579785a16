"""`winnow certify`: over a real server, and evidence that somebody has tampered with."""

from __future__ import annotations

import base64
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner, Result

from models.bundles.bundle import Bundle
from models.bundles.sampling_key import canonical
from service.cli.main import app
from tests.service.api.asking import TEXT, serve_asked
from tests.service.api.conftest import client
from tests.service.api.server import KEYS, Served, serve
from tests.service.api.test_certificates import begin, certify, drawn, page, say

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        with serve(bundle) as running:
            yield running


@pytest.fixture(scope="module")
def evidence(served: Served, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A passed certificate's evidence, and the service's public key."""
    with client(served, "APPROVE_KEY") as reviewer, client(served, "LABEL_KEY") as labeller:
        ended = certify(reviewer, labeller)
        here = f"/v1/certificates/{ended['id']}"
        file = tmp_path_factory.mktemp("evidence") / "good.zip"
        file.write_bytes(reviewer.get(f"{here}/evidence").content)
        return file, reviewer.get(here).json()["public_key"]


def run(*arguments: str) -> Result:
    answer = CliRunner().invoke(app, ["certify", *arguments])
    assert "Traceback" not in answer.output
    assert isinstance(answer.exception, SystemExit | None), answer.exception
    return answer


def test_evidence_holds(evidence: tuple[Path, str]) -> None:
    file, key = evidence
    answer = run("verify", str(file), "--public-key", key)
    assert answer.exit_code == 0, answer.output
    for words in ("the key that you trust", "fingerprint", "All 4 images", "0 of 4", "1 passed"):
        assert words in answer.output
    assert "With confidence 0.5 over all attempts, at most 30 %" in answer.output
    assert "seeds that a caller chose" in answer.output
    without = run("verify", str(file))
    assert without.exit_code == 0
    assert "compare the key" in without.output


def contents(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(file: Path, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return file


def forged(parts: dict[str, bytes], change: Callable[[Manifest], None]) -> dict[str, bytes]:
    """The manifest changed, and signed again with the forger's own key, which lies beside it."""
    manifest = json.loads(parts["manifest.json"])
    change(manifest)
    claimed = canonical(manifest)
    key = Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(claimed)
    new = {"manifest.json": claimed, "manifest.sig": signature, "public_key.pem": pem}
    return parts | new


def _label(manifest: Manifest) -> None:
    manifest["labels"][0]["label"] = "malign"


def _no_label(manifest: Manifest) -> None:
    manifest["labels"].pop()


def _taken_back(manifest: Manifest) -> None:
    manifest["labels"].append(manifest["labels"][0] | {"label": "withdrawn"})


def _late(manifest: Manifest) -> None:
    manifest["labels"][0]["created"] = "2999-01-01T00:00:00+00:00"


def _strange(manifest: Manifest) -> None:
    manifest["labels"][0]["image"] = "im_strange"


def _bound(manifest: Manifest) -> None:
    manifest["certificate"]["result"]["bound"] = 0.001


def _k(manifest: Manifest) -> None:
    manifest["certificate"]["result"]["k"] = 1


def _epsilon(manifest: Manifest) -> None:
    manifest["certificate"]["terms"]["epsilon"] = 0.01


def _allowed(manifest: Manifest) -> None:
    manifest["certificate"]["terms"]["allowed"] = 1


def _covered(manifest: Manifest) -> None:
    manifest["certificate"]["terms"]["covered"]["threshold"] = 0.9


def _fewer(manifest: Manifest) -> None:
    manifest["images"].pop()


def _twice(manifest: Manifest) -> None:
    manifest["images"][0]["seed"] = manifest["images"][1]["seed"]


def _hash(manifest: Manifest) -> None:
    manifest["images"][0]["sha256"] = manifest["images"][1]["sha256"] = "sha256:" + "0" * 64


def _outside(manifest: Manifest) -> None:
    manifest["images"][0]["id"] = "../../etc/passwd"


def _hidden(manifest: Manifest) -> None:
    for one in (manifest["certificate"], manifest["attempts"][0]):
        one["attempt"] = 2
    manifest["certificate"]["terms"].update(attempt=2, delta_attempt=0.125, n=6)


def _attempts(manifest: Manifest) -> None:
    earlier = manifest["attempts"][0] | {"id": "cert_" + "1" * 32, "status": "failed"}
    manifest["attempts"].insert(0, earlier)


def _alone(manifest: Manifest) -> None:
    manifest["attempts"] = []


def _failed(manifest: Manifest) -> None:
    manifest["certificate"]["status"] = manifest["attempts"][0]["status"] = "failed"


def _nothing(manifest: Manifest) -> None:
    manifest.clear()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_label, "result.k"),
        (_no_label, "no label that counts"),
        (_taken_back, "no label that counts"),
        (_late, "between begin and end"),
        (_strange, "not among the images"),
        (_bound, "result.bound"),
        (_k, "result.k"),
        (_epsilon, "terms.n"),
        (_allowed, "terms.n"),
        (_covered, "fingerprint"),
        (_fewer, "3 images"),
        (_twice, "same seed"),
        (_hash, "was changed"),
        (_outside, "no id"),
        (_hidden, "4 images, and must be 6"),
        (_attempts, "should be 2"),
        (_alone, "not among the attempts"),
        (_failed, "say otherwise"),
        (_nothing, "does not hold"),
    ],
)
def test_a_lie_is_found_even_with_a_signature_of_its_own(
    evidence: tuple[Path, str], tmp_path: Path, change: Callable[[Manifest], None], words: str
) -> None:
    lie = write(tmp_path / "lie.zip", forged(contents(evidence[0]), change))
    answer = run("verify", str(lie))
    assert answer.exit_code == 1
    assert words in answer.output
    assert "With confidence" not in answer.output
    trusting = run("verify", str(lie), "--public-key", evidence[1])
    assert trusting.exit_code == 1
    assert "not by the one that you trust" in trusting.output


@pytest.mark.parametrize("change", [_label, _bound, _covered, _fewer])
def test_a_changed_manifest_is_found_by_its_signature(
    evidence: tuple[Path, str], tmp_path: Path, change: Callable[[Manifest], None]
) -> None:
    parts = contents(evidence[0])
    changed = forged(parts, change)["manifest.json"]
    answer = run("verify", str(write(tmp_path / "lie.zip", parts | {"manifest.json": changed})))
    assert answer.exit_code == 1
    assert "no signature of" in answer.output


def test_a_changed_image_is_found(evidence: tuple[Path, str], tmp_path: Path) -> None:
    parts = contents(evidence[0])
    images = [name for name in parts if name.startswith("images/")]
    parts[images[0]] = parts[images[1]] + b" "
    answer = run("verify", str(write(tmp_path / "lie.zip", parts)))
    assert answer.exit_code == 1
    assert f"{images[0]} was changed" in answer.output


def test_a_missing_or_strange_file_is_found(evidence: tuple[Path, str], tmp_path: Path) -> None:
    for gone in contents(evidence[0]):
        parts = contents(evidence[0])
        del parts[gone]
        answer = run("verify", str(write(tmp_path / "lie.zip", parts)))
        assert answer.exit_code == 1, gone
        assert f"{gone} is missing" in answer.output
    more = contents(evidence[0]) | {"../evil.py": b"print()"}
    answer = run("verify", str(write(tmp_path / "lie.zip", more)))
    assert answer.exit_code == 1
    assert "evil.py is in the file" in answer.output


def test_a_swapped_key_is_found(evidence: tuple[Path, str], tmp_path: Path) -> None:
    file, key = evidence
    parts = contents(file)
    other = forged(parts, lambda manifest: None)
    answer = run(
        "verify",
        str(write(tmp_path / "a.zip", parts | {"public_key.pem": other["public_key.pem"]})),
    )
    assert answer.exit_code == 1
    assert "no signature" in answer.output
    again = write(tmp_path / "b.zip", other)
    assert run("verify", str(again)).exit_code == 0, "consistent, but by whom?"
    answer = run("verify", str(again), "--public-key", key)
    assert answer.exit_code == 1
    assert "not by the one that you trust" in answer.output
    pem = tmp_path / "key.pem"
    pem.write_bytes(other["public_key.pem"])
    assert run("verify", str(again), "--public-key", str(pem)).exit_code == 0


def test_what_is_no_evidence_is_a_sentence(evidence: tuple[Path, str], tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.zip"
    rubbish.write_bytes(b"PK rubbish")
    half = tmp_path / "half.zip"
    half.write_bytes(evidence[0].read_bytes()[:-100])
    twice = tmp_path / "twice.zip"
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("manifest.json", "{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("manifest.json", "{}")
    for file in (rubbish, half, twice, tmp_path / "none.zip"):
        assert run("verify", str(file)).exit_code == 1
    for key in ("rubbish", base64.b64encode(b"short").decode()):
        answer = run("verify", str(evidence[0]), "--public-key", key)
        assert answer.exit_code == 1
        assert "--public-key" in answer.output


def test_a_failed_certificate_is_sound_evidence_of_failure(served: Served, tmp_path: Path) -> None:
    with client(served, "APPROVE_KEY") as reviewer, client(served, "LABEL_KEY") as labeller:
        begun = reviewer.post(
            "/v1/policies/bright/certify",
            json={"epsilon": 0.4, "delta": 0.9, "num_inference_steps": 20},
        ).json()
        drawn(reviewer, begun["id"])
        say(labeller, begun["id"], page(labeller, begun["id"]), "unsure")
        file = tmp_path / "failed.zip"
        file.write_bytes(reviewer.get(f"/v1/certificates/{begun['id']}/evidence").content)
    answer = run("verify", str(file))
    assert answer.exit_code == 1
    assert "evidence is sound" in answer.output
    assert "FAILED" in answer.output


def test_from_start_to_export(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.certify.POLL_S", 0.05)
    monkeypatch.setenv("WINNOW_KEY", KEYS["ADMIN_KEY"])
    there = ("--url", served.url)

    def person() -> None:
        with client(served, "ADMIN_KEY") as http:
            while True:
                newest = http.get("/v1/certificates").json()["data"]
                if newest and newest[0]["status"] == "labelling":
                    say(http, newest[0]["id"], page(http, newest[0]["id"]))
                    return
                time.sleep(0.02)

    thread = threading.Thread(target=person)
    thread.start()
    options = ("--epsilon", "0.5", "--delta", "0.9", "--wait")
    answer = run("bright", *options, *there)
    thread.join()
    assert answer.exit_code == 0, answer.output
    assert f"{served.url}/certificates/cert_" in answer.output
    assert "passed" in answer.output
    with client(served, "ADMIN_KEY") as http:
        name = http.get("/v1/certificates").json()["data"][0]["id"]
    assert name in run("show", name, *there).output
    assert name in run("list", *there).output
    assert run("export", name, str(tmp_path / "e.zip"), *there).exit_code == 0
    assert run("verify", str(tmp_path / "e.zip")).exit_code == 0


def test_an_attempt_is_abandoned_with_its_reason(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_KEY", KEYS["ADMIN_KEY"])
    there = ("--url", served.url)
    with client(served, "ADMIN_KEY") as http:
        begun: str = begin(http)["id"]
    assert "Missing option '--reason'" in run("abandon", begun, *there).output
    answer = run("abandon", begun, "--reason", "a clearer question", *there)
    assert (answer.exit_code, "abandoned" in answer.output) == (0, True), answer.output
    shown = " ".join(run("show", begun, *there).output.split())
    assert "result none: a clearer question" in shown


def test_people_are_shown_four_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    covered = {"threshold": 0.43859649122807015, "probe_thresholds": [0.0123456789, 0.5],
               "method": {"eta": 0.123456, "num_inference_steps": 20250}}  # fmt: skip
    found: dict[str, Any] = {
        "id": "cert_1", "policy": "bright", "policy_version": 1, "status": "labelling",
        "created": "2025-01-01T00:00:00", "created_by": "x", "question": "?", "result": None,
        "terms": {"epsilon": 0.01, "delta": 0.05, "attempt": 1, "allowed": 0, "n": 4},
        "progress": {}, "fingerprint": "f", "covered": covered, "not_covered": [],
    }  # fmt: skip
    monkeypatch.setattr("service.cli.certify.call", lambda *_, **__: found)
    shown = " ".join(run("show", "cert_1").output.split())
    for part in ("0.4386", "[0.01235, 0.5]", '"eta": 0.1235', "20250"):
        assert part in shown, part
    assert "0.43859" not in shown


def test_a_service_that_is_not_there_is_a_sentence() -> None:
    answer = run("show", "cert_x", "--url", "http://127.0.0.1:9")
    assert answer.exit_code == 1
    assert "no service answers at http://127.0.0.1:9" in answer.output


def test_a_certificate_of_prompts_from_a_file(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps([{"prompt": "a cat"}, {"prompt": "a dog"}]))
    with serve_asked(bundle, TEXT) as (served, _):
        monkeypatch.setenv("WINNOW_URL", served.url)
        monkeypatch.setenv("WINNOW_KEY", KEYS["APPROVE_KEY"])
        begun = run("bright", "--epsilon", "0.3", "--delta", "0.5", "--inputs", str(file))
        assert begun.exit_code == 0, begun.output
        assert "4 images of these 2 prompts, drawn uniformly, of which 0 may" in begun.output
        shown = run("show", begun.output.split(":")[0])
        assert "of these 2 prompts, drawn uniformly" in shown.output
        assert "a dog" in shown.output
        file.write_text("[")
        broken = run("bright", "--epsilon", "0.3", "--delta", "0.5", "--inputs", str(file))
        assert broken.exit_code == 1
        assert "is no JSON" in broken.output
