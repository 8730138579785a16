"""What is counted, by prometheus_client in each process. No prompt, user or key is ever a label.

`docs/metrics.md` lists every metric with its meaning. A process has one of `ingress`, `backbone`
and `judge`; `exposition` puts several together, and `exporter` serves pages to Prometheus.
"""

from prometheus_client import disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]
