"""A skipped test has shown nothing: where every test must run (SLUICE_NO_SKIPS=1), it is a failure."""

import os


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus == 0 and os.environ.get("SLUICE_NO_SKIPS") == "1" and reporter and reporter.stats.get("skipped"):
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    """What tests measured is worth reading also when they pass."""
    for report in terminalreporter.stats.get("passed", []):
        for line in report.capstdout.splitlines():
            terminalreporter.write_line(line)
