"""The backbones as `ports.BackboneClient`: the one that would finish first draws.

Each backbone reports its workload a few times a second and with every result. From that, and from
what was sent to it since, the ingress computes what it would refuse, and refuses without a call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from models.diffusion.method import Method
from service.engine.admission import Workload, reserved_nfe
from service.errors import BackendUnavailable, Overloaded
from service.ports import DrawKey, DrawResult, SamplingPlan
from service.rpc.codec import DRAWS, DrawCall, unpack_reply
from service.rpc.replicas import Replica, ReplicaPool, ReplicaUnavailable
from service.rpc.retry_times import RetryTimes

LATE_S = 2.0
"""How long after their deadline draws are given up, should the backbone not end them itself."""
MOST_METHODS = 1000

Backbone = Replica[Workload]


class GrpcBackboneClient:
    """The backbones of each model."""

    def __init__(self, backbones: Mapping[str, ReplicaPool[Workload]], ingresses: int = 1) -> None:
        """`ingresses` is the number of ingress replicas."""
        self._backbones = backbones
        self._retry_times = {model: RetryTimes(ingresses) for model in backbones}
        # NFE of a whole draw by its method, as measured; until then, its steps.
        self._nfe: dict[tuple[str, Method, bool], int] = {}
        # NFE refused here, by replica: reported with the next call, for autoscaling.
        self._refused: defaultdict[str, float] = defaultdict(float)

    def check(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> None:
        """See `ports.BackboneClient`."""
        reserved = self._reserved(plan, keys)
        replicas = _by_finish(self._backbones[plan.model].known, tenant, reserved, plan)
        if replicas:
            self._accepting(plan, replicas, tenant, reserved, timeout_s)

    async def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        """See `ports.BackboneClient`. What one replica refuses, another may try once.

        Of two refusals the shorter wait counts.
        """
        reserved = self._reserved(plan, keys)
        replicas = _by_finish(await self._backbones[plan.model].all(), tenant, reserved, plan)
        if not replicas:
            raise BackendUnavailable(
                f"no backbone of {plan.model} answers; it is restarted by itself"
            )
        if any(key.fresh and not key.ahead for key in keys):
            replicas = self._accepting(plan, replicas, tenant, reserved, timeout_s)
        refusals: list[Overloaded] = []
        fault: BackendUnavailable | None = None
        for replica in replicas[:2]:
            call = DrawCall(
                plan, tuple(keys), timeout_s, tenant, bool(refusals), self._refused_by(replica)
            )
            before = after = replica.state
            if before is not None:
                # Until its own report arrives.
                replica.state = after = before.with_draws(tenant, reserved)
            drawn = False
            try:
                answers = replica.stream("draw", DRAWS.pack(call), timeout_s + LATE_S)
                async with aclosing(answers) as groups:
                    async for group in groups:
                        message = unpack_reply(group)
                        replica.update(message.workload)
                        self._learn(plan, message.results)
                        drawn = True
                        yield message.results
                return
            except Overloaded as error:
                refusals.append(error)
                if all(key.ahead for key in keys):
                    break
            except BackendUnavailable as error:
                replica.record_failure()
                fault = error
            except (ReplicaUnavailable, ValueError) as error:
                replica.record_failure()
                fault = BackendUnavailable(f"the backbone did not answer ({error})")
            if drawn:
                break
            if replica.state is after:
                replica.state = before
        if fault is not None:
            raise fault
        raise min(refusals, key=lambda error: error.retry_after_s or 0.0)

    async def ready(self) -> None:
        """See `ports.BackboneClient`."""
        for model, backbones in self._backbones.items():
            if not any(replica.fresh for replica in await backbones.all()):
                raise BackendUnavailable(f"no backbone of {model} answers")

    def _accepting(
        self,
        plan: SamplingPlan,
        replicas: Sequence[Backbone],
        tenant: str,
        reserved: Sequence[float],
        timeout_s: float,
    ) -> Sequence[Backbone]:
        """The replicas that would accept the draws. Raises Overloaded if none would."""
        accepting: list[Backbone] = []
        refusals: list[Overloaded] = []
        for replica in replicas:
            try:
                if replica.state is not None:
                    cost = replica.state.cost(plan.condition.size)
                    replica.state.check(tenant, reserved, timeout_s, cost)
                accepting.append(replica)
            except Overloaded as error:
                refusals.append(error)
        if accepting:
            return accepting
        self._refused[replicas[0].address.replica] += sum(reserved)
        refusal = min(refusals, key=lambda error: error.retry_after_s or 0.0)
        works_s = [load.work_s(sum(reserved)) for one in replicas if (load := one.state)]
        refusal.retry_after_s = self._retry_times[plan.model].wait_s(
            refusal.retry_after_s or 0.0, sum(works_s) / len(works_s) ** 2
        )
        raise refusal

    def _refused_by(self, replica: Backbone) -> float:
        return self._refused.pop(replica.address.replica, 0.0)

    def _reserved(self, plan: SamplingPlan, keys: Sequence[DrawKey]) -> list[float]:
        """The NFE that each draw stands for."""
        key = plan.backbone, plan.method, plan.condition.guidance_scale > 1
        nfe = self._nfe.get(key, plan.method.num_inference_steps) * self._cost(plan)
        return [reserved_nfe(plan, nfe, draw) for draw in keys]

    def _cost(self, plan: SamplingPlan) -> float:
        """What an NFE of this size counts, as any replica says: they run one bundle."""
        if plan.condition.size is None:
            return 1.0
        states = (replica.state for replica in self._backbones[plan.model].known)
        return next((state.cost(plan.condition.size) for state in states if state), 1.0)

    def _learn(self, plan: SamplingPlan, results: Sequence[DrawResult]) -> None:
        key = plan.backbone, plan.method, plan.condition.guidance_scale > 1
        whole = [result.nfe for result in results if not result.abandoned]
        if whole and (key in self._nfe or len(self._nfe) < MOST_METHODS):
            self._nfe[key] = max(whole)


def _by_finish(
    replicas: Sequence[Backbone], tenant: str, reserved: Sequence[float], plan: SamplingPlan
) -> Sequence[Backbone]:
    """Sorted by when they would finish, then by when they were last called; those that failed
    recently or are draining come last."""

    def finish(replica: Backbone) -> tuple[bool, bool, float, float]:
        load = replica.state
        if load is None:
            return replica.failed_recently, True, 0.0, replica.last_called
        ready_s = load.ready_s(tenant, reserved, load.cost(plan.condition.size))
        return replica.failed_recently, load.draining, ready_s, replica.last_called

    return sorted(replicas, key=finish)
