"""What became of a suite, out of its report: one line of counts, and the names of what failed or did not run.

usage: counts.py SUITE REPORT.xml SECONDS [EXPECTED.txt]

Ends with 1 if a spec failed, none ran, or an expected one did not.

EXPECTED.txt has the names of the specs that are known to pass, one a line: a suite of which a part is not run any more,
because a focus, a skip or upstream has changed, is no success.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def main(suite: str, report: str, seconds: str, expected: str = "") -> int:
    if not Path(report).exists():
        print(f"{suite}: no report: see the log beside {report}")
        return 1
    passed: set[str] = set()
    failed: set[str] = set()
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"]
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(name)
        elif name.startswith("[It]") and case.find("skipped") is None:
            passed.add(name)
    known = set(Path(expected).read_text().splitlines()) if expected and Path(expected).exists() else set()
    missing = known - passed - failed
    print(f"{suite}: {len(passed)} of {len(passed | failed | missing)} passed in {seconds} s")
    for word, names in (("failed", failed), ("not run", missing)):
        for name in sorted(names):
            print(f"  {word}: {name}")
    return 1 if failed or missing or not passed else 0


sys.exit(main(*sys.argv[1:]))
