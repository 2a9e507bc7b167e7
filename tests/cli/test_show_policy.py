"""``felixpy show policies``, ``classes`` and ``selectors``: of a folder, on a node without kernel state."""

from __future__ import annotations

from felixpy.agent.agent import Agent
from felixpy.commands import policy_lines
from felixpy.config import Settings
from felixpy.model.documents import Document, load_text
from felixpy.model.resources import Absent, Update

WORLD = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: web}
spec:
  selector: app == 'web'
  ingress:
    - {action: Allow, source: {selector: app == 'db'}}
    - {action: Deny, later: 1}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: first}
spec: {selector: app == 'web', tier: kube-admin, order: 5, egress: [{action: Allow}]}
---
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: later}
spec: {selector: all()}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: a, namespace: x, labels: {app: web}}
spec: {node: n1, interfaceName: cali1, ipNetworks: [10.0.0.1]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: b, namespace: x, labels: {app: db}}
spec: {node: n2, interfaceName: cali1, ipNetworks: [10.0.0.2, "fd00::2"]}
"""


def agent_of(text: str) -> Agent:
    agent = Agent(Settings(nodename="n1"), ())
    for document in load_text(text.encode(), "world.yaml"):
        assert isinstance(document, Document) and document.resource is not None
        assert not isinstance(document.resource, Absent)
        agent.calculation.calculate(agent.store.apply(Update(document.resource.key, document.resource)))
    agent.calculation.complete()
    return agent


def test_policies_classes_and_selectors() -> None:
    agent = agent_of(WORLD)
    shown = [(line.entry, line.wanted) for line in policy_lines.policies(agent)]
    assert shown == [
        ("GlobalNetworkPolicy first", "tier kube-admin, order 5, rules: egress 1; 1 endpoints"),
        ("StagedGlobalNetworkPolicy later", "tier default, last, staged: never enforced"),
        ("GlobalNetworkPolicy web", "tier default, last, rules: ingress 2; 1 endpoints"),
    ]
    assert policy_lines.policies(agent)[2].note.endswith("the rule denies everything")
    assert {(line.entry, line.wanted) for line in policy_lines.classes(agent)} == {
        ("ingress 1", "default [web], deny; 1 endpoints"),
        ("egress 1", "kube-admin [first], deny; 1 endpoints"),
    }
    (line,) = policy_lines.selectors(agent)
    assert (line.wanted, line.kernel, line.note) == ("app == 'db'", "2 members", "named by web")
