"""Which requests a passed certificate covers, known without asking the store."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from models.bundles.manifest import Manifest
from models.diffusion.condition import Mix
from service.certificates.certificate import asked, covered, fingerprint
from service.config import Settings
from service.generation.record import versions
from service.policies.inputs import to_json
from service.policies.policy import Overrides, Policy, resolve
from service.ports import SamplingPlan
from service.store.certificates import Certificate, Certificates

log = logging.getLogger("winnow.certificates")

POLL_S = 1.0
Observe = Callable[[Mapping[str, float]], None]


class CertificateCoverage:
    """The passed certificates, read every second by a thread of its own.

    A certificate that has passed stays so, and what differs from it in anything has another
    fingerprint: so nothing here can be out of date, only a little late.
    """

    def __init__(
        self,
        certificates: Certificates,
        settings: Settings,
        manifests: Mapping[str, Manifest],
        policies: Callable[[], Mapping[str, Policy]],
        observe: Observe,
    ) -> None:
        """`policies` gives those in force; `observe` takes the bound of each, NaN without one."""
        self._certificates = certificates
        self._settings = settings
        self._manifests = manifests
        self._policies = policies
        self._observe = observe
        self._passed: Mapping[str, Certificate] = {}
        self._known: dict[tuple[str, int], tuple[Policy, str]] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="certified", daemon=True)
        self._thread.start()

    def covered(
        self, policy: Policy, num_inference_steps: int, inputs: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """All that a certificate of this policy covers, as it runs here."""
        model = policy.settings.model
        manifest = self._manifests[model]
        sampling = policy.sampling(num_inference_steps)
        ran = versions(self._settings.models[model], manifest, sampling)
        return covered(policy, ran, num_inference_steps, asked(policy, manifest), inputs)

    def steps(self, policy: Policy) -> dict[int, Certificate]:
        """The passed certificate at each step count that has one."""
        found = {}
        for steps in policy.operating_points:
            certificate = self._passed.get(self._fingerprint(policy, steps))
            if certificate is not None:
                found[steps] = certificate
        return found

    def covers(self, policy: Policy, plan: SamplingPlan, seed_is_ours: bool) -> bool:
        """Whether a request is of the kind that a passed certificate was drawn from.

        A seed of the caller's is not: it may have been searched. Nor is a plan that was changed, or
        that asks for a prompt or a class: a rate over many inputs bounds no single one's.
        """
        steps = plan.method.num_inference_steps
        if not (seed_is_ours and self._passed and policy.censors):
            return False
        plain = resolve(policy, Overrides(num_inference_steps=steps), plan.seed, admin=False)
        return plan == plain and self._fingerprint(policy, steps) in self._passed

    def refresh(self) -> None:
        """Read the store now. Raises StoreUnavailable, and then keeps what it knew."""
        self._passed = self._certificates.passed()
        bounds = {}
        for name, policy in self._policies().items():
            if policy.censors:
                try:
                    certificate = self.steps(policy).get(policy.settings.num_inference_steps[0])
                    bounds[name] = float(certificate.result["bound"]) if certificate else math.nan
                except Exception as error:  # of this policy nobody can tell; of the others they can
                    log.warning("the certificates of policy %r cannot be told: %r", name, error)
                    bounds[name] = math.nan
        self._observe(bounds)

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        self._thread.join()

    def _fingerprint(self, policy: Policy, num_inference_steps: int) -> str:
        key = (policy.name, num_inference_steps)
        known = self._known.get(key)
        if known is None or known[0] is not policy:
            plain = resolve(policy, Overrides(num_inference_steps=num_inference_steps), 0, False)
            inputs = to_json(Mix((plain.condition,)))
            known = policy, fingerprint(self.covered(policy, num_inference_steps, inputs))
            self._known[key] = known
        return known[1]

    def _poll(self) -> None:
        while not self._closing.is_set():
            try:
                self.refresh()
            except Exception as error:  # what has passed stays passed
                log.warning("the certificates could not be read: %s", error)
            self._closing.wait(POLL_S)
