"""Every test here is a fuzzer; what each one fed and what came of it is printed at the end."""

import json

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "fuzz":
            item.add_marker(pytest.mark.fuzz)


@pytest.fixture
def reported(record_property):
    """Puts a tally into the report at the end."""
    return lambda tally: record_property("fuzz", json.dumps(tally.row()))


def pytest_terminal_summary(terminalreporter):
    rows = [
        json.loads(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "fuzz"
    ]
    if not rows:
        return
    write = terminalreporter.write_line
    write(f"{'fuzzed':<14}{'cases':>8}{'accepted':>10}{'refused':>9}{'faults':>8}{'s':>8}  kinds")
    columns = ("cases", "accepted", "refused", "faults", "seconds")
    for row in sorted(rows, key=lambda row: row["fuzzer"]):
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(row["kinds"].items(), key=lambda one: -one[1]))
        figures = (row[column] for column in columns)
        write("{:<14}{:>8}{:>10}{:>9}{:>8}{:>8}  ".format(row["fuzzer"], *figures) + kinds)
    total = {column: sum(row[column] for row in rows) for column in columns}
    write("{:<14}{:>8}{:>10}{:>9}{:>8}{:>8.0f}".format("all", *total.values()))
