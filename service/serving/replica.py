"""What this process is to Serve: a replica with a name, on a machine with an address."""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray import serve

from service.rpc.server import ReplicaServer, Stream, Unary


def replica_server(unary: Mapping[str, Unary], streams: Mapping[str, Stream]) -> ReplicaServer:
    """The gRPC server of this replica, where the ingresses of all machines reach it."""
    name = serve.get_replica_context().replica_id.unique_id
    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return ReplicaServer(name, host, unary, streams)
