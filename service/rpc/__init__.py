"""How the ingress talks to backbones and judges: gRPC, from process to process.

Serve starts, watches and replaces the replicas and names their addresses; draws and scores go
straight to them. A call by Serve's handle costs an image ten times as much CPU (decision 23).

`codec` turns values into bytes; `server` is a replica's side of the calls, and `replicas` the
ingress's; `backbone_client` and `judge_client` are the two Protocols of `service.ports` over them,
and `retry_times` computes when a refused request may be retried.
"""
