"""What Prometheus and Grafana are told of Winnow: rules, alerts and dashboards, as Python data.

`promql` has the pieces that rules and dashboards share, so that a rate means the same in both.
`rules` is what is computed in advance, and `alerts` whom to wake and why. `overview`,
`trust_and_safety` and `capacity` are dashboards, made of `panels`; `grafana` turns them into JSON.
`python -m deploy.observability` writes the `files`.
"""
