"""The page: one file that needs nothing else, no network and no script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup

from xray_opt.report import sections_evidence as more
from xray_opt.report import sections_facts as facts
from xray_opt.report import sections_front, sections_parts
from xray_opt.report import sections_scores as scores
from xray_opt.report import sections_study as study
from xray_opt.report.html import text
from xray_opt.report.records import Evidence


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its heading, and what makes it of the records."""

    key: str
    title: str
    body: Callable[[Evidence], Markup]


#: The page, from top to bottom. A section more is a line more; what it reads of the chosen run stands in ``ARTIFACTS``.
SECTIONS = (
    Section("short", "In short", scores.headline),
    Section("search", "The search", study.search),
    Section("front", "Pareto front", sections_front.front),
    Section("leaderboard", "Leaderboard", study.leaderboard),
    Section("confirmation", "Confirmation", study.confirmation),
    Section("validation", "Validation films", scores.validation),
    Section("test", "The sealed test split", scores.sealed_test),
    Section("outside", "Other people's films", sections_parts.outside),
    Section("rivals", "LoRA beside other trainings", more.rivals),
    Section("robustness", "Changed films", more.robustness),
    Section("explained", "Where it looks", more.explained),
    Section("data", "Films", facts.data),
    Section("settings", "Settings", facts.settings),
    Section("environment", "Environment", facts.environment),
    Section("commands", "Do it again", facts.commands),
)
#: No script and no address is followed, whatever stands in the records.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
PAGE = Markup("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<p class="warning" role="note">Not for clinical use. A research result on one set of films.</p>
<header>
<h1>{title}</h1>
<p class="note">Made {made} by xray-opt {version} from the study's records.</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}</main>
</body>
</html>
""")


def page(evidence: Evidence) -> str:
    """The HTML page of one study."""
    # A section without a word is not of this study.
    parts = [(one, said) for one in SECTIONS if (said := one.body(evidence))]
    links = Markup("").join(Markup('<a href="#{}">{}</a>\n').format(one.key, one.title) for one, _ in parts)
    body = Markup("").join(_section(one, said) for one, said in parts)
    return str(
        PAGE.format(
            policy=Markup(POLICY),
            title=text(f"Study {evidence.study.name}"),
            style=Markup(files(__package__).joinpath("style.css").read_text(encoding="utf-8")),
            made=text(evidence.made),
            version=text(evidence.version),
            links=links,
            body=body,
        )
    )


def _section(one: Section, said: Markup) -> Markup:
    return Markup('<section id="{0}" aria-labelledby="{0}-head">\n<h2 id="{0}-head">{1}</h2>\n{2}</section>\n').format(
        one.key, one.title, said
    )
