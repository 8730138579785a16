"""Trust and safety: what is held back, by which judge, and whether the judge can be believed."""

from deploy.observability.panels import POLICY, WINDOW, Dashboard, Panel, Row
from deploy.observability.promql import (
    CENSORED,
    DRIFT,
    ENTRIES,
    SETTLED,
    SIGMAS,
    mean,
    quantile,
    rate,
    share,
)

JUDGED = "policy, judge"
WHO = "{{policy}} · {{judge}}"
DRAWS = rate("winnow_draws_total", JUDGED, WINDOW, f"{SETTLED},{POLICY}")
CENSORED_DRAWS = rate("winnow_draws_total", JUDGED, WINDOW, f"{CENSORED},{POLICY}")
BLOCKED = rate("winnow_images_censored_total", JUDGED, WINDOW, POLICY)
ENTRY = rate("", "policy", WINDOW, f"{ENTRIES},{POLICY}")
SHADOWED = rate("winnow_shadow_draws_total", JUDGED, WINDOW, POLICY)
SHADOW = rate("winnow_shadow_draws_total", f"{JUDGED}, verdict, live_verdict", WINDOW, POLICY)
HISTORY = f"policy:winnow_censor:mean1w{{{POLICY}}}"
BAND = f"{SIGMAS} * policy:winnow_censor:stddev1w{{{POLICY}}}"


def scores(title: str, description: str, histogram: str, alert: str | None = None) -> Panel:
    """A heatmap of scores over time."""
    return Panel(
        title,
        description,
        {"{{le}}": f"sum by (le) (increase({histogram}_bucket{{{POLICY}}}[{WINDOW}]))"},
        kind="heatmap",
        width=12,
        alert=alert,
    )


HELD_BACK = Row(
    "What is held back?",
    [
        Panel(
            "Censor rate by policy and judge",
            "Share of draws that were rejected or abandoned. A new judge begins a new line.",
            {WHO: share(CENSORED_DRAWS, DRAWS)},
            "percentunit",
            width=12,
            top=1,
            alert="WinnowCensorRate",
        ),
        Panel(
            "Block rate by policy and judge",
            "Share of a policy's images that were returned as filtered, by the judge that did so.",
            {WHO: f"{BLOCKED} / on (policy) group_left () ({ENTRY} > 0)"},
            "percentunit",
            width=12,
            top=1,
        ),
        Panel(
            "Censor rate against its history",
            f"Over an hour; the band is last week's mean and {SIGMAS} standard deviations.",
            {
                "{{policy}}": f"policy:winnow_censor:ratio_rate1h{{{POLICY}}}",
                "{{policy}} at least": f"clamp_min({HISTORY} - {BAND}, 0)",
                "{{policy}} at most": f"clamp_max({HISTORY} + {BAND}, 1)",
            },
            "percentunit",
            alert="WinnowCensorRate",
        ),
        Panel(
            "Draws by verdict",
            "`abandoned` by a probe before the end, `cancelled` because nobody needed them.",
            {"{{verdict}}": rate("winnow_draws_total", "verdict", WINDOW, POLICY)},
            "ops",
            stacked=True,
        ),
        Panel(
            "Draws per image",
            "How many tries an image takes.",
            {
                "{{policy}} mean": mean("winnow_draws_per_image", "policy", WINDOW, POLICY),
                "{{policy}} 95 %": quantile(
                    0.95, "winnow_draws_per_image", "policy", WINDOW, POLICY
                ),
            },
            alert="WinnowDrawsPerImage",
        ),
    ],
)

BELIEVED = Row(
    "Can the judge be believed?",
    [
        Panel(
            "Canary",
            "The verdict on an image that is known to be malign, judged every 15 s.",
            {WHO: f"max by ({JUDGED}) (winnow_canary_verdict{{{POLICY}}})"},
            kind="state-timeline",
            width=12,
            thresholds={"green": None, "red": 1.0},
            texts={
                "0": ("rejected", "green"),
                "1": ("ACCEPTED", "red"),
                "nan": ("no verdict", "orange"),
            },
            alert="WinnowCanaryAccepted",
        ),
        Panel(
            "Certified bound",
            "The malign rate of what leaves is at most this, with the confidence that was fixed "
            "beforehand. A gap means that no certificate covers the policy as it stands.",
            {"{{policy}}": f"max by (policy) (winnow_certificate_bound{{{POLICY}}})"},
            "percentunit",
            width=12,
            alert="WinnowCertificateVoid",
        ),
        scores(
            "Scores of the judge in force",
            "How the judge scores draws. Two clear bands are good: malign below, benign above.",
            "winnow_reward_score",
            "WinnowScoreDrift",
        ),
        Panel(
            "Score drift",
            "Population stability index: the last six hours against the week before. "
            f"0.1 is a shift, {DRIFT:g} a ticket.",
            {WHO: f"policy_judge:winnow_score:psi{{{POLICY}}}"},
            width=12,
            thresholds={"transparent": None, "orange": 0.1, "red": DRIFT},
            alert="WinnowScoreDrift",
        ),
        Panel(
            "Images by check",
            "`true`: an ACCEPTED verdict is on record. `no_judge`: the policy censors nothing. "
            "`false` must never happen.",
            {"{{checked}}": rate("winnow_images_delivered_total", "checked", WINDOW, POLICY)},
            "ops",
            width=12,
            stacked=True,
            alert="WinnowUncheckedImage",
        ),
        Panel(
            "Guard errors",
            "Requests that were refused because the judge could not judge.",
            {"{{policy}}": rate("winnow_guard_errors_total", "policy", WINDOW, POLICY)},
            "reqps",
            width=12,
            alert="WinnowGuardErrors",
        ),
    ],
)

NEXT = Row(
    "Would another judge do better?",
    [
        Panel(
            "Live against shadow",
            "Share of shadowed draws by both verdicts. Where they differ, somebody should look.",
            {
                "{{policy}}: live {{live_verdict}}, shadow {{verdict}}": (
                    f"{SHADOW} / ignoring (verdict, live_verdict) group_left () ({SHADOWED} > 0)"
                )
            },
            "percentunit",
            width=12,
            stacked=True,
            top=1,
        ),
        scores(
            "Scores of the shadow", "How the shadow scores the same draws.", "winnow_shadow_score"
        ),
        Panel(
            "Shadow: draws not scored",
            "It was behind, or its judge failed. It decides nothing, so this only thins the data.",
            {"{{policy}}": rate("winnow_shadow_dropped_total", "policy", WINDOW, POLICY)},
            "ops",
        ),
        Panel(
            "Labels",
            "Labels given in the time shown.",
            {"{{label}}": "sum by (label) (increase(winnow_labels_total[$__range]))"},
        ),
        Panel(
            "Rewards in force",
            "Which version and which judge decides under each policy.",
            {
                "": "max by (policy, version, judge, reward, canary) "
                f"(winnow_reward_info{{{POLICY}}})"
            },
            kind="table",
        ),
    ],
)

TRUST_AND_SAFETY = Dashboard(
    "winnow-trust",
    "Winnow: trust and safety",
    "What is held back, by which judge, and whether it can be believed.",
    [HELD_BACK, BELIEVED, NEXT],
)
