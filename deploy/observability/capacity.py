"""Capacity: what is asked for, what can be made, and where the time goes."""

from deploy.observability.panels import MODEL, POLICY, WINDOW, Dashboard, Panel, Row
from deploy.observability.promql import increase, mean, quantile, rate, share

CAN = f"sum by (model) (avg_over_time(winnow_nfe_capacity{{{MODEL}}}[{WINDOW}]))"
OFFERED = rate("winnow_nfe_offered_total", "model", WINDOW, MODEL)
SERVED = rate("winnow_nfe_total", "model", WINDOW, MODEL)
SAVED = rate("winnow_nfe_saved_total", "reason", WINDOW, MODEL)
PROCESSES = (
    'group by (instance, replica) ({__name__=~"winnow_slots_running'
    '|winnow_judge_duration_seconds_count|winnow_reward_info"})'
)


def quantiles(histogram: str, by: str, where: str) -> dict[str, str]:
    """Median and tail, by a label."""
    return {
        f"{{{{{by}}}}} {q:.0%}": quantile(q, histogram, by, WINDOW, where)
        for q in (0.5, 0.95, 0.99)
    }


DEMAND = Row(
    "Is there room?",
    [
        Panel(
            "NFE per second",
            "Offered: asked for, refused and expected redraws included. Served: made. Capacity: "
            "what all replicas make with full slots, as measured.",
            {
                "{{model}} offered": OFFERED,
                "{{model}} served": SERVED,
                "{{model}} capacity": CAN,
            },
            width=12,
            alert="WinnowSaturated",
        ),
        Panel(
            "Offered share of capacity",
            "The autoscaler aims at its `utilization`, 70 % unless you say otherwise.",
            {"{{model}}": f"{OFFERED} / ({CAN} > 0)"},
            "percentunit",
            width=12,
            thresholds={"transparent": None, "orange": 0.7, "red": 0.9},
            alert="WinnowSaturated",
        ),
        Panel(
            "Replicas",
            "Processes whose metrics are there, by deployment.",
            {
                "{{deployment}}": "count by (deployment) (label_replace("
                f'{PROCESSES}, "deployment", "$1", "replica", "(.+)-[0-9]+"))'
            },
        ),
        Panel(
            "Capacity of each backbone",
            "NFE per second with full slots. One that falls behind shares its CPU or GPU.",
            {"{{replica}} {{instance}}": f"winnow_nfe_capacity{{{MODEL}}}"},
        ),
        Panel(
            "Refused",
            "Share of requests that got 429 `overloaded`.",
            {
                "{{policy}}": share(
                    rate("winnow_requests_total", "policy", WINDOW, f'code="overloaded",{POLICY}'),
                    rate("winnow_requests_total", "policy", WINDOW, POLICY),
                )
            },
            "percentunit",
            alert="WinnowSaturated",
        ),
    ],
)

BATCH = Row(
    "Is the batch well used?",
    [
        Panel(
            "Batch occupancy",
            "Share of the slots in use at each tick.",
            {
                "{{le}}": increase("winnow_batch_occupancy_bucket", "le", WINDOW, MODEL),
            },
            kind="heatmap",
        ),
        Panel(
            "Mean occupancy",
            "Low with draws waiting means that ticks are slow; low without, that few ask.",
            {"{{model}}": mean("winnow_batch_occupancy", "model", WINDOW, MODEL)},
            "percentunit",
            top=1,
        ),
        Panel(
            "Draws",
            "In slots, and waiting for one.",
            {
                "{{model}} running": f"sum by (model) (winnow_slots_running{{{MODEL}}})",
                "{{model}} waiting": f"sum by (model) (winnow_draws_waiting{{{MODEL}}})",
            },
            alert="WinnowDrawsWaiting",
        ),
        Panel(
            "Step time",
            "Of one tick: one denoiser call for all rows, and guidance for some.",
            quantiles("winnow_step_duration_seconds", "model", MODEL),
            "s",
        ),
        Panel(
            "Decoding time",
            "Of finished draws to pixels: an autoencoder's, beside the steps of other draws.",
            quantiles("winnow_decode_duration_seconds", "model", MODEL),
            "s",
        ),
        Panel(
            "Judge time",
            "Of one batch of scores.",
            quantiles("winnow_judge_duration_seconds", "model", MODEL),
            "s",
        ),
        Panel(
            "Time in the queue",
            "A request's time without slots.",
            quantiles("winnow_queue_duration_seconds", "policy", POLICY),
            "s",
            alert="WinnowDrawsWaiting",
        ),
    ],
)

SPENT = Row(
    "What is it spent on?",
    [
        Panel(
            "NFE by kind",
            "`gradient` is what forward guidance adds, `negative` classifier-free guidance.",
            {"{{kind}}": rate("winnow_nfe_total", "kind", WINDOW, MODEL)},
            stacked=True,
        ),
        Panel(
            "NFE saved",
            "Not spent, because a probe stopped a hopeless draw or nobody wanted it any more.",
            {"{{reason}}": SAVED},
            stacked=True,
        ),
        Panel(
            "Requests cancelled",
            "By what ended them.",
            {"{{source}}": rate("winnow_cancelled_total", "source", WINDOW, POLICY)},
            "reqps",
            stacked=True,
        ),
    ],
)

CAPACITY = Dashboard(
    "winnow-capacity",
    "Winnow: capacity",
    "What is asked for, what can be made, and where the time goes.",
    [DEMAND, BATCH, SPENT],
)
