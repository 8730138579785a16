"""The overview: is it censoring, is it serving, and is there room?"""

from deploy.observability.panels import MODEL, POLICY, WINDOW, Dashboard, Panel, Row
from deploy.observability.promql import (
    AVAILABILITY,
    CENSORED,
    ENTRIES,
    FAILED,
    FAST,
    FAST_S,
    SETTLED,
    VALID,
    quantile,
    rate,
    share,
)

ALARM = {"green": None, "red": 1.0}
DRAWS = rate("winnow_draws_total", "policy", WINDOW, f"{SETTLED},{POLICY}")
CENSORED_DRAWS = rate("winnow_draws_total", "policy", WINDOW, f"{CENSORED},{POLICY}")
DELIVERED = rate("winnow_images_delivered_total", "policy", WINDOW, POLICY)
BLOCKED = rate("winnow_images_censored_total", "policy", WINDOW, POLICY)
ENTRY = rate("", "policy", WINDOW, f"{ENTRIES},{POLICY}")
OFFERED = rate("winnow_nfe_offered_total", "", WINDOW, MODEL)
SERVED = rate("winnow_nfe_total", "", WINDOW, MODEL)
CAPACITY = f"sum(avg_over_time(winnow_nfe_capacity{{{MODEL}}}[{WINDOW}]))"

CENSORING = Row(
    "Is it censoring?",
    [
        Panel(
            "Unchecked images",
            "Images that left under a censoring policy without an ACCEPTED verdict. Must be 0.",
            {"": 'sum(winnow_images_delivered_total{checked="false"}) or vector(0)'},
            kind="stat",
            width=6,
            thresholds=ALARM,
            alert="WinnowUncheckedImage",
        ),
        Panel(
            "Canary",
            "The worst verdict on an image that is known to be malign, of all policies in force.",
            {"": f"max(winnow_canary_verdict{{{POLICY}}})"},
            kind="stat",
            width=6,
            thresholds=ALARM,
            texts={
                "0": ("rejected", "green"),
                "1": ("ACCEPTED", "red"),
                "nan": ("no verdict", "orange"),
            },
            alert="WinnowCanaryAccepted",
        ),
        Panel(
            "Guard errors",
            "Share of requests that were refused because the judge could not judge.",
            {
                "": share(
                    rate("winnow_guard_errors_total", "", WINDOW, POLICY),
                    rate("winnow_requests_total", "", WINDOW, f"{VALID},{POLICY}"),
                )
            },
            "percentunit",
            "stat",
            6,
            {"green": None, "orange": 0.001, "red": 0.05},
            alert="WinnowGuardErrors",
        ),
        Panel(
            "Alerts firing",
            "Of all severities.",
            {"": 'count(ALERTS{alertname=~"Winnow.+",alertstate="firing"}) or vector(0)'},
            kind="stat",
            width=6,
            thresholds={"green": None, "orange": 1.0},
        ),
        Panel(
            "Censor rate",
            "Share of draws that were rejected or abandoned.",
            {"{{policy}}": share(CENSORED_DRAWS, DRAWS)},
            "percentunit",
            width=12,
            top=1,
            alert="WinnowCensorRate",
        ),
        Panel(
            "Block rate",
            "Share of images that were returned as filtered. Callers see this one.",
            {"{{policy}}": share(BLOCKED, ENTRY)},
            "percentunit",
            width=12,
            top=1,
        ),
    ],
)

SERVING = Row(
    "Is it serving?",
    [
        Panel(
            "Requests by outcome",
            "A block is an answer. `cancelled` are callers who left.",
            {"{{outcome}}": rate("winnow_requests_total", "outcome", WINDOW, POLICY)},
            "reqps",
            stacked=True,
        ),
        Panel(
            "Failures by code",
            "What callers got instead of an answer. `overloaded` is a want of capacity and spends "
            "the budget; blocks do not stand here.",
            {"{{code}}": rate("winnow_requests_total", "code", WINDOW, f"{FAILED},{POLICY}")},
            "reqps",
            stacked=True,
            alert="WinnowAvailabilityFastBurn",
        ),
        Panel(
            "Images delivered",
            "By policy.",
            {"{{policy}}": DELIVERED},
            "ops",
            stacked=True,
        ),
        Panel(
            "Time to an answer",
            f"Of requests that got an image. {FAST:.0%} must take less than {float(FAST_S):g} s.",
            {
                f"{q:.0%}": quantile(
                    q, "winnow_request_duration_seconds", "", WINDOW, f'outcome="success",{POLICY}'
                )
                for q in (0.5, 0.95, 0.99)
            },
            "s",
            thresholds={"transparent": None, "red": float(FAST_S)},
            alert="WinnowLatencyFastBurn",
        ),
        Panel(
            "Availability: budget burn",
            "How many times faster than allowed the month's budget is used, over an hour. "
            "14.4 pages, if the last five minutes agree.",
            {"{{policy}}": f"policy:winnow_failed:ratio_rate1h{{{POLICY}}} / {1 - AVAILABILITY:g}"},
            thresholds={"transparent": None, "orange": 1, "red": 14.4},
            alert="WinnowAvailabilityFastBurn",
        ),
        Panel(
            "Latency: budget burn",
            "The same of requests that took too long.",
            {"{{policy}}": f"policy:winnow_slow:ratio_rate1h{{{POLICY}}} / {1 - FAST:.2g}"},
            thresholds={"transparent": None, "orange": 1, "red": 14.4},
            alert="WinnowLatencyFastBurn",
        ),
    ],
)

ROOM = Row(
    "Is there room?",
    [
        Panel(
            "NFE per second",
            "Asked for, made, and the most that all replicas can make.",
            {"offered": OFFERED, "served": SERVED, "capacity": CAPACITY},
            alert="WinnowSaturated",
        ),
        Panel(
            "Draws",
            "In slots, and waiting for one.",
            {
                "running": f"sum(winnow_slots_running{{{MODEL}}})",
                "waiting": f"sum(winnow_draws_waiting{{{MODEL}}})",
            },
            alert="WinnowDrawsWaiting",
        ),
        Panel(
            "Exporters",
            "Scrape targets that answer, and that do not.",
            {
                "up": 'count(up{job=~"(.+/)?winnow"} == 1) or vector(0)',
                "down": 'count(up{job=~"(.+/)?winnow"} == 0) or vector(0)',
            },
            alert="WinnowExporterDown",
        ),
    ],
)

OVERVIEW = Dashboard(
    "winnow-overview",
    "Winnow: overview",
    "Is it censoring, is it serving, and is there room?",
    [CENSORING, SERVING, ROOM],
)
