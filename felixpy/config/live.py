"""The settings in force on a running agent: this machine's, and below them those of the stream. Pure.

Invariant: a value that cannot be used never stops the others; the next source's counts, and the problem has its object.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from felixpy.config.resolve import ProblemKind, SettingProblem, resolve_stream
from felixpy.config.settings import Settings
from felixpy.config.sources import SettingsSource
from felixpy.model.resources import FelixConfiguration, ResourceKey

_PASSED_OVER = frozenset({ProblemKind.UNKNOWN, ProblemKind.NO_EFFECT})


class LiveSettings:
    """Settings by the latest FelixConfigurations.

    ``problems`` are values that cannot be used, by object; ``passed_over`` what felixpy does not know or have.
    """

    def __init__(self, settings: Settings, sources: Sequence[SettingsSource] = ()) -> None:
        self.settings = settings
        self.problems: dict[ResourceKey, str] = {}
        self.passed_over: frozenset[str] = frozenset()
        self._sources = tuple(sources)

    def take(self, configurations: Iterable[FelixConfiguration], labels: Mapping[str, str]) -> Settings:
        """Resolve everything anew and return the settings in force."""
        known = {str(each.key): each for each in configurations}
        node = self.settings.nodename
        resolved, problems = resolve_stream(self._sources, known.values(), node, labels)
        self._judge(problems, known)
        self.settings = replace(resolved, nodename=node)
        return self.settings

    def _judge(self, problems: Iterable[SettingProblem], known: Mapping[str, FelixConfiguration]) -> None:
        """What this machine's own sources have wrong was said at the start."""
        reasons: defaultdict[ResourceKey, list[str]] = defaultdict(list)
        from_stream = [problem for problem in problems if not problem.local]
        for problem in from_stream:
            if problem.kind not in _PASSED_OVER:
                reasons[known[problem.source].key].append(str(problem))
        self.problems = {key: "; ".join(texts) for key, texts in reasons.items()}
        self.passed_over = frozenset(str(problem) for problem in from_stream if problem.kind in _PASSED_OVER)
