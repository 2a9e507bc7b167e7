"""Problems are said once: when they begin, when they change, when they end."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from felixpy.model.resources import Kind, ResourceKey
from felixpy.observe.metrics import Metrics
from felixpy.observe.problems import MAX_IGNORED, Problems

POD = ResourceKey(Kind.WORKLOAD_ENDPOINT, "pod", "default")
POOL = ResourceKey(Kind.IP_POOL, "pool")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("n1")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_problem_is_logged_once_at_each_change(metrics: Metrics) -> None:
    problems = Problems(metrics)
    with capture_logs() as logs:
        for reason in ("no route", "no route", "no interface", "no interface", "", ""):
            problems.set(POD, reason)
    assert logs == [
        {"event": "problem", "log_level": "warning", "object": "WorkloadEndpoint default/pod", "reason": "no route"},
        {"event": "problem", "log_level": "warning", "object": str(POD), "reason": "no interface"},
        {"event": "problem solved", "log_level": "info", "object": str(POD), "was": "no interface"},
    ]


def test_no_problem_at_all_is_not_worth_a_word(metrics: Metrics) -> None:
    problems = Problems(metrics)
    with capture_logs() as logs:
        problems.set(POD, "")
    assert (logs, len(problems), problems.has_news, value(metrics, "felixpy_problems", kind="WorkloadEndpoint")) == (
        [],
        0,
        False,
        None,
    )


def test_problems_are_counted_by_kind_and_listed_by_object(metrics: Metrics) -> None:
    problems = Problems(metrics)
    other = POD._replace(name="another")
    for key, reason in ((POD, "b"), (POOL, "a"), (other, "c"), (POD, "d")):
        problems.set(key, reason)
    assert value(metrics, "felixpy_problems", kind="WorkloadEndpoint") == 2
    assert value(metrics, "felixpy_problems", kind="IPPool") == 1
    assert problems.items() == [(POOL, "a"), (other, "c"), (POD, "d")]
    assert (problems.get(POD), problems.get(POOL._replace(name="x"))) == ("d", "")
    assert set(problems) == {POD, POOL, other}
    problems.set(POD, "")
    assert (len(problems), value(metrics, "felixpy_problems", kind="WorkloadEndpoint")) == (2, 1)


def test_what_is_ignored_is_logged_once_and_counted_always(metrics: Metrics) -> None:
    problems = Problems(metrics)
    with capture_logs() as logs:
        for what in ("kind NetworkPolicy", "kind NetworkPolicy", "IPPool field spec.foo"):
            problems.ignored(what)
    assert [log["what"] for log in logs] == ["kind NetworkPolicy", "IPPool field spec.foo"]
    assert value(metrics, "felixpy_ignored_total", what="kind NetworkPolicy") == 2
    assert value(metrics, "felixpy_ignored_total", what="IPPool field spec.foo") == 1


def test_a_stream_of_ever_new_names_uses_no_more_memory_and_no_more_log(metrics: Metrics) -> None:
    problems = Problems(metrics)
    with capture_logs() as logs:
        for number in range(MAX_IGNORED + 500):
            problems.ignored(f"kind K{number}")
        problems.ignored("kind K0")
    assert len(logs) == MAX_IGNORED
    assert value(metrics, "felixpy_ignored_total", what="others") == 500
    assert value(metrics, "felixpy_ignored_total", what="kind K0") == 2
    assert value(metrics, "felixpy_ignored_total", what=f"kind K{MAX_IGNORED}") is None
