"""Which replica a call goes to: one of two at random, and not the one that has refused it."""

from __future__ import annotations

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class Elsewhere(FIFOMixin, RequestRouter):
    """Power of two choices, as Serve does by default, among the replicas that are left.

    A caller names the replica that refused it as `avoid`. Where there is no other, that one is
    asked again.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """One rank of at most two replicas; Serve takes the one with fewer calls."""
        avoid = pending_request.kwargs.get("avoid") if pending_request else None
        others = [
            replica for replica in candidate_replicas if replica.replica_id.unique_id != avoid
        ]
        pool = others or candidate_replicas
        return [random.sample(pool, min(2, len(pool)))]
