"""Two models of a user's own, from a diffusers folder to a policy in force, and what it delivers.

`winnow example` has trained them: digits by class in pixel space, clothes in an autoencoder's
latents. This imports both folders as a user does, serves them in one service, labels their images
over REST (who knows the truth does it: a count of loops, a classifier of clothes), trains a reward
for each policy, promotes it, and measures 1,000 delivered images under each. It takes half an hour
on two cores. `python -m loadtest.bench.own_models --digits build/digits --fashion build/fashion
--mnist package/data`.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import yaml
from numpy.typing import NDArray

from loadtest.bench.report import OUT, save, show
from loadtest.bench.servers import ADMIN, winnow
from loadtest.bench.three_minutes import pixels_of
from models import data, seeds
from models.evaluation.features import Classifier, load_features
from models.evaluation.frechet import frechet_distance
from models.examples import loops
from models.rewards.calibration import clopper_pearson_interval
from service.evaluation.picture import SIZE, Panel, draw

PAGE, N, STEPS = 25, 16, 20
WAIT_S = 1200.0
INTERVAL = [0, 850]
POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    "screened": {"trained": True, "max_draws": 8, "probes": [0.3, 0.5]},
    "guided": {"trained": True, "max_draws": 8, "censor_scale": 1.0, "guide_interval": INTERVAL},
    "forward": {
        "trained": True,
        "max_draws": 8,
        "guidance": "forward",
        "censor_scale": 1.0,
        "guide_interval": INTERVAL,
    },
}
"""Each is made once for each model."""

Malign = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]


@dataclass(frozen=True)
class Subject:
    """A model, and who knows the truth of its images [N, H, W, 1]; `real` are benign real ones."""

    name: str
    folder: Path
    options: Sequence[str]
    question: str
    malign: Malign
    real: NDArray[np.uint8]
    referee: Classifier
    classes: Sequence[int] = ()

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """What its images are to show, as a dataset takes it."""
        return [{"class_label": label} for label in self.classes]


@dataclass(frozen=True)
class Delivered:
    """What a policy sent: pixels [N, H, W, 1], and for each seed its place there or None."""

    pixels: NDArray[np.uint8]
    places: list[int | None]
    draws: int
    nfe: int
    seconds: float


def main() -> None:
    """Run it, print one table, write JSON and a grid for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=Path, default=Path("build/digits"))
    parser.add_argument("--fashion", type=Path, default=Path("build/fashion"))
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--labels", type=int, default=400, help="of each model's images")
    parser.add_argument("--images", type=int, default=1000, help="to measure each policy on")
    arguments = parser.parse_args()
    subjects = [digits(arguments.digits, arguments.mnist), fashion(arguments.fashion)]
    figures: dict[str, Any] = {}
    OUT.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        config = configure(subjects, Path(scratch), figures)
        with (
            winnow(config) as server,
            httpx.Client(base_url=server.url, headers=ADMIN, timeout=300) as client,
        ):
            for subject in subjects:
                labels = label(client, subject, arguments.labels)
                found: dict[str, Delivered] = {}
                for policy, spec in POLICIES.items():
                    name = f"{subject.name}-{policy}"
                    card = train(client, subject, name) if spec else {}
                    found[policy] = asyncio.run(ask(server.url, name, arguments.images))
                    figures[name] = measure(subject, found[policy]) | taught(card)
                    save("own_models", figures)
                figures[f"{subject.name}-labels"] = labels
                picture(subject, found).save(OUT / f"own_models_{subject.name}.png")
    save("own_models", figures)
    columns = ["policy", "malign % [95 %]", "sent", "draws", "NFE", "s", "Fréchet", "trained, s"]
    measured = {name: one for name, one in figures.items() if "interval" in str(one)}
    rows = [[name, *said(one)] for name, one in measured.items()]
    show("Models of one's own: before, and after labels", columns, rows)


def digits(folder: Path, mnist: Path) -> Subject:
    """Handwritten digits that need no loop; malign is one that has a loop."""
    real = data.digits(mnist, "t10k")
    wanted = np.isin(real.labels, loops.CLASSES)
    images = real.images[wanted][..., None]
    return Subject(
        name="digits",
        folder=folder / "model",
        options=["--pixel-shuffle", "2", "--class-names", ",".join("0123456789"), "--onnx"],
        question="Has this digit a loop?",
        malign=loops.malign,
        real=images[~loops.malign(images)],
        referee=load_features(folder / "referee.safetensors"),
        classes=loops.CLASSES,
    )


def fashion(folder: Path) -> Subject:
    """Clothes; malign is a bag."""
    real, referee = data.fashion(split="t10k"), load_features(folder / "referee.safetensors")
    bag = data.FASHION_CLASSES.index("bag")
    return Subject(
        name="fashion",
        folder=folder / "model",
        options=["--onnx"],
        question="Is this a bag?",
        malign=lambda pixels: referee.classes(pixels) == bag,
        real=real.images[real.labels != bag][..., None],
        referee=referee,
    )


def configure(subjects: Sequence[Subject], scratch: Path, figures: dict[str, Any]) -> Path:
    """Import every folder, and write one configuration for all of them."""
    config: dict[str, Any] = {}
    for subject in subjects:
        out, started = scratch / subject.name, time.perf_counter()
        command = [
            Path(sys.executable).with_name("winnow"), "bundle", "import", subject.folder,
            "--out", out, "--steps", STEPS, *subject.options,
        ]  # fmt: skip
        subprocess.run([str(word) for word in command], check=True)
        figures[f"{subject.name}-import, s"] = round(time.perf_counter() - started, 1)
        written = yaml.safe_load(out.with_suffix(".yaml").read_text())
        arguments = written["applications"][0]["args"]
        backbone = arguments["models"][subject.name]["backbone"]
        backbone["forward_guidance"] = True
        backbone["replicas"]["ray_actor_options"]["num_cpus"] = 0.8  # both on two cores
        spec = {"model": subject.name, "num_inference_steps": [STEPS]}
        if subject.classes:
            spec["class_labels"] = list(subject.classes)
        arguments["policies"] = {
            f"{subject.name}-{policy}": spec | more for policy, more in POLICIES.items()
        }
        arguments["default_policy"] = f"{subject.name}-screened"
        if not config:
            config = written
            continue
        for part in ("models", "policies"):
            config["applications"][0]["args"][part] |= arguments[part]
    path = scratch / "own.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def label(client: httpx.Client, subject: Subject, wanted: int) -> dict[str, Any]:
    """Say of so many images what they are; returns the dataset's counts."""
    body = {
        "name": subject.name,
        "model": subject.name,
        "question": subject.question,
        "inputs": subject.inputs,
    }
    done(client.post("/v1/datasets", json=body))
    path = f"/v1/datasets/{subject.name}"
    for _ in range(wanted // PAGE):
        page = done(client.post(f"{path}/batches", json={"size": PAGE}))["images"]
        pixels = np.stack([pixels_of(image["b64_json"]) for image in page])
        answers = [
            {
                "image_id": image["id"],
                "label": "malign" if malign else "benign",
                "elapsed_ms": 300,
            }
            for image, malign in zip(page, subject.malign(pixels), strict=True)
        ]
        done(client.post(f"{path}/labels", json={"labels": answers}))
    counts: dict[str, Any] = done(client.get(path))["counts"]
    return counts


def train(client: httpx.Client, subject: Subject, policy: str) -> dict[str, Any]:
    """A reward for a policy, promoted; returns its card."""
    body = {"dataset": subject.name, "policy": policy, "guide": True, "target": 0.01}
    reward = done(client.post("/v1/rewards", json=body))["id"]
    deadline = time.monotonic() + WAIT_S
    while (now := done(client.get(f"/v1/rewards/{reward}")))["status"] != "ready":
        if now["status"] in ("failed", "cancelled") or time.monotonic() > deadline:
            raise RuntimeError(f"the training for {policy} is {now['state']}: {now}")
        time.sleep(1)
    made = {"name": policy, "based_on": policy, "reward": reward}
    version = done(client.post("/v1/policies", json=made))["version"]
    done(client.post(f"/v1/policies/{policy}/promote", json={"version": version}))
    card: dict[str, Any] = now["card"]
    return card


async def ask(url: str, policy: str, count: int) -> Delivered:
    """So many images under a policy, from the seeds of evaluations."""
    first, gate = seeds.first(seeds.EVALUATION), asyncio.Semaphore(4)
    async with httpx.AsyncClient(base_url=url, headers=ADMIN, timeout=600) as client:

        async def some(seed: int) -> dict[str, Any]:
            async with gate:
                body = {"policy": policy, "n": N, "seed": seed, "censor": {"on_filtered": "never"}}
                return done(await client.post("/v1/images/generations", json=body))

        started = time.perf_counter()
        answers = await asyncio.gather(*(some(first + i) for i in range(0, count, N)))
        seconds = time.perf_counter() - started
    entries = [entry for answer in answers for entry in answer["data"]]
    sent = [pixels_of(entry["b64_json"]) for entry in entries if entry["b64_json"]]
    numbers = iter(range(len(sent)))
    return Delivered(
        np.stack(sent),
        [next(numbers) if entry["b64_json"] else None for entry in entries],
        sum(answer["usage"]["draws"] for answer in answers),
        sum(answer["usage"]["nfe"] for answer in answers),
        seconds,
    )


def measure(subject: Subject, found: Delivered) -> dict[str, Any]:
    """Rates, costs and distances of what was sent."""
    sent = len(found.pixels)
    malign = int(subject.malign(found.pixels).sum())
    rng = np.random.default_rng(0)
    half = len(subject.real) // 2
    real, other = np.split(rng.permutation(len(subject.real))[: 2 * half], 2)
    features = subject.referee.features
    return {
        "malign": 100 * malign / sent,
        "interval": [100 * one for one in clopper_pearson_interval(malign, sent)],
        "sent": sent,
        "asked": len(found.places),
        "draws": found.draws / sent,
        "nfe": found.nfe / sent,
        "seconds": found.seconds / sent,
        "frechet": frechet_distance(features(found.pixels), features(subject.real[real])),
        "floor": frechet_distance(
            features(subject.real[other][:sent]), features(subject.real[real])
        ),
    }


def taught(card: Mapping[str, Any]) -> dict[str, Any]:
    """What a reward's card says of its training."""
    return {"trained_s": card["trained_seconds"], "inputs": card["inputs"]["words"]} if card else {}


def picture(subject: Subject, found: Mapping[str, Delivered]) -> Any:
    """The same seeds under each policy, malign ones framed."""

    def panel(policy: str, one: Delivered) -> Panel:
        malign = subject.malign(one.pixels)
        entries = [
            None if i is None else (one.pixels[i], bool(malign[i])) for i in one.places[:SIZE]
        ]
        return Panel(policy, entries)

    return draw([panel(policy, one) for policy, one in found.items() if policy != "forward"])


def said(one: Mapping[str, Any]) -> list[str]:
    """One row of the table."""
    low, high = one["interval"]
    return [
        f"{one['malign']:.2f} [{low:.2f}, {high:.2f}]",
        f"{one['sent']} of {one['asked']}",
        f"{one['draws']:.2f}",
        f"{one['nfe']:.1f}",
        f"{one['seconds']:.3f}",
        f"{one['frechet']:.2f} (floor {one['floor']:.2f})",
        f"{one['trained_s']:.0f}" if "trained_s" in one else "",
    ]


def done(answer: httpx.Response) -> dict[str, Any]:
    """The body of a success. Raises RuntimeError with what the service said."""
    if not answer.is_success:
        raise RuntimeError(f"{answer.request.url}: {answer.status_code} {answer.text}")
    found: dict[str, Any] = answer.json()
    return found


if __name__ == "__main__":
    main()
