"""Networks that come while the engine runs: by hash, verified, and tried before their first use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from service.engine.networks import SUFFIXES, Networks
from service.engine.runner import Runner
from service.errors import BackendUnavailable
from service.ports import LOADED_AS, Find, SamplingPlan

log = logging.getLogger("winnow.engine")


class Loader:
    """Adds networks to a runner; any thread may call it while the engine's thread runs."""

    def __init__(self, runner: Runner, networks: Networks, find: Find) -> None:
        self._runner = runner
        self._networks = networks
        self._find = find
        self._lock = threading.Lock()

    def missing(self, plan: SamplingPlan) -> dict[str, str]:
        """The networks that a plan needs and that are not there, by what they are loaded as."""
        runner, wanted = self._runner, {}
        if plan.guide is not None and plan.guide not in runner.guides:
            wanted[LOADED_AS[plan.method.guidance]] = plan.guide
        if plan.clean_guide is not None and plan.clean_guide not in runner.clean_guides:
            wanted["clean_guide"] = plan.clean_guide
        if plan.probe is not None and plan.probe not in runner.probes:
            wanted["probe"] = plan.probe
        return wanted

    def load(self, weights: Mapping[str, str]) -> None:
        """Load what is not there yet, part by part; a judge is none of the backbone's.

        Blocks. Raises BackendUnavailable, and what could not be verified or tried stays out.
        """
        for part, name in weights.items():
            if part in SUFFIXES:
                with self._lock:
                    self._load(part, name)

    def _load(self, part: str, name: str) -> None:
        runner, networks = self._runner, self._networks
        try:
            if part == "clean_guide":
                if name not in runner.clean_guides:
                    reward = networks.clean_guide(self._find(name, SUFFIXES[part]))
                    networks.try_clean_guide(reward)
                    runner.add_clean_guide(name, reward)
            elif part == "probe":
                if name not in runner.probes:
                    probe = networks.probe(self._find(name, SUFFIXES[part]))
                    networks.try_probe(probe)
                    runner.add_probe(name, probe)
            elif name not in runner.guides:
                guide = networks.guide(part, self._find(name, SUFFIXES[part]))
                networks.try_guide(guide)
                runner.add_guide(name, guide)
        except Exception as error:  # whatever is wrong with it, it is not used
            log.error("%s %s was refused", part, name, exc_info=error)
            raise BackendUnavailable(f"{part} {name} cannot be loaded: {error}") from error
