"""Winnow, the service. A request goes through these packages, in this order:

1. `http` accepts the connection: its port, its time limits, how much runs at once;
2. `api` authenticates the key, validates the JSON, and refuses what no backbone has time for;
3. `policies` turns the policy's name and the caller's tighter wishes into a frozen SamplingPlan;
4. `generation` runs one loop for every plan: draws, verdicts, until n images are accepted, or the
   draw budget or the deadline ends it; and records what was decided before the answer leaves;
5. `rpc` carries the draws and the pixels to the replicas of Ray Serve, and back, by gRPC;
6. `engine`, in a Backbone replica, advances all running draws together, one step a tick;
7. `judge`, in a RewardModel replica, scores finished images; its verdict, in the ingress, compares
   score and threshold, and alone decides who may leave;
8. `images` writes accepted pixels as PNG, and decodes strictly what callers send.

Beside them: `labelling` asks people about images and trains rewards on their answers,
`certificates` bounds what a policy delivers, `jobs` runs what outlives a request, `store` keeps
all of it, `metrics` counts, and `config` is what the operator says.

`serving` runs these parts as Ray Serve deployments, or in one process; `app` binds the deployments.
`cluster` is Ray on one machine, `offline` what needs no running service, and `cli` the commands.

`ports` holds what the parts say to each other, `errors` every fault that a caller can meet, and
`logs` how it is logged.
"""
