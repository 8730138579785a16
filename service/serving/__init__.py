"""How the parts are run together: as Ray Serve deployments, or in one process.

`assemble` puts the service together, over replicas or over an engine and a judge in this process.
`ingress`, `backbone`, `reward_model` and `labelling` are the deployments, thin shells around plain
classes; `replica` and `handles` are what they need of Serve, `autoscaling` says how many backbones
a load needs, and `in_process` runs the same parts without Ray.
"""
