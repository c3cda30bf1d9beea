"""Tables as people see them."""

from mixc.report import tables


def test_a_plan_is_whole_however_much_there_is_to_say(capsys):
    details = {f"some_{number}_flops": 1.5e12 for number in range(20)}
    tables.plan([{"stage": "build-mixture", "status": "stale", "details": details}])
    shown = capsys.readouterr().out
    assert "build-mixture" in shown and "stale" in shown and "…" not in shown
    assert all(f"some {number} flops: 1.5e+12" in " ".join(shown.split()) for number in range(20))


def test_a_league_says_what_solving_took_as_far_as_it_is_known(capsys):
    same = {"mean": 1.0, "worst": 1.0, "worst_domain": "web", "over_best": 0.0}
    same |= {"low": 0.0, "high": 0.0, "bits_per_byte": {"web": 1.0}}
    costs = {"mine.json": None, "uniform": 0.0, "doremi": 3e12}
    mixes = {name: {**same, "solve_flops": cost} for name, cost in costs.items()}
    tables.league({"mixes": mixes, "seeds": [0], "runs": 3})
    lines = capsys.readouterr().out.splitlines()
    ends = [line.split()[-1] for line in lines if line.split()[:1] in [[name] for name in costs]]
    assert ends == ["unknown", "nothing", "3e+12"]
