"""Tables as people see them."""

from mixc.report import tables


def test_a_plan_is_whole_however_much_there_is_to_say(capsys):
    details = {f"some_{number}_flops": 1.5e12 for number in range(20)}
    tables.plan([{"stage": "build-mixture", "status": "stale", "details": details}])
    shown = capsys.readouterr().out
    assert "build-mixture" in shown and "stale" in shown and "…" not in shown
    assert all(f"some {number} flops: 1.5e+12" in " ".join(shown.split()) for number in range(20))
