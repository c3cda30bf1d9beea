"""What the ten-domain experiment found, as markdown: tables, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.tables import table

from mixc.solve.check import Comparison, judge

NOISE = "noise"
PAIR = ("docs-en", "docs-en-copy")
BASES = ("natural", "uniform")  # the mixes that all others are held against


@dataclass(frozen=True)
class Answer:
    """Weights by domain, and the schedule if they change along a run: each mix until a part of it.

    `plain_runs` is what finding them took, in plain runs of the small model.
    """

    weights: Mapping[str, float]
    schedule: Sequence[tuple[float, Mapping[str, float]]] = ()
    plain_runs: float = 0.0

    def share(self, names: Sequence[str]) -> float:
        """What domains get together."""
        return sum(self.weights.get(name, 0.0) for name in names)


Answers = Mapping[str, Answer]


def on(found: Comparison, domains: Sequence[str]) -> Comparison:
    """The same comparison, scored on some of the domains alone."""
    kept = [found.domains.index(name) for name in domains]
    return replace(
        found,
        domains=tuple(domains),
        weights=found.weights[:, kept],
        bits=found.bits[:, :, kept],
    )


def text_alone(found: Comparison) -> Comparison:
    """The comparison without the noise, and with the copied text once."""
    return on(found, [name for name in found.domains if name not in (NOISE, PAIR[1])])


def full_table(found: Comparison, answers: Answers, single: Answers) -> str:
    """The league of all mixes; `single` are the answers without the copy, as far as there are."""
    text = text_alone(found)
    rows = [
        [
            *_scores(found, name),
            f"{text.mean(name).mean():.3f}",
            f"{answers[name].share([NOISE]):.3f}",
            _pair(name, answers, single),
            *_about(answers[name]),
        ]
        for name in _ranked(found)
    ]
    head = [*_score_heads("all domains"), "text alone", "noise"]
    return table([*head, f"pair ({PAIR[0]} alone)", "trained on", "solve, plain runs"], rows)


def target_table(found: Comparison, answers: Answers) -> str:
    """The league whose score is the loss on one domain, which is not trained on."""
    rows = [
        [*_scores(found, name), _heaviest(answers[name]), *_about(answers[name])]
        for name in _ranked(found)
    ]
    head = [*_score_heads(found.domains[0]), "most weight"]
    return table([*head, "trained on", "solve, plain runs"], rows)


def verdicts(found: Comparison, answers: Answers, single: Answers, simple: Sequence[str]) -> str:
    """What the league says of the methods, those of `simple` aside, a line each."""
    solved = [name for name in found.names if name not in simple]
    natural = answers["natural"].share([NOISE])
    lines = [
        f"all domains: {verdict(found, solved)}",
        f"text alone: {verdict(text_alone(found), solved)}",
        f"{NOISE} gets less than its natural {natural:.3f}: "
        + _split(solved, lambda name: answers[name].share([NOISE]) < natural),
    ]
    if both := [name for name in solved if name in single]:
        lines.append(
            f"the pair gets no more than {PAIR[0]} alone: "
            + _split(both, lambda name: _no_more(name, answers, single))
        )
    return "\n".join(f"- {line}" for line in lines)


def verdict(found: Comparison, solved: Sequence[str]) -> str:
    """Which solved mixes beat natural and uniform beyond doubt, and what the best comes to."""
    if not solved:
        return "nothing was solved"
    best = min(solved, key=lambda name: float(found.mean(name).mean()))
    better = [name for name in solved if judge(found, name, BASES).outcome == "better"]
    said = f"better than {' and '.join(BASES)} beyond doubt: {', '.join(better) or 'none'}"
    return f"{said}; of the best, {judge(found, best, BASES).text}"


def _ranked(found: Comparison) -> list[str]:
    return sorted(found.names, key=lambda name: float(found.mean(name).mean()))


def _score_heads(what: str) -> list[str]:
    return ["mix", f"bits/byte, {what}", *(f"less than `{name}`" for name in BASES)]


def _scores(found: Comparison, name: str) -> list[str]:
    return [f"`{name}`", f"{found.mean(name).mean():.3f}", *(_less(found, name, b) for b in BASES)]


def _less(found: Comparison, name: str, base: str) -> str:
    if name == base:
        return ""
    less = found.against(base, name)
    return f"{less.mean:.3f} ({less.low:.3f} to {less.high:.3f})"


def _about(answer: Answer) -> list[str]:
    kind = f"{len(answer.schedule)} stages" if answer.schedule else "one mix"
    return [kind, f"{answer.plain_runs:.3g}"]


def _pair(name: str, answers: Answers, single: Answers) -> str:
    together = f"{answers[name].share(PAIR):.3f}"
    if name not in single:
        return together
    word = "yes" if _no_more(name, answers, single) else "no"
    return f"{together} ({single[name].share(PAIR):.3f}) {word}"


def _no_more(name: str, answers: Answers, single: Answers) -> bool:
    """Whether the pair gets no more than the one domain does where it stands alone."""
    return answers[name].share(PAIR) <= single[name].share(PAIR)


def _heaviest(answer: Answer) -> str:
    names = sorted(answer.weights, key=lambda name: -answer.weights[name])[:3]
    return ", ".join(f"{name} {answer.weights[name]:.2f}" for name in names)


def _split(names: Sequence[str], holds: Callable[[str], bool]) -> str:
    """Of which it holds, and of which not."""
    yes = ", ".join(name for name in names if holds(name))
    no = ", ".join(name for name in names if not holds(name))
    return f"by {yes or 'none'}; not by {no or 'none'}"
