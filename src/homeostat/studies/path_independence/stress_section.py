"""Section 3: the stress test, where the start is chosen by an adversary (the paper's Table 1)."""

from collections.abc import Callable
from dataclasses import dataclass

from homeostat.probes.attacks.attack import AttackObjective
from homeostat.probes.results import Estimate
from homeostat.studies.claims import Above, Below, Claim, Given, decide
from homeostat.studies.figures import Axis, Table
from homeostat.studies.measures import Attacked, Followed
from homeostat.studies.nets import Net
from homeostat.studies.path_independence.mazes_section import maze_nets
from homeostat.studies.path_independence.prefix_nets import prefix_nets
from homeostat.studies.path_independence.presets import Plan, Preset
from homeostat.studies.reading import dots_by_category, estimate, in_figures, in_percent
from homeostat.studies.statistics import change, over_seeds
from homeostat.studies.study import Content, Section, Values

_OBJECTIVES: tuple[AttackObjective, ...] = ("answer", "latent")

_RECIPES = ("path-independent", "fixed", "promote", "penalise")

_CAN_LOSE = Given("nets that answer right before the attack, by exact accuracy", Above(0.5))

UNCHANGED = Claim(
    "path-independent nets withstand the attack",
    "Accuracy of path-independent nets does not change when the start is adversarial",
    "100 % before and after",
    "exact accuracy on prefix sums, attacked minus clean, path-independent recipe",
    Above(-0.02),
    _CAN_LOSE,
)
BROKEN = Claim(
    "other nets do not",
    "Accuracy of other nets falls to nothing when the start is adversarial",
    "66.7 % before, 0 % after (prefix sums)",
    "exact accuracy on prefix sums under attack, fixed recipe",
    Below(0.5),
    _CAN_LOSE,
)
MAZES_UNCHANGED = Claim(
    "path-independent maze nets withstand the attack",
    "Accuracy of path-independent maze nets does not change when the start is adversarial",
    "100 % before and after",
    "exact accuracy on mazes, attacked minus clean, path-independent recipe",
    Above(-0.05),
    _CAN_LOSE,
)
MAZES_BROKEN = Claim(
    "other maze nets do not",
    "Accuracy of other maze nets falls to nothing when the start is adversarial",
    "87.1 % before, 0 % after",
    "exact accuracy on mazes under attack, fixed recipe",
    Below(0.5),
    _CAN_LOSE,
)


@dataclass(frozen=True)
class _Stressed:
    task: str
    group: str
    net: Net
    plan: Plan
    clean: Followed
    attacks: tuple[Attacked, ...]
    """On the answer, and on alignment."""


def section_3(preset: Preset) -> Section:
    """Attack on prefix-sum and maze nets."""
    stressed = [
        _stressed(preset, "prefix sums", m.recipe, m.net, plan)
        for m in prefix_nets(preset, _RECIPES)
        for plan in preset.prefix_attack
    ]
    stressed += [
        _stressed(preset, "mazes", group, net, preset.maze_attack)
        for group, nets in maze_nets(preset).items()
        for net in nets
    ]
    first = preset.prefix_attack[0]

    def build(values: Values) -> Content:
        def of(task: str, group: str, plan: Plan) -> list[_Stressed]:
            return [s for s in stressed if (s.task, s.group, s.plan) == (task, group, plan)]

        def attacked(s: _Stressed) -> list[bool]:
            return values(s.attacks[0])["row"]["corrects"]

        def lost(task: str, group: str, plan: Plan) -> Estimate:
            found = of(task, group, plan)
            return change([values(s.clean)["correct"] for s in found], [attacked(s) for s in found])

        def clean(task: str, group: str, plan: Plan) -> list[tuple[str, Estimate]]:
            return [("clean", over_seeds([values(s.clean)["correct"] for s in of(task, group, plan)]))]

        def under(task: str, group: str, plan: Plan) -> Estimate:
            return over_seeds([attacked(s) for s in of(task, group, plan)])

        bits = f"{first.size} bits"
        rooms = f"{preset.maze_attack.size} rooms a side"
        few = "An interval over three nets is rough; every net is shown." if preset.seeds <= 3 else ""
        one = "One net of each kind." if preset.maze_seeds == 1 else ""
        maze = preset.maze_attack
        claims = tuple(
            decide(claim, [(of_size, how(task, group, plan))], note, given=clean(task, group, plan))
            for claim, how, task, group, plan, of_size, note in (
                (UNCHANGED, lost, "prefix sums", "path-independent", first, bits, few),
                (BROKEN, under, "prefix sums", "fixed", first, bits, few),
                (MAZES_UNCHANGED, lost, "mazes", "path-independent", maze, rooms, one),
                (MAZES_BROKEN, under, "mazes", "fixed", maze, rooms, one),
            )
        )

        def dots(task: str) -> dict[str, Callable[[str], list[tuple[str, Estimate]]]]:
            return {
                word: lambda group, name=name: [
                    (f"{s.net.label}, {s.plan.size}", estimate(values(s.attacks[0])["row"][name]))
                    for s in stressed
                    if (s.task, s.group) == (task, group)
                ]
                for word, name in (("clean", "exact_clean"), ("attacked", "exact_attacked"))
            }

        figures = tuple(
            dots_by_category(
                f"attack-{task.replace(' ', '-')}",
                f"Exact accuracy on {task} from the net's own start, and from the worst start that was found. A point "
                "for each net.",
                tuple(dict.fromkeys(s.group for s in stressed if s.task == task)),
                dots(task),
                y=Axis("exact accuracy", percent=True),
            )
            for task in ("prefix sums", "mazes")
        )
        table = Table(
            f"Starts within a ball of radius {stressed[0].attacks[0].radius:g} times the typical norm of a state, the "
            f"worst of {preset.attack_restarts} attempts of {preset.attack_iterations} iterations of L-BFGS",
            (
                "Task", "Net", "Size", "Steps", "Exact, clean", "Exact, attacked answer", "Exact, attacked alignment",
                "Alignment under attack", "Same answers",
            ),
            tuple(
                (
                    s.task,
                    s.net.label,
                    str(s.plan.size),
                    str(s.plan.steps),
                    in_percent(estimate(values(s.attacks[0])["row"]["exact_clean"])),
                    *(in_percent(estimate(values(job)["row"]["exact_attacked"])) for job in s.attacks),
                    in_figures(estimate(values(s.attacks[1])["row"]["cosine_attacked"])),
                    in_percent(estimate(values(s.attacks[0])["row"]["agreement"])),
                )
                for s in stressed
            ),
        )  # fmt: skip
        return Content(claims, figures, (table,))

    return Section(
        3,
        "stress",
        "The stress test",
        "The start is chosen, within a fixed ball, to break the answer, or to break alignment. Does the net still end "
        "where it should? How the paper chose its starts is not known beyond L-BFGS; ball and objectives are ours.",
        (UNCHANGED, BROKEN, MAZES_UNCHANGED, MAZES_BROKEN),
        tuple(job for s in stressed for job in (s.clean, *s.attacks)),
        build,
    )


def _stressed(preset: Preset, task: str, group: str, net: Net, plan: Plan) -> _Stressed:
    attacks = tuple(
        Attacked(
            net=net,
            size=plan.size,
            count=plan.count,
            steps=plan.steps,
            objective=objective,
            restarts=preset.attack_restarts,
            iterations=preset.attack_iterations,
            expected=plan.expected,
        )
        for objective in _OBJECTIVES
    )
    clean = Followed(net=net, size=plan.size, count=plan.count, steps=plan.steps, expected=plan.expected / 10)
    return _Stressed(task, group, net, plan, clean, attacks)
