"""Check the settings in the environment."""

from difflib import get_close_matches

from outplan.domain.layout import describe_partitions
from outplan.operations.findings import Finding, not_checked, ok, problem
from outplan.settings import Settings, find_unknown_variables, variable


def check_settings(settings: Settings, wrong: dict[str, str]) -> list[Finding]:
    """Report each variable with a wrong value, and those that no setting reads."""
    found = [
        problem(f"setting {variable(field)}", text, "a worker refuses to start with it: "
                "correct it, or unset it for the default (docs/running.md)")
        for field, text in wrong.items()
    ]  # fmt: skip
    found += [_check_unknown(name) for name in find_unknown_variables()]
    if any(finding.state == "problem" for finding in found):
        return found
    number = settings.partitions
    partitions = (
        "the stored number of partitions" if number is None
        else describe_partitions(number)
    )  # fmt: skip
    summary = f"prefix {settings.prefix}, {partitions}, database {settings.mongo_database}"
    return [ok("settings", summary), *found]


def _check_unknown(name: str) -> Finding:
    known = [variable(field) for field in Settings.model_fields]
    if near := get_close_matches(name, known, 1, cutoff=0.8):
        return problem(f"setting {name}", "no setting reads it", f"did you mean {near[0]}?")
    (finding,) = not_checked([f"setting {name}"], "no setting reads it; it has no effect")
    return finding
