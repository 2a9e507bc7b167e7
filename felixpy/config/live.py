"""The settings in force on a running agent: this machine's, and below them those of the stream. Pure.

Invariant: a value that cannot be used never stops the others; the next source's counts, and the problem has its object.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from felixpy.config.resolve import ProblemKind, Refuses, SettingProblem, resolve, resolve_stream
from felixpy.config.settings import DECLARATIONS, Settings
from felixpy.config.sources import SettingsSource
from felixpy.model.resources import FelixConfiguration, ResourceKey

LOCAL_ONLY = tuple(declaration for declaration in DECLARATIONS.values() if declaration.local_only)
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
        self._fixed = {each.attribute: getattr(settings, each.attribute) for each in LOCAL_ONLY}

    def renew(self, sources: Sequence[SettingsSource]) -> tuple[str, ...]:
        """Take this machine's sources anew, for the next ``take``.

        Returns the names of settings that are other ones now, but are as at the start until the agent starts again.
        """
        self._sources = tuple(sources)
        newer, _ = resolve(self._sources)
        newer = replace(newer, nodename=newer.nodename or self.settings.nodename)  # not set: the host name
        return tuple(each.name for each in LOCAL_ONLY if getattr(newer, each.attribute) != self._fixed[each.attribute])

    @property
    def of_this_machine(self) -> Settings:
        """What the settings would be without the stream."""
        return resolve(self._sources)[0]

    def take(
        self,
        configurations: Iterable[FelixConfiguration],
        labels: Mapping[str, str],
        refuses: Refuses = lambda attribute, value: "",
    ) -> Settings:
        """Resolve everything anew and return the settings in force.

        ``refuses`` says what this node must not take of the stream: then the next source's value counts.
        """
        known = {str(each.key): each for each in configurations}
        resolved, problems = resolve_stream(self._sources, known.values(), self.settings.nodename, labels, refuses)
        self._judge(problems, known)
        self.settings = replace(resolved, **self._fixed)
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
