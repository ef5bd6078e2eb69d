"""Figures and animations from small made-up trajectories of a real task."""

import dataclasses
import re
import subprocess
import sys
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from holdfast.backup import BackupPolicy, ImplicitInvariantSet, design_base_controller
from holdfast.evaluate import Slice, Trajectories, compare_paired
from holdfast.plots import (
    DARK,
    LIGHT,
    SAFEGUARD_LEGEND,
    Curve,
    VariantResult,
    learning_curves_figure,
    learning_figure,
    margin_figure,
    projected_pairs,
    projection_figure,
    render_episode,
    safeguard_html,
    safeguard_markdown,
    slice_figure,
    to_png,
    to_svg,
    trajectory_figure,
)
from holdfast.plots.animation import backup_futures
from holdfast.plots.bounds import unsafe_intervals
from holdfast.plots.scene_view import SceneView
from holdfast.plots.theme import new_figure
from holdfast.sets import Box, Ellipsoid, SuperlevelSet, Zonotope
from holdfast.systems import System
from holdfast.tasks import LaneKeeping, SafetySettings, Task
from holdfast.tasks.scene import Circle, Polyline, Rectangle, Scene
from holdfast.types import Status

TASK = LaneKeeping()
STEPS = 24


class NoScene(LaneKeeping):
    def scene(self, states, t, context, futures):
        return None


def sample_trajectories(episodes=3, steps=STEPS):
    rng = np.random.default_rng(0)
    times = np.arange(steps + 1)
    reference = np.asarray(jax.vmap(TASK.reference, in_axes=(0, None))(times, ()))
    states = np.clip(reference[None] + 0.1 * rng.normal(size=(episodes, 1, 3)), -1.7, 6)
    proposed = rng.uniform([-6, -1.2], [6, 1.2], (episodes, steps, 2))
    status = np.full((episodes, steps), Status.accepted)
    status[:, 4:9], status[0, 9], status[0, 12] = Status.corrected, Status.fell_back, Status.bad_action
    proposed[0, 12] = np.nan, np.inf
    applied = np.clip(np.nan_to_num(proposed), TASK.system.input_box.lower, TASK.system.input_box.upper)
    margins = np.asarray(jax.vmap(jax.vmap(TASK.safe_set.margin))(jnp.asarray(states)))
    reward = np.zeros((episodes, steps))
    references = np.broadcast_to(reference, states.shape)
    return Trajectories(states, references, proposed, applied, status, margins, reward, TASK.system.dt)


def sample_slice(axes=(0, 2), fill=None):
    first, second = np.linspace(-1.8, 1.8, 15), np.linspace(-np.pi / 3, np.pi / 3, 11)
    radius = np.hypot(first[None] / 1.8, second[:, None])
    masks = [radius < r for r in (0.8, 9.0, 0.3, 0.6, 0.9)]
    if fill is not None:
        masks = [np.full_like(mask, fill) for mask in masks]
    return Slice(axes, ("y", "psi"), ("m", "rad"), first, second, np.array([0.0, 5.0, 0.0]), *masks)


def sample_rows(seeds=3):
    rows = []
    for i in range(6):
        returns = [-100.0 / (i + 1) - s for s in range(seeds)]
        shares = {"interventions": [0.5 / (i + 1)] * seeds, "violations": 0.0}
        rows.append({"step": 640 * i, "return_mean": returns, **shares})
    return rows


def legend_labels(figure):
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def axis_labels(figure):
    return {ax.get_ylabel() for ax in figure.axes} | {ax.get_xlabel() for ax in figure.axes}


@pytest.fixture(scope="module")
def trajectories():
    return sample_trajectories()


@pytest.fixture(scope="module")
def implicit_set():
    base = design_base_controller(TASK.system, TASK.safety.state_cost, TASK.safety.input_cost, 0.3)
    return ImplicitInvariantSet(BackupPolicy(base), TASK.safe_set, 10)


def test_trajectory_figure_names_states_inputs_units_and_interventions(trajectories):
    figure = trajectory_figure(TASK, trajectories, theme=DARK, width="narrow")
    assert {"y (m)", "v (m/s)", "psi (rad)", "a (m/s²)", "r (rad/s)", "time (s)"} <= axis_labels(figure)
    wanted = {"reference", "this episode", "2 other episodes", "unsafe", "proposed", "applied", "input bounds"}
    assert wanted | {"corrected", "fell back", "bad action"} <= legend_labels(figure)
    assert to_png(figure, dpi=40).startswith(b"\x89PNG")


class Chain(System):
    """Seven integrators in a row, two inputs: more panels than one column takes."""

    state_names: ClassVar = tuple(f"x{i}" for i in range(7))
    input_names: ClassVar = ("u0", "u1")
    dt: float = 0.1
    input_box: Box = eqx.field(default_factory=lambda: Box([-1.0, -1.0], [1.0, 1.0]))

    def step(self, x, u, w=None):
        return x + self.dt * jnp.concatenate([x[1:], u[:1]])

    def equilibrium(self):
        return jnp.zeros(7), jnp.zeros(2)


class ChainTask(Task):
    name: ClassVar = "chain"
    episode_steps: ClassVar = 8
    system: Chain = eqx.field(default_factory=Chain)
    safe_set: SuperlevelSet = eqx.field(default_factory=lambda: SuperlevelSet(lambda x: 1 - x[0]))
    state_box: Box = eqx.field(default_factory=lambda: Box(-np.ones(7), np.ones(7)))
    safety: SafetySettings = eqx.field(default_factory=lambda: SafetySettings((1.0,) * 7, (1.0, 1.0), 5))

    def sample_start(self, key):
        return jnp.zeros(7)

    def reward(self, x, u, x_next, t, context):
        return jnp.zeros(())


def test_a_system_of_many_states_without_units_or_names_of_constraints(tmp_path):
    states, actions = np.zeros((1, 9, 7)), np.zeros((1, 8, 2))
    status, margins = np.zeros((1, 8), int), np.ones((1, 9, 1))
    kept = Trajectories(states, states, actions, actions, status, margins, np.zeros((1, 8)), 0.1)
    figure = trajectory_figure(ChainTask(), kept)
    assert sum(ax.get_visible() for ax in figure.axes) == 9
    assert sum(ax.get_xlabel() == "time (s)" and ax.get_visible() for ax in figure.axes) == 2
    to_png(margin_figure(ChainTask(), kept), dpi=30)
    assert render_episode(ChainTask(), kept, tmp_path / "chain.gif", dpi=30).stat().st_size > 0


def test_margin_figure_names_constraints_by_unit(trajectories):
    figure = margin_figure(TASK, trajectories)
    assert {"worst margin\n(m)", "worst margin\n(rad)", "time (s)"} <= axis_labels(figure)
    assert {*TASK.safe_set.names, "violated", "accepted", "corrected"} <= legend_labels(figure)


def test_where_colours_would_repeat_each_panel_names_its_own_lines():
    names = tuple(f"wall {i}" for i in range(8))
    walls = SuperlevelSet(lambda x: jnp.repeat(2 - x[:1], 8), names, ("m",) * 4 + ("rad",) * 4)
    kept = sample_trajectories()
    many = dataclasses.replace(kept, margins=np.repeat(kept.margins[..., :1], 8, axis=-1))
    figure = margin_figure(TASK.completed(safe_set=walls), many, width="narrow")
    own = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes[:2]]
    assert own == [list(names[:4]), list(names[4:])]
    assert "violated" in legend_labels(figure) and not set(names) & legend_labels(figure)


def test_margin_figure_says_when_a_margin_is_not_finite(trajectories):
    margins = trajectories.margins.copy()
    margins[1, 5, 0] = np.nan
    broken = Trajectories(*(margins if v is trajectories.margins else v for v in vars(trajectories).values()))
    figure = margin_figure(TASK, broken)
    assert figure.axes[0].get_title() == "1 margins were not finite"
    # The other episodes' minimum must not hide it.
    assert np.isnan(figure.axes[0].lines[0].get_ydata()[5])


@pytest.mark.parametrize("fill", [None, True, False])
def test_slice_figure_draws_whatever_the_masks_are(fill):
    figure = slice_figure(TASK, [sample_slice(fill=fill)])
    assert {"y (m)", "psi (rad)"} <= axis_labels(figure)
    assert {"learned set", "analytic set", "viability kernel", "base set", "unsafe"} == legend_labels(figure)
    assert figure.axes[0].get_title() == "at v = 5 m/s"
    to_png(figure, dpi=30)


def test_projections_of_sets_are_drawn_whole_with_units_and_what_is_not_feasible():
    """Also of a set larger than its feasible box, which the picture is there to show."""
    inner = Zonotope(TASK.state_box.centre, np.diag(TASK.state_box.half_widths) @ [[0.5, 0.3], [0.0, 0.4], [0.2, 0.2]])
    outer = Box(*(TASK.state_box.centre + sign * 2 * TASK.state_box.half_widths for sign in (-1, 1)))
    points = np.array([TASK.state_box.centre, [np.nan, 0.0, 0.0]])
    figure = projection_figure(TASK, {"ours": inner, "theirs": outer}, points=points)
    assert {"ours", "theirs", "states", "outside the feasible box"} == legend_labels(figure)
    assert {"y (m)", "psi (rad)", "v (m/s)"} == axis_labels(figure)
    for ax, pair in zip(figure.axes, projected_pairs(3), strict=True):
        pair = list(pair)
        assert np.all([ax.get_xlim()[0], ax.get_ylim()[0]] <= outer.lower[pair]), "cut off"
        assert np.all([ax.get_xlim()[1], ax.get_ylim()[1]] >= outer.upper[pair]), "cut off"
        shaded = [patch for patch in ax.patches if patch.get_facecolor()[:3] == to_rgb(LIGHT.unsafe)]
        feasible = TASK.state_box.centre[pair]
        assert len(shaded) == 4 and not any(patch.contains_point(ax.transData.transform(feasible)) for patch in shaded)
        assert sum(p.contains_point(ax.transData.transform(outer.upper[pair])) for p in shaded) == 1
        assert len(ax.lines[0].get_xdata()) == 1
    to_png(figure, dpi=30)
    assert projected_pairs(6) == ((0, 3), (1, 4), (2, 5))
    for shapes, pairs, words in (
        ({}, None, "0 sets"),
        ({"round": Ellipsoid(np.eye(3), 1.0)}, None, "'round' is a Ellipsoid"),
        ({"ours": inner}, [(0, 3)], r"coordinates 0 to 2"),
    ):
        with pytest.raises(ValueError, match=words):
            projection_figure(TASK, shapes, pairs=pairs)


def test_learning_figure_takes_lists_single_numbers_and_rows_by_seed():
    figure = learning_figure(sample_rows())
    assert {"return", "interventions", "violations"} == legend_labels(figure)
    assert {"episode return", "share of steps (%)", "environment steps"} <= axis_labels(figure)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata()[0], -101.0)
    apart = [{**row, "seed": s, "return_mean": row["return_mean"][s]} for s in range(3) for row in sample_rows()]
    np.testing.assert_allclose(learning_figure(apart).axes[0].lines[0].get_ydata()[0], -101.0)
    learning_figure([{"step": 0, "return_mean": float("nan")}, {"step": 5, "return_mean": 1.0}])
    with pytest.raises(ValueError, match="rows is empty"):
        learning_figure([])


def test_unsafe_intervals_are_found_from_the_margins_alone():
    found = unsafe_intervals(TASK, 0, (-3.0, 3.0))
    assert {i.name for i in found} == {"left lane edge", "right lane edge"}
    np.testing.assert_allclose(sorted((i.lower, i.upper) for i in found), [(-3.0, -1.8), (1.8, 3.0)])
    assert unsafe_intervals(TASK, 1, (-3.0, 30.0)) == []


def test_constraints_on_several_states_are_not_shaded():
    class Diagonal(LaneKeeping):
        safe_set: SuperlevelSet = SuperlevelSet(lambda x: 1.0 - x[0] - x[2], ("sum",), ("",))
        state_box: Box = Box([-1.0, 0.0, -1.0], [1.0, 1.0, 1.0])

    assert unsafe_intervals(Diagonal(), 0, (-3.0, 3.0)) == []


def test_svg_follows_the_page_by_css_variables_and_keeps_ids_apart(trajectories):
    svg = to_svg(trajectory_figure(TASK, trajectories), LIGHT, name="f1", variables=True)
    assert svg.startswith("<svg") and "viewBox" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg), "a colour is not one of the theme's"
    assert "var(--hf-actual)" in svg and "http" not in svg
    assert all(name.startswith("f1-") for name in re.findall(r'\bid="([^"]*)"', svg))
    assert svg == to_svg(trajectory_figure(TASK, trajectories), LIGHT, name="f1", variables=True)
    with pytest.raises(ValueError, match="letters, digits"):
        to_svg(margin_figure(TASK, trajectories), LIGHT, name='"><script>')


def test_figures_leave_no_global_state(trajectories):
    before = dict(matplotlib.rcParams)
    to_svg(trajectory_figure(TASK, trajectories), LIGHT, name="f")
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_mp4_shows_the_scene_and_the_backup_plan(tmp_path, trajectories, implicit_set):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = render_episode(TASK, trajectories, tmp_path / "a.mp4", implicit_set=implicit_set, dpi=50)
    command = [ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(STEPS + 1, -1)
    assert np.ptp(frames[0]) > 100 and not np.array_equal(frames[0], frames[-1])


def test_gif_without_a_scene(tmp_path, trajectories):
    path = render_episode(NoScene(), trajectories, tmp_path / "a.gif", dpi=40)
    with Image.open(path) as picture:
        assert picture.n_frames == STEPS // 2 + 1
        assert picture.info["duration"] == 100
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif"):
        render_episode(TASK, trajectories, tmp_path / "a.avi")


def test_mp4_without_ffmpeg_becomes_a_gif(tmp_path, trajectories, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert render_episode(NoScene(), trajectories, tmp_path / "a.mp4", dpi=30, fps=5).name == "a.gif"


def test_futures_start_at_the_state_and_show_rejected_proposals_only(trajectories, implicit_set):
    futures = backup_futures(TASK, trajectories, 0, implicit_set)
    np.testing.assert_array_equal(futures["backup"][:, 0], trajectories.states[0, :-1])
    shown = np.isfinite(futures["proposed"]).all(axis=(1, 2))
    after = jax.vmap(TASK.system.step)(
        jnp.asarray(trajectories.states[0, :-1]),
        jax.vmap(TASK.system.input_box.clip)(jnp.asarray(trajectories.proposed[0])),
    )
    inside = np.asarray(jax.vmap(implicit_set.contains)(after))
    finite = np.isfinite(trajectories.proposed[0]).all(axis=1)
    np.testing.assert_array_equal(shown, ~inside & finite)


def test_scene_view_moves_every_kind_of_shape_and_refuses_other_shapes():
    def scene(x):
        points = np.array([[x, 0.0], [x + 1, 1.0], [x, 1.0]])
        shapes = (
            Polyline(points, "trail"),
            Polyline(points, "unsafe", filled=True),
            Circle((x, 1.0), 0.5, "body"),
            Rectangle((x, 0.0), (2.0, 1.0), "body", np.pi / 2),
        )
        return Scene(shapes, (-3.0, 3.0, -2.0, 2.0), ("x (m)", "y (m)"))

    _, axes = new_figure(LIGHT, "wide", 1)
    view = SceneView(axes[0, 0], scene(0.0), LIGHT)
    view.update(scene(1.0))
    line, polygon, disc, rectangle = view.artists
    assert line.get_xdata()[0] == 1.0 and polygon.get_xy()[0, 0] == 1.0 and disc.center == (1.0, 1.0)
    np.testing.assert_allclose(np.ptp(rectangle.get_xy(), axis=0), [1.0, 2.0], atol=1e-12)
    with pytest.raises(ValueError, match="the shapes changed"):
        view.update(Scene(scene(0.0).shapes[:2], (-3.0, 3.0, -2.0, 2.0), ("x", "y")))


def test_lane_keeping_scene_moves_with_the_car(trajectories):
    first, later = (TASK.scene(trajectories.states[0], t, (), {}) for t in (0, STEPS))
    assert first.window == later.window and len(first.shapes) == len(later.shapes)
    assert later.shapes[-2].centre == (0.0, pytest.approx(trajectories.states[0, -1, 0]))


def sample_curves(published=None):
    rng, steps = np.random.default_rng(0), np.linspace(0, 60_000, 7)
    returns = -10 - 90 * np.exp(-steps / 10_000)[:, None] + rng.normal(size=(7, 5))
    returns[0, 0] = np.nan
    return {"none": Curve(steps, returns), "ray mask": Curve(steps, returns - 2, published)}


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_learning_curves_name_variants_seeds_and_published_values(width):
    panels = {"balance-pendulum": sample_curves(-8.4), "balance-quadrotor": sample_curves(-900.0)}
    panels["balance-pendulum"]["lost"] = Curve(np.array([0.0, 1.0]), np.array([[-50.0], [-5000.0]]))
    panels["balance-quadrotor"]["alone"] = Curve(np.array([0.0, 1.0]), np.array([[-50.0], [-40.0]]))
    figure = learning_curves_figure(panels, theme=DARK, width=width, y_limits={"balance-pendulum": (-40, 0)})
    assert legend_labels(figure) == {"none", "ray mask", "lost", "alone", "published, final"}
    assert {"environment steps", "episode return"} <= axis_labels(figure)
    first, second = figure.axes[:2]
    assert first.get_title("left").endswith("of 1 to 5 seeds") and second.get_title("left").endswith("of 1 to 5 seeds")
    assert any("lost ends at −5,000" in words.get_text() for words in first.texts)
    dashed = [line.get_ydata()[0] for line in first.lines if line.get_linestyle() == "--"]
    assert dashed == [-8.4] and first.get_ylim() == (-40, 0)
    # Far away: written, or it would flatten the curves.
    assert not any(line.get_linestyle() == "--" for line in second.lines) and second.get_ylim()[0] > -200
    assert any("ray mask, published −900" in words.get_text() for words in second.texts)
    colours = {line.get_label(): line.get_color() for ax in figure.axes for line in ax.lines}
    assert len({colours[name] for name in ("none", "ray mask", "alone")}) == 3
    assert to_png(figure, dpi=40).startswith(b"\x89PNG")


def test_no_two_of_many_learning_curves_look_alike():
    curve = sample_curves()["none"]
    figure = learning_curves_figure({"task": {f"method {number}": curve for number in range(20)}})
    lines = [line for line in figure.axes[0].lines if line.get_label().startswith("method")]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 20


def test_learning_curves_need_curves_that_fit():
    with pytest.raises(ValueError, match=r"steps \(3,\), returns \(4, 2\)"):
        Curve(np.zeros(3), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="no curve"):
        learning_curves_figure({"pendulum": {}})


def test_the_table_of_safeguards_says_what_was_measured_and_what_was_not():
    rng = np.random.default_rng(1)
    unsafe = -8.4 + 0.01 * rng.normal(size=(10, 20))
    against = compare_paired(unsafe * 1.02, unsafe)
    rows = [
        VariantResult("SHAC", "none", 10, 100_000, -8.4, (-8.45, -8.38), published=-8.78, violations=1234),
        VariantResult(
            "SHAC",
            "ray <mask> | linear",
            10,
            100_000,
            -8.57,
            (-8.6, -8.5),
            against_unsafe=against,
            steps_to_95=22_000.0,
            interventions=0.0213,
            training_violations=0,
            violations=0,
            chosen_noise_violations=0,
            relative_time=1.742,
        ),
    ]
    head, rule, first, second = safeguard_markdown(rows).splitlines()
    assert head.count(" | ") == rule.count(" | ") == first.count(" | ") == second.count(" | ") == 8
    assert "−8.4 (−8.45 to −8.38)" in first and "| −8.78 |" in first and "1,234 (– / 1,234 / –)" in first
    assert (
        "ray <mask> \\| linear" in second and "0 (0 / 0 / 0)" in second and "| 22,000 |" in second and "1.7x" in second
    )
    assert "| −2\u202f% (−" in second and "| 2.1\u202f% |" in second
    page = safeguard_html(rows)
    assert "ray &lt;mask&gt; | linear" in page and "<br><small>−8.6 to −8.5</small>" in page
    assert page.count("<tr>") == 3 and "chosen noise" in page and "Violations:" in SAFEGUARD_LEGEND
    lost = compare_paired(np.full((2, 2), np.nan), np.ones((2, 2)))
    assert "not comparable" in safeguard_markdown([VariantResult("PPO", "x", 3, 1, np.nan, (np.nan,) * 2, None, lost)])
