"""What became of a suite, out of its report: one line of counts, and the names of what failed.

usage: counts.py SUITE REPORT.xml SECONDS      ends with 1 if a spec failed, or if none ran
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def main(suite: str, report: str, seconds: str) -> int:
    if not Path(report).exists():
        print(f"{suite}: no report: see the log beside {report}")
        return 1
    passed, failed = [], []
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is not None or not case.attrib["name"].startswith("[It]"):
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append(case.attrib["name"])  # what is done before and after all specs
            continue
        bad = case.find("failure") is not None or case.find("error") is not None
        (failed if bad else passed).append(case.attrib["name"])
    print(f"{suite}: {len(passed)} of {len(passed) + len(failed)} passed in {seconds} s")
    for name in failed:
        print(f"  failed: {name}")
    return 1 if failed or not passed else 0


sys.exit(main(*sys.argv[1:]))
