"""docs/rho.md: what it says of the search of rho, from the files of the study."""

import json
from statistics import mean, median

from tests.test_claims import ROOT, claim_tables, claims

from steppe._command import statistics


def shares(cases):
    """What the proposals keep of the best gains that are clear of zero, in per cent, by growing share."""
    kept = [claim_tables._kept(case) for case in cases]
    return sorted(int(each.removesuffix("%")) for each in kept if each != "–")


def test_the_page_of_the_search_says_what_its_file_has():
    every = [case for case in json.loads((claims.RESULTS / "rho_finder.json").read_text()).values() if "sweep" in case]
    text = " ".join((ROOT / "docs" / "rho.md").read_text(encoding="utf-8").split())
    cases = [case for case in every if case["method"].startswith("sam")]
    kept, adaptive = shares(cases), shares(case for case in every if case["method"] == "asam")
    assert f"on the {len(kept)} of {len(cases)} rows whose best gain is clear of zero" in text
    assert f"keeps {kept[0]} to {kept[-1]} % of it, {round(median(kept))} % in the middle" in text
    assert f"within a tenth of the best gain it is on {sum(each >= 90 for each in kept)} of {len(kept)}" in text
    assert f"With ASAM it keeps {adaptive[0]} % where something is to be won" in text and len(adaptive) == 1
    costs = sorted(case["finder"]["in_trainings"] for case in every)
    assert f"a search costs {costs[0]:.1f} to {costs[-1]:.1f} trainings" in text
    own = [gain(case) for case in cases if claim_tables._kept(case) != "–"]
    assert f"clearly above the base on {sum(each.above_zero for each in own)} of those {len(own)}" in text
    assert all(each.mean + each.ci95 > 0 for each in map(gain, every)), "nowhere clearly below it"
    far = [case["best"]["rho"] / mean(rhos(case["finder"])) for case in every]
    assert min(far) >= 0.24 and max(far) <= 4, "between a quarter and four times the proposed one"


def gain(case):
    """Of the proposal over the base, seed by seed."""
    pairs = zip(case["finder"]["tests"], case["base"]["tests"], strict=True)
    return statistics.estimate([case["base"].get("sign", 1) * (found - base) for found, base in pairs])


def rhos(row):
    return row["rho"] if isinstance(row["rho"], list) else [row["rho"]]


def test_the_page_of_the_search_says_what_the_rule_before_did():
    former = json.loads((claims.RESULTS / "rho_finder_upward.json").read_text())
    text = " ".join((ROOT / "docs" / "rho.md").read_text(encoding="utf-8").split())
    sam, few = former["fashion_labels"], former["fashion_labels_samples"]
    below = [f"{100 * (case['base']['test'] - case['finder']['test']):.1f} points" for case in (sam, few)]
    assert f"it proposed {sam['finder']['rho']:g} where {sam['best']['rho']:g} is best" in text
    assert f"{below[0]} **below the base**" in text and f"{below[1]} below" in text
