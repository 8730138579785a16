"""Traffic that moves every series: what callers, reviewers and misfortune do to a service."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.integration.conftest import ADMIN, Service
from tests.processes import wait_for


class Traffic:
    """What callers, reviewers and misfortune do to a service."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def post(self, path: str, **body: Any) -> httpx.Response:
        """As the admin."""
        return self.service.client.post(path, json=body, headers=ADMIN)

    def ask(self, policy: str, n: int = 2, steps: int = 20, **body: Any) -> httpx.Response:
        """For images."""
        body |= {"policy": policy, "n": n, "num_inference_steps": steps}
        return self.post("/v1/images/generations", **body)

    def steady(self, stopping: threading.Event) -> None:
        """All policies in turn, until told to stop."""
        turns = (
            ("no-crossbar", 4, 20),
            ("only-crossbar", 2, 20),
            ("no-crossbar", 2, 50),
            ("no-crossbar-guided", 2, 50),
            ("no-crossbar-forward", 1, 20),
            ("none", 1, 20),
        )
        while not stopping.is_set():
            for policy, n, steps in turns:
                self.ask(policy, n, steps)

    def blocked(self) -> None:
        """No draw is good enough; and there are more than a shadow keeps."""
        censor = {"threshold": 0.99999, "max_draws": 4}
        answer = self.ask("no-crossbar", 16, censor=censor)
        assert answer.json()["error"]["code"] == "moderation_blocked", answer.text

    def late(self) -> None:
        """The backbone rests while a request waits for it."""
        [backbone] = self.service.replicas("Backbone")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.ask, "no-crossbar", 16, 50, censor={"deadline_s": 3})
            wait_for(lambda: self.service.metric("winnow_slots_running") > 0)
            os.kill(backbone, signal.SIGSTOP)
            try:
                code = asked.result().json()["error"]["code"]
            finally:
                os.kill(backbone, signal.SIGCONT)
        assert code == "deadline_exceeded", code

    def gone(self) -> None:
        """A caller hangs up."""
        body = {"policy": "none", "n": 16, "num_inference_steps": 50}
        try:
            httpx.post(
                f"{self.service.url}/v1/images/generations", json=body, headers=ADMIN, timeout=0.1
            )
        except httpx.TimeoutException:
            return
        raise AssertionError("the answer came before the caller left")

    def refused(self) -> None:
        """No replica could make so much in so little time."""
        wait_for(
            lambda: self.ask("no-crossbar", 16, 50, censor={"deadline_s": 0.5}).status_code == 429
        )

    def switched_off(self) -> None:
        """While requests run: the first may have its answer by then."""
        patient = {"deadline_s": 600}
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(self.ask, "none", 8, 50, censor=patient) for _ in range(6)]
            # On a busy machine a page of metrics may come without the backbone's.
            wait_for(
                lambda: (
                    self.service.metric("winnow_slots_running") > 0
                    or any(one.done() for one in asked)
                ),
                120,
            )
            self.post("/v1/policies/none/disable").raise_for_status()
            codes = {one.result().json().get("error", {}).get("code") for one in asked}
            assert "policy_disabled" in codes, codes
        self.post("/v1/policies/none/promote", version=1).raise_for_status()

    def shadow(self) -> None:
        """Another version of the same."""
        made = self.post("/v1/policies", name="no-crossbar", based_on="no-crossbar")
        made.raise_for_status()
        version = made.json()["version"]
        self.post("/v1/policies/no-crossbar/shadow", version=version).raise_for_status()

    def labels(self) -> None:
        """One of each."""
        self.post(
            "/v1/datasets", name="bars", question="Does the seven carry a crossbar?"
        ).raise_for_status()
        batch = self.post("/v1/datasets/bars/batches", size=3)
        batch.raise_for_status()
        self._label("/v1/datasets/bars/labels", batch.json(), ("benign", "malign", "unsure"))

    def certificate(self) -> None:
        """Of six images, none of them malign."""
        begun = self.post(
            "/v1/policies/no-crossbar/certify",
            epsilon=0.5,
            delta=0.05,
            num_inference_steps=50,
        )
        begun.raise_for_status()
        path = f"/v1/certificates/{begun.json()['id']}"

        def status() -> str:
            answer = self.service.client.get(path, headers=ADMIN).json()
            return str(answer["status"])

        wait_for(lambda: status() == "labelling", 180)
        batch = self.post(f"{path}/batches").json()
        self._label(f"{path}/labels", batch, ["benign"] * len(batch["images"]))
        assert status() == "passed"

    def _label(self, path: str, batch: dict[str, Any], labels: Any) -> None:
        given = [
            {"image_id": image["id"], "label": label, "elapsed_ms": 500}
            for image, label in zip(batch["images"], labels, strict=True)
        ]
        self.post(path, labels=given).raise_for_status()

    def no_judge(self) -> None:
        """The judge hangs, is ended, and comes back."""
        [judge] = self.service.replicas("RewardModel")
        os.kill(judge, signal.SIGSTOP)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: self.ask("no-crossbar"), range(4)))
        os.kill(judge, signal.SIGKILL)
        codes = {answer.json()["error"]["code"] for answer in answers}
        assert codes == {"censor_unavailable"}, codes
        wait_for(lambda: set(self.service.replicas("RewardModel")) - {judge} != set(), 180)
        self.service.wait_ready()

    def everything(self, steady_s: float) -> None:
        """So that each series moves, and long enough for rules that compare with before."""
        for once in (self.shadow, self.late, self.gone, self.switched_off, self.labels):
            once()
        stopping = threading.Event()
        with ThreadPoolExecutor(3) as pool:
            callers = [pool.submit(self.steady, stopping) for _ in range(3)]
            try:
                self.certificate()
                self.blocked()
                self.refused()
                time.sleep(steady_s)
                self.no_judge()
                time.sleep(5)
            finally:
                stopping.set()
            for one in callers:
                one.result()
