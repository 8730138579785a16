"""Winnow, the service. A request goes through these modules, in this order:

1. `api` validates the JSON and authenticates the key;
2. `policy` turns the policy's name and the caller's tighter wishes into a frozen SamplingPlan;
3. `router` runs one loop for every plan: draws, verdicts, until n images are accepted, or the
   draw budget or the deadline ends it;
4. `engine`, in a Backbone replica, advances all running draws together, one step a tick;
5. `reward`, in a RewardModel replica, scores finished images;
6. `verdict` compares the score with the policy's threshold, and alone decides who may leave;
7. `encode` turns accepted pixels into PNG;
8. `api` answers with n entries in order: an image, or a null and its reason.

`live` says which policies are in force, and `weights` finds their networks; both ask the store.
`shadow` lets another version score what was judged. What was decided is recorded (`decisions`,
`store`) before the answer leaves; `replay` makes it again.

`metrics` counts, `canary` judges what is known to be malign, and `autoscaling` says how many
backbones a load needs.

`ports` holds what these say to each other, `deployments` wraps them for Ray Serve, and `app` binds
them.
"""
