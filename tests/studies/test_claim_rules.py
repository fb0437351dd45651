"""Rules decide as they say, and every claim of the study can come out in every way."""

import pytest

from homeostat.probes.results import Estimate
from homeostat.studies.catalogue import STUDIES
from homeostat.studies.claims import Above, Below, Claim, Given, decide, not_run
from homeostat.studies.path_independence import path_independence

NAN = float("nan")


def around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half, 20)


@pytest.mark.parametrize(
    ("rule", "quantities", "verdict"),
    [
        (Above(0.5), [around(0.7, 0.1)], "holds"),
        (Above(0.5), [around(0.7, 0.2)], "not decided"),  # the interval touches the threshold
        (Above(0.5), [around(0.3, 0.1)], "does not hold"),
        (Above(0.5), [around(0.7, 0.1), around(0.3, 0.1)], "does not hold"),  # every one has to be above
        (Above(0.5), [around(0.7, 0.1), around(0.5, 0.1)], "not decided"),
        (Above(0.0), [around(0.0, 0.0)], "not decided"),  # no difference at all refutes nothing
        (Above(0.5), [], "not decided"),
        (Above(0.5), [Estimate(NAN, NAN, NAN, 0)], "not decided"),
        (Above(0.5), [Estimate(0.9, NAN, NAN, 1)], "not decided"),  # no interval
        (Above(0.5), [Estimate(0.9, NAN, 0.4, 1)], "not decided"),  # half an interval
        (Below(0.0), [around(-0.2, 0.1)], "holds"),
        (Below(0.0), [around(0.2, 0.1)], "does not hold"),
        (Below(0.0), [around(-0.1, 0.2)], "not decided"),
        (Above(0.9, basis="value"), [Estimate(0.9, 0.5, 1.0, 20)], "holds"),
        (Above(0.9, basis="value"), [Estimate(0.89, 0.5, 1.0, 20)], "does not hold"),
        (Below(0.9, basis="value"), [Estimate(0.95, 0.5, 1.0, 20)], "does not hold"),
        (Above(0.9, basis="value"), [Estimate(NAN, NAN, NAN, 0)], "not decided"),
    ],
)
def test_a_rule_decides_as_it_says(rule: Above | Below, quantities: list[Estimate], verdict: str) -> None:
    claim = Claim("name", "text", "paper", "quantity", rule)
    assert decide(claim, [("", quantity) for quantity in quantities]).verdict == verdict


CLAIMS = [claim for entry in STUDIES.values() for section in entry.make("cpu").sections for claim in section.claims]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_claim_can_come_out_in_every_way(claim: Claim) -> None:
    sign = 1 if isinstance(claim.rule, Above) else -1
    level = claim.rule.threshold
    met = [("", around(1.0 if claim.given and isinstance(claim.given.rule, Above) else 0.0, 0.01))]
    found = {not_run(claim).verdict, decide(claim, []).verdict}
    for shift in (-0.1, 0.0, 0.1):
        found.add(decide(claim, [("", around(level + sign * shift, 0.05))], given=met).verdict)
    assert found == {"holds", "does not hold", "not decided", "not run"}


def test_a_claim_about_nothing_is_left_open_and_says_why() -> None:
    needs = Given("nets that answer right", Above(0.5))
    claim = Claim("unchanged", "text", "paper", "attacked minus clean", Above(-0.02), needs)
    found = decide(claim, [("all", around(0.0, 0.01))], "Few.", given=[("clean", around(0.1, 0.05))])
    assert found.verdict == "not decided"
    assert found.note == (
        "Left open, since it needs nets that answer right (whole interval above 0.5): "
        "clean 0.100 [0.050, 0.150] n=20. Few."
    )
    assert decide(claim, [("all", around(0.0, 0.01))]).verdict == "not decided"
    assert decide(claim, [("all", around(0.0, 0.01))], given=[("clean", around(0.9, 0.05))]).verdict == "holds"


def test_claims_have_names_of_their_own() -> None:
    names = [claim.name for claim in CLAIMS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("preset", ["smoke", "cpu", "full"])
@pytest.mark.parametrize("name", STUDIES)
def test_no_two_jobs_or_figures_share_a_name(name: str, preset: str) -> None:
    study = STUDIES[name].make(preset)
    assert study.name == name
    labels = [job.label for job in study.jobs()]
    assert len(set(labels)) == len(labels), "two jobs would be shown under one name"


@pytest.mark.parametrize("name", STUDIES)
def test_seeds_of_ones_own_choice_reach_every_net(name: str) -> None:
    one, two = ([job for job in STUDIES[name].make("cpu", seeds=seeds).jobs() if job.kind == "Net"] for seeds in (1, 2))
    assert {job.seed for job in one} == {0}  # type: ignore[attr-defined]
    assert {job.seed for job in two} >= {0, 1}  # type: ignore[attr-defined]


@pytest.mark.parametrize("preset", ["smoke", "cpu", "full"])
def test_every_preset_has_eight_sections_and_jobs_of_their_own(preset: str) -> None:
    study = path_independence(preset)
    assert [section.number for section in study.sections] == list(range(1, 9))
    assert study.parts == ("prefix", "stress", "tasks", "mazes")
    labels = [(job.label, job.key) for job in study.jobs()]
    assert len({label for label, _ in labels}) == len(labels), "two jobs would be shown under one name"
    if preset != "smoke":
        nets = [job for job in study.jobs(["prefix"]) if job.kind == "Net"]
        assert len(nets) >= 12
        assert {job.recipe.name for job in nets} >= {"fixed", "promote", "penalise", "implicit", "phantom", "shallow"}  # type: ignore[attr-defined]
