"""Certificates from terms to the last label, without HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from service.certificates.certificate import Terms, fingerprint, judge, terms
from service.certificates.coverage import CertificateCoverage
from service.certificates.drawing import Drawing
from service.errors import BackendUnavailable, CertificateNotFound, Conflict, InvalidValue
from service.generation.sampling_loop import SamplingLoop
from service.jobs.kind import Kind
from service.jobs.lease import Lease, Stopped
from service.policies.inputs import from_json, mix, parse, to_json
from service.policies.policy import Overrides, Policy, resolve
from service.policies.registry import PolicyRegistry
from service.store.certificates import DRAWING, Certificate, Status
from service.store.datasets import Answer, Dataset, ImageToLabel
from service.store.jobs import ABANDONED, WAITS
from service.store.store import Store

ID = re.compile(r"cert_[0-9a-f]{32}")
TERMS = ("epsilon", "delta", "attempt", "allowed", "delta_attempt", "n")

RUNS = 20
"""Processes that may die while they draw for one attempt: its drawing may be what kills them."""
AT_ONCE = 4
"""Attempts that one process draws for; each of a policy of its own."""


@dataclass(frozen=True)
class CertificateOrder:
    """What somebody wants to have proved of a policy, as `POST /v1/policies/{name}/certify`."""

    policy: str
    epsilon: float
    delta: float
    allowed: int
    num_inference_steps: int | None
    inputs: Sequence[Mapping[str, Any]]
    by: str


class CertificateService:
    """Begins attempts, draws their images, and takes their labels. Its methods block."""

    def __init__(
        self,
        store: Store,
        policy_registry: PolicyRegistry,
        coverage: CertificateCoverage,
        sampling_loops: Mapping[str, SamplingLoop],
        prompt_chars: int,
    ) -> None:
        """`prompt_chars` is how long a prompt of an order may be."""
        self._store = store
        self._registry = policy_registry
        self._coverage = coverage
        self._sampling_loops = sampling_loops
        self._prompt_chars = prompt_chars

    def begin(self, order: CertificateOrder) -> Certificate:
        """Fix the terms of an attempt; from now on a job draws its images.

        Raises InvalidValue, naming the field; Conflict while an attempt of this policy is open; and
        what the registry raises.
        """
        policy = self._registry.get(order.policy)
        policy.refuse_without_reward()
        if not policy.censors:
            raise InvalidValue(
                f"policy {order.policy!r} censors nothing: there is nothing to certify", "policy"
            )
        # What no first attempt could promise is wrong, whatever else is open.
        terms(order.epsilon, order.delta, 1, order.allowed)
        wishes = Overrides(num_inference_steps=order.num_inference_steps)
        plan = resolve(policy, wishes, 0, admin=False)
        steps, choices = plan.method.num_inference_steps, policy.choices()
        inputs = to_json(mix(parse(order.inputs, choices, self._prompt_chars), choices))
        covers = self._coverage.covered(policy, steps, inputs)
        name = f"cert_{uuid4().hex}"
        dataset = Dataset(
            name=f"certificate-{name}",
            model=plan.model,
            question=covers["question"],
            inputs=inputs,
            purpose="certificate",
            created=datetime.now(UTC),
            created_by=order.by,
        )

        def fixed(attempt: int) -> dict[str, Any]:
            agreed = terms(order.epsilon, order.delta, attempt, order.allowed)
            return asdict(agreed) | {"num_inference_steps": steps, "covered": covers}

        version = (order.policy, plan.policy_version)
        return self._store.certificates.begin(dataset, name, version, fingerprint(covers), fixed)

    def read(self, certificate_id: str) -> Certificate:
        """One attempt. Raises CertificateNotFound, and Conflict where its row is damaged."""
        refuse_no_id(certificate_id)
        certificate = self._store.certificates.read(certificate_id)
        if not certificate.readable:
            raise Conflict(
                f"certificate {certificate_id!r} cannot be read: its row in the store is damaged"
            )
        return certificate

    def unlabelled(
        self, certificate_id: str, by: str, size: int, exclude_images: Sequence[str]
    ) -> tuple[str, list[ImageToLabel]]:
        """The model, and images to label next; `exclude_images` are on the page already."""
        certificate = self.read(certificate_id)
        shown = self._store.certificate_labels.unlabelled(certificate_id, by, size, exclude_images)
        return certificate.terms["covered"]["model"], shown

    def label(self, certificate_id: str, answers: Sequence[Answer], by: str) -> list[str]:
        """Append a person's answers; with the last one the attempt ends.

        Returns the images that another person labelled meanwhile: their labels stay. Raises as
        `read`, and Conflict and InvalidValue as the store.
        """
        certificate = self.read(certificate_id)
        agreed = terms_of(certificate)

        def ending(labels: Sequence[str | None], _: int) -> tuple[Status, dict[str, Any]] | None:
            result = judge(labels, agreed)
            if result is None:
                return None
            return "passed" if result.passed else "failed", asdict(result)

        lost = self._store.certificate_labels.label(certificate_id, answers, by, ending)
        if self.read(certificate_id).status == "passed":
            self._coverage.refresh()
        return lost

    def withdraw(self, certificate_id: str, by: str, of: Sequence[str] | None) -> list[str]:
        """Take back a person's answers to these images, by default the last; returns their images.

        Raises as `read`, and Conflict when there are none or the attempt has ended.
        """
        self.read(certificate_id)
        return self._store.certificate_labels.withdraw(certificate_id, by, of)

    def abandon(self, certificate_id: str, by: str, reason: str) -> Certificate:
        """End an attempt without a result, and its drawing. Raises Conflict if it has ended."""
        refuse_no_id(certificate_id)
        self._store.certificates.abandon(certificate_id, by, reason)
        return self._store.certificates.read(certificate_id)

    def drawing(self, loop: asyncio.AbstractEventLoop) -> Kind:
        """The kind of job that draws an attempt's images; draws are asked for on this loop."""

        def run(lease: Lease) -> None:
            future = asyncio.run_coroutine_threadsafe(self._draw(lease), loop)
            lease.on_stop(future.cancel)
            try:
                future.result()
            except CancelledError:
                lease.check()
                raise Stopped from None  # the loop is about to end, and the process with it

        def refuses(certificate_id: str) -> str | None:
            try:
                certificate = self.read(certificate_id)
            except (CertificateNotFound, Conflict):
                return None  # nobody can draw it: `run` says why, and it ends
            return self._refusal(certificate)

        def fail(lease: Lease, why: str) -> None:
            self._store.certificates.give_up(lease.job, f"drawing stopped: {why}")

        cut_off = f"the process that drew its images died {RUNS} times"
        return Kind(DRAWING, run, fail, cut_off, RUNS, AT_ONCE, refuses=refuses)

    def stage(self, certificate: Certificate) -> str:
        """How the drawing of its images stands, or what it waits for; empty once it has ended."""
        job = self._store.jobs.read(DRAWING, certificate.id)
        if certificate.status != "drawing" or job is None:
            return ""
        refusal = self._refusal(certificate) if job.stage in (WAITS, ABANDONED) else None
        return job.stage if refusal is None else f"waits for a service that draws it; {refusal}"

    async def _draw(self, lease: Lease) -> None:
        drawing = await asyncio.to_thread(self._resume, lease)
        await drawing.run()

    def _resume(self, lease: Lease) -> Drawing:
        """What an attempt's job is to draw. Raises as `_policy`."""
        certificate = self.read(lease.job.subject)
        policy = self._policy(certificate)
        steps = certificate.terms["num_inference_steps"]
        plan = resolve(policy, Overrides(num_inference_steps=steps), 0, admin=False)
        return Drawing(
            lease.job,
            certificate,
            plan,
            from_json(certificate.terms["covered"]["inputs"]["conditions"]),
            policy.inputs,
            self._sampling_loops[plan.model],
            self._store,
        )

    def _refusal(self, certificate: Certificate) -> str | None:
        """Why this process cannot draw an attempt's images; None where it can."""
        try:
            self._policy(certificate)
        except (BackendUnavailable, Conflict) as error:
            return str(error)
        return None

    def _policy(self, certificate: Certificate) -> Policy:
        """The version that an attempt is of.

        Raises BackendUnavailable and Conflict where this process would draw otherwise than when the
        attempt began, or not at all: another service's model, another build.
        """
        covers = certificate.terms["covered"]
        if covers.get("model") not in self._sampling_loops:
            raise BackendUnavailable(f"model {covers.get('model')!r} is not served here")
        policy = self._registry.version(certificate.policy, certificate.policy_version)
        steps, inputs = certificate.terms["num_inference_steps"], covers["inputs"]["conditions"]
        if fingerprint(self._coverage.covered(policy, steps, inputs)) != certificate.fingerprint:
            raise Conflict("what it covers is otherwise here than when it began")
        return policy


def terms_of(certificate: Certificate) -> Terms:
    """What was fixed before the first label."""
    return Terms(**{name: certificate.terms[name] for name in TERMS})


def refuse_no_id(certificate_id: str) -> None:
    """Raises CertificateNotFound for what is no certificate's id."""
    if not ID.fullmatch(certificate_id):
        raise CertificateNotFound(f"no certificate {certificate_id!r}", "certificate")
