"""What the documents say that a program can check: links, commands, settings, examples, files and functions.

``python -m tests.test_docs`` writes the table of settings into docs/settings.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from felixpy.calc.graph import HOST, Calculation
from felixpy.calc.host import Host, HostAddress
from felixpy.commands.main import app
from felixpy.config import DECLARATIONS, Settings, load_toml, resolve, settings_table_markdown
from felixpy.hub.run import METRICS as HUB_METRICS
from felixpy.model.documents import Document, load_directory, load_text
from felixpy.model.net import FAMILIES, Family, Net, parse_address
from felixpy.model.resources import FelixConfiguration, Kind, Update, WorkloadEndpoint
from felixpy.observe.metrics import Metrics
from felixpy.observe.policy_packets import PolicyPackets
from felixpy.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SETTINGS = ROOT / "docs/settings.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->"
TOPIC_ROOT = Settings().mqtt_topic_root
REGENERATE = ".venv/bin/python -m tests.test_docs"
CONTEXT = click.Context(app)
COMMANDS = {name: app.get_command(CONTEXT, name) for name in sorted(app.list_commands(CONTEXT))}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str | None = None) -> Iterator[str]:
    """Texts of fenced blocks, of one language or of all."""
    for found, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        if language is None or found == language:
            yield text


def prose(page: Path) -> str:
    return re.sub(r"^```\w*\n.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors that a forge makes of headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def with_settings(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{settings_table_markdown()}\n{END}{after}"


# --- links and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = {README}, [README]
    while new:
        page = new.pop()
        links = {(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())}
        new += (links & set(PAGES)) - reached
        reached |= links & set(PAGES)
    assert [name_of(page) for page in PAGES if page not in reached] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths in code type that begin with a folder of the project."""
    named = set(re.findall(r"`((?:felixpy|tests|docs|config|systemd|\.ci)/[\w./-]*)`", page.read_text())) - {TOPIC_ROOT}
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_functions_of_the_walk_are_in_their_files() -> None:
    rows = re.findall(
        r"^\| \d+ \| `(felixpy/[\w/]+\.py)` \| (.+?) \|", (ROOT / "docs/architecture.md").read_text(), re.M
    )
    assert len(rows) >= 8
    for path, names in rows:
        code = (ROOT / path).read_text()
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", names):
            assert re.search(rf"\b(?:def|class) {name}\b", code), f"{path} has no {name}"


# --- commands ----------------------------------------------------------------------------------------------------


CALL = re.compile(r"^(?:[•$] *)*(?:sudo (?:-E )?|\w+=\S+ |\S*/)*felixpy +(\S.*)$")


def calls(page: Path) -> list[list[str]]:
    """Calls of felixpy: lines of blocks and code in prose, without comments and what they are piped into."""
    lines = [line for block in blocks(page) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", prose(page))
    found = (CALL.match(re.split(r" +[#|] ", line)[0]) for line in lines)
    return [match[1].split() for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_options_exist(page: Path) -> None:
    for command, *arguments in calls(page):
        assert command in COMMANDS, f"felixpy {command}"
        called = COMMANDS[command]
        if arguments and (sub_commands := getattr(called, "commands", None)):
            called = sub_commands[arguments[0]]
        parameters = called.params
        known = {option for one in parameters for option in (*one.opts, *one.secondary_opts)}
        options = {argument for argument in arguments if argument.startswith("-")}
        assert options <= {*known, "--help"}, f"felixpy {command} {arguments}"


def test_calls_are_found_in_the_readme() -> None:
    assert {call[0] for call in calls(README)} == set(COMMANDS)


def test_the_readme_has_every_command() -> None:
    rows = re.findall(r"^\| `felixpy (\w+)` \|", README.read_text(), re.MULTILINE)
    assert sorted(rows) == [*COMMANDS]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    example = result.output.partition("Examples:")[2]
    assert f"felixpy {command}" in example


# --- settings ----------------------------------------------------------------------------------------------------


def test_the_table_of_settings_is_current() -> None:
    text = SETTINGS.read_text()
    assert text == with_settings(text), f"the table of settings is old; write it anew with: {REGENERATE}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_that_are_named_exist(page: Path) -> None:
    variables = {declaration.variable for declaration in DECLARATIONS.values()}
    named = set(re.findall(r"\bFELIX_[A-Z0-9]+\b", page.read_text()))
    assert sorted(named - variables) == []


def test_the_settings_file_is_good_and_its_comments_show_defaults() -> None:
    path = ROOT / "config/felixpy.toml"
    assert resolve([load_toml(path)]) == (Settings(), ())


def test_the_settings_file_is_good_with_everything_in_it(tmp_path: Path) -> None:
    path = tmp_path / "felixpy.toml"
    text, count = re.subn(r"^# (?=\w+ = )", "", (ROOT / "config/felixpy.toml").read_text(), flags=re.MULTILINE)
    path.write_text(text)
    settings, problems = resolve([load_toml(path)])
    assert problems == ()
    assert count >= 15
    assert settings.mqtt_host == "broker.example"
    local = {name for name in Settings.__slots__ if name.startswith("mqtt_")} | {"nodename"}
    assert [name for name in Settings.__slots__ if name not in local and differs(settings, name)] == []


def differs(settings: Settings, name: str) -> bool:
    return bool(getattr(settings, name) != getattr(Settings(), name))


# --- examples ----------------------------------------------------------------------------------------------------


def resources(documents: Iterator[object]) -> list[Document]:
    found = list(documents)
    assert found
    bad = [str(document) for document in found if not isinstance(document, Document) or document.resource is None]
    assert bad == []
    return [document for document in found if isinstance(document, Document)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_in_documents_can_be_pasted(page: Path) -> None:
    ignored: list[str] = []
    for text in blocks(page, "yaml"):
        if "apiVersion" in text:
            resources(load_text(text.encode(), name_of(page), ignored.append))
        else:
            assert list(yaml.safe_load_all(text))
    assert ignored == []


@pytest.mark.parametrize(
    ("example", "families"), [("dual-stack", FAMILIES), ("ipv6-only", (Family.V6,))], ids=["dual-stack", "ipv6-only"]
)
def test_an_example_gives_both_nodes_their_routes_without_a_problem(
    example: str, families: tuple[Family, ...], tmp_path: Path
) -> None:
    (tmp_path / "x.yaml").write_text((ROOT / f"config/examples/{example}.yaml").read_text())
    ignored: list[str] = []
    documents = resources(load_directory(tmp_path, ignored.append))
    assert ignored == []
    for node in ("node1", "node2"):
        check_node(node, documents, families)


def check_node(name: str, documents: list[Document], families: tuple[Family, ...]) -> None:
    """Everything of the example counts on a node of the example's network: its own workload, the other node's block."""
    store = Store(name)
    for document in documents:
        resource = document.resource
        assert resource is not None
        store.apply(Update(resource.key, resource))  # type: ignore[arg-type]
    addresses = {
        Family.V4: HostAddress("eth0", Net(parse_address("172.31.0.9"), 24)),
        Family.V6: HostAddress("eth0", Net(parse_address("fd00:31::9"), 64)),
    }
    host = Host(tuple(addresses[family] for family in families))
    settings = Settings(ipv4_support=Family.V4 in families)
    calculation = Calculation(store, settings, host)
    entries = calculation.calculate({HOST, *store.all_keys()})
    assert calculation.problems == {}
    routes = [str(value) for value in entries.values() if type(value).__name__ in ("Route", "Nexthop")]
    own = [e.interface for e in store.endpoints.values() if isinstance(e, WorkloadEndpoint) and e.node == name]
    for family in families:
        assert sum("via" in route and "onlink" in route for route in routes) == len(families), family
    assert sum(route == f"dev {own[0]}" for route in routes) == len(families)
    assert routes.count("blackhole") == len(families)
    assert not any(isinstance(d.resource, FelixConfiguration) for d in documents)
    assert {d.resource.key.kind for d in documents if d.resource} >= {Kind.IP_POOL, Kind.NODE, Kind.WORKLOAD_ENDPOINT}


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_the_page_of_metrics_has_every_metric_with_its_type_and_labels() -> None:
    rows = re.findall(
        r"^\| `(felix(?:py)?_\w+)` \| (\w+) \| ([^|]*)\|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE
    )
    told = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert told == metrics_of_the_code()


def metrics_of_the_code() -> dict[str, tuple[str, tuple[str, ...]]]:
    found = {one.name: (one.kind, one.labels) for one in Metrics("n1").counted}
    return found | {PolicyPackets.name: ("counter", PolicyPackets.labels)}


def test_metrics_of_felix_that_are_said_to_be_missing_are_missing() -> None:
    section = (ROOT / "docs/metrics.md").read_text().partition("### What Felix has and felixpy has not")[2]
    missing = re.findall(r"`([a-z_]+)(\*?)`", section.partition("## Health")[0])
    ours = [name.removeprefix("felix_") for name in metrics_of_the_code() if name.startswith("felix_")]
    assert len(missing) > 20
    assert [one for one in ours for name, star in missing if (one.startswith(name) if star else one == name)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_metrics_that_are_named_exist(page: Path) -> None:
    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    known = {name + end for name, (kind, _) in metrics_of_the_code().items() for end in ("", *ends.get(kind, ()))}
    named = set(re.findall(r"\b(felix(?:py)?_[a-z]\w+)", page.read_text()))
    assert sorted(named - known - HUB_METRICS.keys() - {"felixpy_test"}) == []


# --- tests -------------------------------------------------------------------------------------------------------


TEST_FILES = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "tests").rglob("test_*.py"))}
NAMED_TEST = re.compile(
    r"`(?=…::|[^`]*test_)(?:(?P<file>…|[\w/]*test_\w+\.py)(?:::)?)?(?P<test>test_\w+)?(?P<more>…)?`"
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_that_are_named_exist(page: Path) -> None:
    """A file by its whole path or an end of it that no other has; ``…::`` is the file named before it."""
    wrong, file = [], ""
    for named in NAMED_TEST.finditer(prose(page)):
        if named["file"] not in (None, "…"):
            files = [one for one in TEST_FILES if one == named["file"] or one.endswith(f"/{named['file']}")]
            file = files[0] if len(files) == 1 else ""
        test = f"{named['test']}{'' if named['more'] else '('}" if named["test"] else ""
        if not file or not named["file"] or f"def {test}" not in TEST_FILES[file].read_text():
            wrong.append(named[0])
    assert wrong == []


# --- the other files ---------------------------------------------------------------------------------------------


def test_version_of_the_changelog_is_the_package_s() -> None:
    import felixpy

    assert re.search(rf"^## {re.escape(felixpy.__version__)} \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


if __name__ == "__main__":
    SETTINGS.write_text(with_settings(SETTINGS.read_text()))
